"""`Pool`: processes that analyze inputs, and what happens when one of them dies of an input.

Several inputs share a process, so that ordinary clips cost no more than in one program. When a process dies, or
memory runs out, each of its inputs is tried once more in a process of its own: only the culprit fails again,
and gets a typed error.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from types import TracebackType
from typing import Self

from deepfake_client.result.outcome import Outcome
from deepfake_preprocess.errors import MediaCrashError, MediaLimitError, MediaOpenError
from deepfake_scan.work.clock import in_time
from deepfake_scan.work.process import Process, ProcessDiedError
from deepfake_scan.work.task import ProcessAnswer, Setup


class Pool:
    """Analyzes inputs in up to `size` processes, each started when it is needed; an asynchronous context manager.

    Attributes:
        slots: inputs under way at once.
        deaths: processes that died of an input so far.
    """

    def __init__(self, setup: Setup, *, size: int) -> None:
        self.slots = size * setup.concurrency
        self.deaths = 0
        self._setup = setup
        self._free = asyncio.Semaphore(self.slots)
        self._processes: list[Process | None] = [None] * size
        self._busy = [0] * size
        self._starting = [asyncio.Lock() for _ in range(size)]
        self._alone = asyncio.Semaphore(1)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(process.close() for process in self._processes if process is not None))

    async def analyze(self, address: str) -> ProcessAnswer:
        """Analyze an input; what it does to its process is part of the answer."""
        async with self._free:
            place = min(range(len(self._busy)), key=self._busy.__getitem__)
            self._busy[place] += 1
            try:
                answer = await self._together(place, address)
            finally:
                self._busy[place] -= 1
            return await self._by_itself(address) if answer is None else answer

    async def _together(self, place: int, address: str) -> ProcessAnswer | None:
        """Analyze an input in a process that others share; None where that went wrong."""
        process = await self._alive(place)
        try:
            answer = await in_time(process.analyze(address), process.core_time(), self._setup.limits.seconds)
        except TimeoutError:
            await process.close()
            return None
        except ProcessDiedError:
            return None
        return None if answer.starved else answer

    async def _alive(self, place: int) -> Process:
        async with self._starting[place]:
            process = self._processes[place]
            if process is not None and not process.is_alive:
                self.deaths += 1
                await process.close()
                process = None
            if process is None:
                process = self._processes[place] = Process(self._setup)
                await process.start()
            return process

    async def _by_itself(self, address: str) -> ProcessAnswer:
        limits = self._setup.limits
        async with self._alone:
            process = Process(replace(self._setup, concurrency=1))
            try:
                await process.start()
                return await in_time(process.analyze(address), process.core_time(), limits.seconds)
            except TimeoutError:
                error: MediaOpenError = MediaLimitError(
                    f"{address} took longer than {limits.seconds:g} s, twice; cut it, or raise `seconds`"
                )
            except ProcessDiedError as exc:
                error = MediaCrashError(
                    f"the process that opened {address} ended {exc}, twice: the file is damaged or made to do "
                    f"harm, or needs more than {limits.memory_bytes >> 20} MiB; convert it again from its source"
                )
            finally:
                await process.close()
        outcome = Outcome(address, error=error)
        return ProcessAnswer.of(outcome, json.dumps(outcome.to_dict()))
