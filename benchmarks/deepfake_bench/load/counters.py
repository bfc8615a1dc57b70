"""What the server itself counted: Triton's statistics extension, as a difference over a measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tritonclient.grpc


@dataclass(frozen=True, slots=True)
class Counters:
    """Triton's running totals for one model since it was loaded; times in nanoseconds summed over requests.

    See "Statistics Extension" in the Triton documentation. A batch's time counts once for each request in it.
    """

    requests: int
    failed: int
    crops: int
    executions: int
    queue_ns: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int
    executions_by_batch: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class ServerShare:
    """Where a request's time went inside the server, over one measurement.

    Attributes:
        queue_ms: mean wait for a batch and a free instance.
        compute_ms: mean time in the backend, with its input and output handling.
        mean_batch: crops per execution; None when nothing ran.
        failed: requests the server failed or refused.
        executions_by_batch: executions by batch size.
    """

    queue_ms: float
    compute_ms: float
    mean_batch: float | None
    failed: int
    executions_by_batch: Mapping[int, int]


def read_counters(grpc_url: str, model: str, version: int) -> Counters:
    """Ask the server for the totals of one model version."""
    with tritonclient.grpc.InferenceServerClient(grpc_url) as client:
        (stats,) = client.get_inference_statistics(model, str(version)).model_stats
    return _counters(stats)


def _counters(stats: Any) -> Counters:
    times = stats.inference_stats
    return Counters(
        requests=times.success.count,
        failed=times.fail.count,
        crops=stats.inference_count,
        executions=stats.execution_count,
        queue_ns=times.queue.ns,
        compute_input_ns=times.compute_input.ns,
        compute_infer_ns=times.compute_infer.ns,
        compute_output_ns=times.compute_output.ns,
        executions_by_batch={item.batch_size: item.compute_infer.count for item in stats.batch_stats},
    )


def share_between(before: Counters, after: Counters) -> ServerShare:
    """Return what happened between two readings."""
    requests = max(1, after.requests - before.requests)
    executions = after.executions - before.executions
    compute_ns = sum(
        getattr(after, name) - getattr(before, name)
        for name in ("compute_input_ns", "compute_infer_ns", "compute_output_ns")
    )
    by_batch = {
        size: count - before.executions_by_batch.get(size, 0)
        for size, count in sorted(after.executions_by_batch.items())
        if count > before.executions_by_batch.get(size, 0)
    }
    return ServerShare(
        queue_ms=round((after.queue_ns - before.queue_ns) / requests / 1e6, 3),
        compute_ms=round(compute_ns / requests / 1e6, 3),
        mean_batch=(after.crops - before.crops) / executions if executions else None,
        failed=after.failed - before.failed,
        executions_by_batch=by_batch,
    )
