"""How much a server takes, and how long its callers wait, at one level of load after another.

Each level is measured in windows until the confidence interval of the throughput is tight or the windows run out.
See `deepfake_bench.load.generator` for the kinds of load, and for why latency counts from when a request was due.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from deepfake_bench.load.generator import Load
from deepfake_bench.load.measure import Measurement, Stopping, measure_level
from deepfake_bench.load.process import LoadProcesses
from deepfake_bench.load.senders import LoadTarget
from deepfake_bench.server.serving import Server

WARM_UP = Load(concurrency=8, measure_s=1.0)


def measure_levels(
    server: Server,
    target: LoadTarget,
    levels: Sequence[Load],
    *,
    processes: int,
    stopping: Stopping,
    announce: Callable[[str], None],
) -> Iterator[Measurement]:
    """Yield the measurement of each level.

    Args:
        server: whose answers were verified.
        target: the way to it.
        levels: what to load it with.
        processes: that send the load.
        stopping: how long.
        announce: called with one line before each level.
    """
    with LoadProcesses(target, server.crops, processes=processes) as load:
        load.run(WARM_UP)
        for level in levels:
            announce(str(level))
            yield measure_level(
                load,
                level,
                crops_per_request=target.crops_per_request,
                counters=server.counters,
                server=server.root,
                stopping=stopping,
            )
