"""`Batcher`: lets requests that arrive together share one pass, one batch at a time, on one worker thread.

Belongs to one event loop. Whoever gives up waiting is left out of the batches that have not begun.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deepfake_client.explain.types import ExplainOptions, Explanation

GATHER_S = 0.005
"""How long the first of several requests waits for the others; much shorter than one pass."""

Explain = Callable[[NDArray[np.uint8], ExplainOptions, list[NDArray[np.float32] | None]], list[Explanation]]
"""From crops, options and the crops' landmarks to one explanation per crop; called on the worker thread."""


@dataclass(slots=True, eq=False)
class _Job:
    crop: NDArray[np.uint8]
    options: ExplainOptions
    landmarks_xy: NDArray[np.float32] | None
    answer: asyncio.Future[Explanation] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """Collects single crops into batches with the same options.

    Args:
        explain: explains a batch.
        max_batch: most crops in one.
        on_batch: called with the size of each batch.
    """

    def __init__(self, explain: Explain, *, max_batch: int, on_batch: Callable[[int], None]) -> None:
        self._explain = explain
        self._max_batch = max_batch
        self._on_batch = on_batch
        self._jobs: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="deepfake-explain")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Batcher:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        # A pass that has begun cannot be stopped; it is short.
        await asyncio.to_thread(self._worker.shutdown)

    async def submit(
        self, crop: NDArray[np.uint8], options: ExplainOptions, landmarks_xy: NDArray[np.float32] | None
    ) -> Explanation:
        """Return the explanation of one crop; raises what explaining its batch raised."""
        job = _Job(crop, options, landmarks_xy)
        self._jobs.append(job)
        self._arrived.set()
        # When the caller is cancelled, so is the future, and `_next_batch` passes over the job.
        return await job.answer

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            await asyncio.sleep(GATHER_S)
            batch = self._next_batch()
            if not batch:
                self._arrived.clear()
                continue
            self._on_batch(len(batch))
            crops = np.stack([job.crop for job in batch])
            landmarks = [job.landmarks_xy for job in batch]
            try:
                found = await loop.run_in_executor(self._worker, self._explain, crops, batch[0].options, landmarks)
            # Whatever it was, it belongs to those who wait, and the next batch goes on.
            except Exception as exc:
                _deliver(batch, exc)
            else:
                _deliver(batch, found)

    def _next_batch(self) -> list[_Job]:
        """Take the oldest job that is still waited for, and those like it; the others keep their places."""
        waiting = [job for job in self._jobs if not job.answer.done()]
        batch = [job for job in waiting if job.options == waiting[0].options][: self._max_batch]
        self._jobs = deque(job for job in waiting if job not in batch)
        return batch


def _deliver(batch: list[_Job], result: list[Explanation] | Exception) -> None:
    for index, job in enumerate(batch):
        if job.answer.done():
            continue
        if isinstance(result, Exception):
            job.answer.set_exception(result)
        else:
            job.answer.set_result(result[index])
