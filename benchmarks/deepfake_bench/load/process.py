"""Processes that hold the load: the generator and the measuring program must not disturb each other."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from multiprocessing.connection import Connection as Pipe
from typing import Self

from deepfake_bench.load.generator import Load, Trace, run_load
from deepfake_bench.load.senders import Crops, LoadTarget, connected
from deepfake_preprocess.errors import DeepfakeError

START_SLACK_S = 0.2
"""Between the order and the first request: all processes start together."""


class LoadProcesses:
    """One or more processes that send to the same target, together as one load.

    ::

        with LoadProcesses(target, crops, processes=2) as load:
            traces = load.run(Load(concurrency=32, ramp_s=0.5, measure_s=3))

    For `crops` see `deepfake_bench.load.senders.connected`; `crops_per_request` is their mean.
    """

    def __init__(self, target: LoadTarget, crops: Crops | list[Crops], *, processes: int = 1) -> None:
        context = multiprocessing.get_context("spawn")
        self.crops_per_request = (
            sum(map(len, crops)) / len(crops) if isinstance(crops, list) else target.crops_per_request
        )
        self._pipes: list[Pipe] = []
        self._processes = []
        for _ in range(processes):
            pipe, far_end = context.Pipe()
            self._pipes.append(pipe)
            self._processes.append(context.Process(target=_main, args=(far_end, target, crops), daemon=True))

    def __enter__(self) -> Self:
        try:
            for process in self._processes:
                process.start()
            for pipe in self._pipes:
                _receive(pipe)  # it is ready
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            if process.is_alive():
                pipe.send(None)
        for process in self._processes:
            if process.pid is not None:
                process.join()

    @property
    def pids(self) -> list[int]:
        """Process ids."""
        return [process.pid for process in self._processes if process.pid is not None]

    def run(self, load: Load) -> list[Trace]:
        """Load the server and return each process's trace."""
        start_at, count = time.perf_counter() + START_SLACK_S, len(self._pipes)
        busy = []
        for number, pipe in enumerate(self._pipes):
            if (share := load.share(number, count, start_at=start_at)) is not None:
                pipe.send(share)
                busy.append(pipe)
        traces = []
        for pipe in busy:
            answer = _receive(pipe)
            if not isinstance(answer, Trace):
                raise DeepfakeError(f"a load process failed: {answer}")
            traces.append(answer)
        return traces


def _receive(pipe: Pipe) -> object:
    try:
        return pipe.recv()
    except EOFError:
        raise DeepfakeError("a load process died; look at the memory of this machine") from None


def _main(pipe: Pipe, target: LoadTarget, crops: Crops | list[Crops]) -> None:
    async def serve() -> None:
        async with connected(target, crops) as send:
            pipe.send(None)  # imports and connections took their time; what is timed begins after them
            while (load := await asyncio.to_thread(pipe.recv)) is not None:
                try:
                    answer: Trace | str = await run_load(send, load)
                except Exception as exc:  # whatever it is, the measuring process must hear of it
                    answer = f"{type(exc).__name__}: {exc}"
                pipe.send(answer)

    asyncio.run(serve())
