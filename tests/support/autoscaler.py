"""How many replicas a HorizontalPodAutoscaler wants, by a ScaledObject of ours: its rule without a cluster.

After Kubernetes' documentation of the algorithm ("Horizontal Pod Autoscaling", and "Configurable scaling behavior"),
as far as our manifests use it: external metrics with the target `AverageValue`, which KEDA makes of its triggers, and
one policy of `Pods` for each direction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

TOLERANCE: Final = 0.1
"""Of Kubernetes: a metric so close to its target wants no change."""
SYNC_S: Final = 15.0
"""How often Kubernetes decides."""


@dataclass(frozen=True)
class Direction:
    """How fast replicas may be added, or taken away."""

    pods: int
    period_s: float
    window_s: float

    @classmethod
    def of(cls, rules: Mapping[str, Any]) -> Direction:
        (policy,) = rules["policies"]
        assert policy["type"] == "Pods"
        return cls(policy["value"], policy["periodSeconds"], rules["stabilizationWindowSeconds"])


@dataclass
class Autoscaler:
    """The rule, and what it decided of late.

    Attributes:
        queries: by the name of each trigger.
        targets: what each replica may have of it.
    """

    queries: dict[str, str]
    targets: dict[str, float]
    least: int
    most: int
    up: Direction
    down: Direction
    wishes: list[tuple[float, int]] = field(default_factory=list)
    changes: list[tuple[float, int]] = field(default_factory=list)

    @classmethod
    def of(cls, scaled_object: Mapping[str, Any]) -> Autoscaler:
        """Read a manifest."""
        spec = scaled_object["spec"]
        triggers = spec["triggers"]
        assert {(one["type"], one["metricType"]) for one in triggers} == {("prometheus", "AverageValue")}
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        return cls(
            {one["name"]: one["metadata"]["query"] for one in triggers},
            {one["name"]: float(one["metadata"]["threshold"]) for one in triggers},
            spec["minReplicaCount"],
            spec["maxReplicaCount"],
            Direction.of(behavior["scaleUp"]),
            Direction.of(behavior["scaleDown"]),
        )

    def wish(self, values: Mapping[str, float], current: int) -> int:
        """Return what the metrics alone want; `values` are those of the queries."""
        wanted = 0
        for name, target in self.targets.items():
            per_replica = values[name] / current
            near = abs(per_replica / target - 1) <= TOLERANCE
            wanted = max(wanted, current if near else math.ceil(values[name] / target))
        return min(self.most, max(self.least, wanted))

    def decide(self, values: Mapping[str, float], current: int, now_s: float) -> int:
        """Return how many replicas there shall be from now on."""
        self.wishes.append((now_s, self.wish(values, current)))
        self.wishes = [one for one in self.wishes if now_s - one[0] <= max(self.up.window_s, self.down.window_s)]
        lowest_of_late = min(wish for at_s, wish in self.wishes if now_s - at_s <= self.up.window_s)
        highest_of_late = max(wish for at_s, wish in self.wishes if now_s - at_s <= self.down.window_s)
        wanted = current
        if lowest_of_late > current:
            wanted = min(lowest_of_late, current - self._changed(self.up, now_s) + self.up.pods)
            wanted = max(wanted, current)
        elif highest_of_late < current:
            wanted = max(highest_of_late, current - self._changed(self.down, now_s) - self.down.pods)
            wanted = min(wanted, current)
        if wanted != current:
            self.changes.append((now_s, wanted - current))
        return wanted

    def _changed(self, direction: Direction, now_s: float) -> int:
        """Return how many replicas were added, less those taken away, within the period of a direction."""
        return sum(change for at_s, change in self.changes if now_s - at_s < direction.period_s)
