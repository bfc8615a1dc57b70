"""``/metrics`` for Prometheus: what the database counted, the same from every gateway, and what this one refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from deepfake_gateway.api.parts import DeskOf
from deepfake_gateway.intake.problems import Problem, responses
from deepfake_gateway.store.analysis import Status
from deepfake_gateway.store.batches import Batches
from deepfake_gateway.store.counters import COUNTED, amounts
from deepfake_gateway.store.records import Store
from deepfake_gateway.store.threads import in_store
from deepfake_gateway.store.watches import Watches

WORKER_SILENT_S: Final = 10.0
"""A worker says every 2 s that it is alive."""
_PREFIX: Final = "deepfake_gateway"

router = APIRouter(tags=["operations"])


@router.get("/metrics", response_class=Response, responses=responses())
async def metrics(request: Request, desk: DeskOf) -> Response:
    """Return the metrics for Prometheus."""
    here: RequestMetrics = request.app.state.metrics
    stored = CollectorRegistry(auto_describe=False)
    stored.register(_StoreMetrics(desk.store))
    text = await in_store(generate_latest, stored)
    return Response(text + generate_latest(here.registry), media_type=CONTENT_TYPE_LATEST)


class RequestMetrics:
    """What one web process counts of requests: no database is asked for one that is refused."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            f"{_PREFIX}_requests", "Requests to this process.", ("method", "status"), registry=self.registry
        )
        self._refused = Counter(
            f"{_PREFIX}_refused",
            "Requests that this process refused, by the setting that bounds them or by what was wrong.",
            ("status", "reason"),
            registry=self.registry,
        )
        self._bytes = Counter(f"{_PREFIX}_received_bytes", "Bytes of requests' bodies.", registry=self.registry)

    def answered(self, method: str, status: int) -> None:
        """Count an answer."""
        self._requests.labels(method if method in _METHODS else "other", str(status)).inc()

    def refused(self, problem: Problem) -> None:
        """Count a refusal."""
        self._refused.labels(str(problem.status), problem.reason).inc()

    def received(self, num_bytes: int) -> None:
        """Count a piece of a body."""
        self._bytes.inc(num_bytes)


_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})


class _StoreMetrics(Collector):
    """What the database holds and counted."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterable[Metric]:
        now = GaugeMetricFamily(f"{_PREFIX}_analyses", "Stored analyses by state.", labels=("status",))
        counts = self._store.count_by("status")
        for status in Status:
            now.add_metric([status.value], counts.get((status.value,), 0))
        yield now
        yield _gauge("oldest_queued_seconds", "Age of the oldest analysis that waits.", self._store.longest_wait())
        yield _gauge("awaited", "Files of batches that are yet to be fetched.", Batches(self._store.engine).awaited())
        yield _gauge("workers", "Workers that are alive.", self._store.workers_alive(WORKER_SILENT_S))
        yield _gauge(
            "watches", "Live sources that are watched, or wait for it.", Watches(self._store.engine).unfinished()
        )
        with self._store.engine.connect() as connection:
            yield from _counted(amounts(connection))


def _gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", help_text, value=value)


def _counted(found: Iterable[tuple[str, dict[str, str], float]]) -> Iterable[Metric]:
    by_name: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    for name, labels, amount in found:
        by_name[name].append((labels, amount))
    for name, counted in COUNTED.items():
        if counted.buckets:
            yield _histogram(name, by_name[name])
            continue
        family = CounterMetricFamily(f"{_PREFIX}_{name}", counted.help_text, labels=counted.labels)
        rows = by_name[name] or ([] if counted.labels else [({}, 0.0)])
        for labels, amount in rows:
            family.add_metric([labels[label] for label in counted.labels], amount)
        yield family


def _histogram(name: str, rows: list[tuple[dict[str, str], float]]) -> HistogramMetricFamily:
    """Return a histogram of rows that hold the amount of one bucket each, or the sum."""
    counted = COUNTED[name]
    family = HistogramMetricFamily(f"{_PREFIX}_{name}", counted.help_text, labels=counted.labels)
    bounds = [*map(str, counted.buckets), "+Inf"]
    series: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for labels, amount in rows:
        series[tuple(labels[label] for label in counted.labels)][labels.get("le", "sum")] = amount
    if not counted.labels:
        series.setdefault((), {})
    for values, found in series.items():
        total, buckets = 0.0, []
        for bound in bounds:
            total += found.get(bound, 0.0)
            buckets.append((bound, total))
        family.add_metric(list(values), buckets, found.get("sum", 0.0))
    return family
