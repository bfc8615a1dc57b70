"""Processes that hold the load, so that the generator and the measuring program do not disturb each other."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

from deepfake_bench.load.generator import Load, Trace, run_load
from deepfake_bench.load.senders import Crops, Target, make_sender
from deepfake_preprocess.errors import DeepfakeError

START_SLACK_S = 0.2
"""Between the order and the first request, so that all processes start together."""


class LoadProcesses:
    """One or more processes that send to the same target, together as one load.

    ::

        with LoadProcesses(target, crops, processes=2) as load:
            trace = load.run(concurrency=32, ramp_s=0.5, measure_s=3)
    """

    def __init__(self, target: Target, crops: Crops | list[Crops], *, processes: int = 1) -> None:
        self._workers = [_Worker(target, crops) for _ in range(processes)]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for worker in self._workers:
                stack.enter_context(worker)
            for worker in self._workers:
                worker.wait_until_ready()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def pids(self) -> list[int]:
        """Process ids."""
        return [worker.pid for worker in self._workers]

    def run(
        self,
        *,
        concurrency: int | None = None,
        requests_per_s: float | None = None,
        ramp_s: float,
        measure_s: float,
        seed: int = 0,
        timeout_s: float = 30.0,
        arrivals: Sequence[tuple[float, int]] | None = None,
    ) -> list[Trace]:
        """Load the server and return each process's trace; see `deepfake_bench.load.generator.Load`.

        Raises:
            DeepfakeError: a process failed.
        """
        start_at, workers = time.perf_counter() + START_SLACK_S, len(self._workers)
        shares = [None] * workers if concurrency is None else share_out(concurrency, workers)
        rate = None if requests_per_s is None else requests_per_s / workers
        busy = [(worker, share) for worker, share in zip(self._workers, shares, strict=True) if share != 0]
        for number, (worker, share) in enumerate(busy):
            part = None if arrivals is None else arrivals[number::workers]
            worker.start(Load(share, rate, start_at, ramp_s, measure_s, seed + number, timeout_s, part))
        return [worker.result() for worker, _ in busy]


def share_out(concurrency: int, processes: int) -> list[int]:
    """Return how many requests each process keeps in flight, as evenly as possible."""
    return [concurrency // processes + (number < concurrency % processes) for number in range(processes)]


class _Worker:
    def __init__(self, target: Target, crops: Crops | list[Crops]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far_end = context.Pipe()
        self._process = context.Process(target=_main, args=(far_end, target, crops), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.is_alive():
            self._pipe.send(None)
        self._process.join()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def wait_until_ready(self) -> None:
        self._receive()

    def start(self, load: Load) -> None:
        self._pipe.send(load)

    def result(self) -> Trace:
        answer = self._receive()
        if isinstance(answer, str):
            raise DeepfakeError(f"a load process failed: {answer}")
        assert isinstance(answer, Trace)
        return answer

    def _receive(self) -> object:
        try:
            return self._pipe.recv()
        except EOFError:
            raise DeepfakeError("a load process died; look at the memory of this machine") from None


def _main(pipe: Connection, target: Target, crops: Crops | list[Crops]) -> None:
    async def serve() -> None:
        async with make_sender(target, crops) as sender:
            pipe.send(None)  # imports and connections took their time; what is timed begins after them
            while (load := await asyncio.to_thread(pipe.recv)) is not None:
                try:
                    answer: Trace | str = await run_load(sender, load)
                except Exception as exc:  # whatever it is, the measuring process must hear of it
                    answer = f"{type(exc).__name__}: {exc}"
                pipe.send(answer)

    asyncio.run(serve())
