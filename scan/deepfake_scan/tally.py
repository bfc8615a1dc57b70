"""`ScanTally`: how far a scan has come, for the screen and for Prometheus. Counts only; it knows no results."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class ScanTally:
    """How far a scan has come.

    Attributes:
        listed: inputs found so far.
        skipped: those of them that have a result already, or were named twice.
        total: inputs in all; None until all are listed, unless it is known before.
        labels: verdicts of this run, by label.
        failures: inputs without a verdict, by the type of the error.
        in_flight: inputs under way.
        deaths: processes that died of an input.
        parts: parts written.
        started: time of `time.monotonic` at which the first input was begun.
    """

    listed: int = 0
    skipped: int = 0
    total: int | None = None
    labels: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    deaths: int = 0
    parts: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, cells: Mapping[str, Any]) -> None:
        """Count a result."""
        if "error_type" in cells:
            self.failures[cells["error_type"]] += 1
        else:
            self.labels[cells["label"]] += 1

    @property
    def done(self) -> int:
        """Inputs with a result of this run."""
        return self.labels.total() + self.failures.total()

    @property
    def failed(self) -> int:
        """Inputs without a verdict."""
        return self.failures.total()

    @property
    def per_second(self) -> float:
        """Inputs finished in a second, since the first was begun."""
        return self.done / max(time.monotonic() - self.started, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the end at this rate; None where that is not known."""
        if self.total is None or not self.done:
            return None
        return max(0, self.total - self.skipped - self.done) / self.per_second

    def line(self) -> str:
        """Return one line for people."""
        finished = self.skipped + self.done
        of = (
            f"{finished:,} of {self.total:,}"
            if self.total is not None
            else f"{finished:,} of at least {self.listed:,}"
        )
        share = f" ({finished / self.total:.0%})" if self.total else ""
        parts = [f"{of}{share}", f"{self.per_second:.2f}/s"]
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        parts += [f"{count:,} {label}" for label, count in sorted(self.labels.items())]
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        return " · ".join(parts)


def duration(seconds: float) -> str:
    """Return a time span in its largest units: ``45 s``, ``12 min``, ``3 h 20 min``, ``2 d 4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
