"""Asynchronous inputs: taken only as they are asked for, closed in the end, and never waited for in vain."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing

import numpy as np
import pytest
from fixed_detector import LEFT, FixedDetector
from numpy.typing import NDArray

from deepfake_client import (
    AnalyzeOptions,
    AsyncDeepfakeClient,
    InputError,
    MediaOpenError,
    Sampling,
    ServedModel,
    WatchOptions,
)
from deepfake_client.analysis.pipeline import CROPS_PER_REQUEST, MAX_FRAMES_IN_FLIGHT
from deepfake_client.transport.testing import FakeTransport


def image(brightness: int) -> NDArray[np.uint8]:
    return np.full((60, 80, 3), brightness, np.uint8)


def async_client(transport: FakeTransport | None = None) -> AsyncDeepfakeClient:
    return AsyncDeepfakeClient(transport or FakeTransport(), detector=FixedDetector(LEFT))


class Camera:
    """An endless or finite source of frames that notes what was taken of it; after `stall_at` frames none comes."""

    def __init__(self, count: int | None = None, stall_at: int | None = None) -> None:
        self.taken = 0
        self.closed = False
        self.stalled = asyncio.Event()
        self.tasks: set[asyncio.Task[None] | None] = set()
        self._count, self._stall_at = count, stall_at

    async def frames(self) -> AsyncIterator[NDArray[np.uint8]]:
        try:
            while self._count is None or self.taken < self._count:
                self.tasks.add(asyncio.current_task())
                if self.taken == self._stall_at:
                    self.stalled.set()
                    await asyncio.Event().wait()
                await asyncio.sleep(0)
                self.taken += 1
                yield image(200)
        finally:
            self.closed = True


def test_frames_of_an_async_generator_are_analyzed_like_those_of_a_list() -> None:
    async def timed() -> AsyncIterator[tuple[float, NDArray[np.uint8]]]:
        for number in range(10):
            yield 3 + number / 2, image(200)

    async def main() -> None:
        async with async_client() as client:
            camera = Camera(40)
            verdict = await client.analyze(camera.frames(), options=AnalyzeOptions(sampling=Sampling(8)))
            alike = await client.analyze([image(200)] * 40, options=AnalyzeOptions(sampling=Sampling(8)))
            assert verdict.source == alike.source == "the given frames"
            assert verdict.fake_probability == alike.fake_probability
            assert len(verdict.frames) == 8
            assert len(camera.tasks) == 1, "a timeout or a scope may span several frames"
            verdict = await client.analyze(timed(), options=AnalyzeOptions(sampling=Sampling(None, fps=2)))
            assert [frame.pts_seconds for frame in verdict.frames] == [3 + number / 2 for number in range(10)]

    asyncio.run(main())


def test_frames_are_taken_only_as_fast_as_they_are_scored() -> None:
    class Shut(FakeTransport):
        """Answers only when as many requests wait as may be in flight, so that frames could pile up behind them."""

        def __init__(self) -> None:
            super().__init__()
            self.waiting = 0
            self.full = asyncio.Event()

        async def infer(
            self, model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float | None = None
        ) -> NDArray[np.float32]:
            self.waiting += 1
            if self.waiting == MAX_FRAMES_IN_FLIGHT:
                self.full.set()
            await self.full.wait()
            return await super().infer(model, faces, timeout_s=timeout_s)

    async def main() -> None:
        camera = Camera(300)
        ahead: list[int] = []
        async with AsyncDeepfakeClient(
            Shut(), detector=FixedDetector(LEFT), max_requests_in_flight=MAX_FRAMES_IN_FLIGHT
        ) as client:
            verdict = await client.analyze(
                camera.frames(),
                options=AnalyzeOptions(sampling=Sampling(None, fps=25)),
                on_progress=lambda progress: ahead.append(camera.taken - progress.frames_done),
            )
        assert len(verdict.frames) == camera.taken == 300
        # Those that wait for detection, those that wait for the server, those that wait for others to go there with,
        # one held by the sampling, one just taken.
        most = MAX_FRAMES_IN_FLIGHT + CROPS_PER_REQUEST * (MAX_FRAMES_IN_FLIGHT + 1) + 1
        assert MAX_FRAMES_IN_FLIGHT <= max(ahead) + 1 <= most

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("stall_at", [0, 3])
def test_canceling_does_not_wait_for_a_frame_that_never_comes(stall_at: int) -> None:
    async def main() -> Camera:
        camera = Camera(stall_at=stall_at)
        async with async_client() as client:
            analysis = asyncio.create_task(
                client.analyze(camera.frames(), options=AnalyzeOptions(sampling=Sampling(None, fps=25)))
            )
            await camera.stalled.wait()
            analysis.cancel()
            with pytest.raises(asyncio.CancelledError):
                await analysis
            assert camera.closed
        return camera

    before = set(threading.enumerate())
    asyncio.run(asyncio.wait_for(main(), 30))
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()


def test_a_detector_that_fails_ends_an_analysis_that_waits_for_a_frame() -> None:
    class Broken(FixedDetector):
        def detect(self, images_rgb: object) -> list[list[object]]:  # type: ignore[override]
            raise RuntimeError("no more memory")

    async def main() -> None:
        camera = Camera(stall_at=3)
        async with AsyncDeepfakeClient(FakeTransport(), detector=Broken()) as client:
            with pytest.raises(InputError, match="raised RuntimeError: no more memory"):
                await client.analyze(camera.frames(), options=AnalyzeOptions(sampling=Sampling(None, fps=25)))
        assert camera.closed

    asyncio.run(asyncio.wait_for(main(), 30))


def test_errors_of_the_source_and_of_its_frames_reach_the_caller() -> None:
    async def breaking() -> AsyncIterator[object]:
        yield image(3)
        raise ConnectionError("the camera is gone")

    async def gray() -> AsyncIterator[object]:
        yield np.zeros((4, 4), np.uint8)

    async def nothing() -> AsyncIterator[object]:
        for frame in ():
            yield frame

    async def main() -> None:
        async with async_client() as client:
            with pytest.raises(MediaOpenError, match="raised ConnectionError: the camera is gone"):
                await client.analyze(breaking())  # type: ignore[arg-type]
            with pytest.raises(MediaOpenError, match="frame 0 is not a uint8"):
                await client.analyze(gray())  # type: ignore[arg-type]
            with pytest.raises(MediaOpenError, match="there are no frames"):
                await client.analyze(nothing())  # type: ignore[arg-type]

    asyncio.run(main())


def test_many_from_an_asynchronous_queue_among_them_asynchronous_ones() -> None:
    async def main() -> None:
        queue: asyncio.Queue[object] = asyncio.Queue()
        taken: list[object] = []

        async def uploads() -> AsyncIterator[object]:
            while True:
                taken.append(await queue.get())
                yield taken[-1]

        async with async_client() as client, aclosing(client.analyze_many(uploads(), concurrency=2)) as outcomes:  # type: ignore[arg-type]
            for number in range(30):
                queue.put_nowait(image(number) if number % 2 else Camera(5).frames())
            first = [await anext(outcomes) for _ in range(4)]
            assert all(outcome.verdict is not None for outcome in first)
            assert len(taken) <= 4 + 2 * 8, "read only as far as inputs are started"
            rest = [await anext(outcomes) for _ in range(26)]
            names = [outcome.source for outcome in [*first, *rest]]
            assert sorted(names) == sorted(f"source {number}" for number in range(30))
        # Left while it waits for the next upload: that ends as well.

    asyncio.run(asyncio.wait_for(main(), 60))


def test_an_error_of_the_asynchronous_list_comes_after_what_was_under_way() -> None:
    async def broken() -> AsyncIterator[NDArray[np.uint8]]:
        yield image(10)
        raise RuntimeError("the list of files is gone")

    async def main() -> None:
        async with async_client() as client:
            outcomes = client.analyze_many(broken())
            assert (await anext(outcomes)).verdict is not None
            with pytest.raises(RuntimeError, match="list of files"):
                await anext(outcomes)

    asyncio.run(main())


def test_watching_an_async_generator_and_leaving_it() -> None:
    async def main() -> Camera:
        camera = Camera(stall_at=100)
        async with async_client() as client:
            async with aclosing(
                client.watch(camera.frames(), options=WatchOptions(fps=25, step_s=0.4, min_change=0))
            ) as verdicts:
                steps = [len((await anext(verdicts)).frames) for _ in range(3)]
                assert steps == sorted(steps)
            assert camera.closed
        return camera

    camera = asyncio.run(asyncio.wait_for(main(), 30))
    assert camera.taken <= 100
