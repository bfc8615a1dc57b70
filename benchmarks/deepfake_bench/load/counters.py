"""What the server itself counted: Triton's statistics extension, as a difference over a measurement."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from deepfake_client import NO_RETRY, Connection, connect
from deepfake_client.transport.grpc import GrpcTransport
from deepfake_client.transport.http import HttpTransport
from deepfake_client.transport.protocol import ServedModel


@dataclass(frozen=True, slots=True)
class Counters:
    """Triton's running totals for one model since it was loaded; times in nanoseconds summed over requests.

    See "Statistics Extension" in the Triton documentation. A batch's time counts once for each request in it;
    `compute_ns` is that in the backend, with its input and output handling.
    """

    requests: int
    failed: int
    crops: int
    executions: int
    queue_ns: int
    compute_ns: int
    executions_by_batch: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class ServerShare:
    """Where a request's time went inside the server, on average over one measurement.

    `queue_ms` is the wait for a batch and a free instance, `mean_batch` crops per execution, None when nothing ran;
    `failed` counts the refused ones, too.
    """

    queue_ms: float
    compute_ms: float
    mean_batch: float | None
    failed: int
    executions_by_batch: Mapping[int, int]


def read_counters(connection: Connection, model: ServedModel) -> Counters:
    """Ask the server for the totals of one model version."""

    async def ask() -> dict[str, Any]:
        transport = connect(replace(connection, retry=NO_RETRY))
        assert isinstance(transport, GrpcTransport | HttpTransport)
        try:
            return await transport.statistics(model)
        finally:
            await transport.close()

    stats = asyncio.run(ask())
    times = stats["inference_stats"]
    # Protobuf's JSON has numbers of 64 bits as texts.
    compute_ns = sum(int(times[part]["ns"]) for part in ("compute_input", "compute_infer", "compute_output"))
    return Counters(
        requests=int(times["success"]["count"]),
        failed=int(times["fail"]["count"]),
        crops=int(stats["inference_count"]),
        executions=int(stats["execution_count"]),
        queue_ns=int(times["queue"]["ns"]),
        compute_ns=compute_ns,
        executions_by_batch={
            int(item["batch_size"]): int(item["compute_infer"]["count"]) for item in stats.get("batch_stats", ())
        },
    )


def share_between(before: Counters, after: Counters) -> ServerShare:
    """Return what happened between two readings."""
    requests = max(1, after.requests - before.requests)
    executions = after.executions - before.executions
    by_batch = Counter(after.executions_by_batch) - Counter(before.executions_by_batch)
    return ServerShare(
        queue_ms=round((after.queue_ns - before.queue_ns) / requests / 1e6, 3),
        compute_ms=round((after.compute_ns - before.compute_ns) / requests / 1e6, 3),
        mean_batch=(after.crops - before.crops) / executions if executions else None,
        failed=after.failed - before.failed,
        executions_by_batch=dict(sorted(by_batch.items())),
    )
