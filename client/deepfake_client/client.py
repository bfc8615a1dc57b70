"""`DeepfakeClient`, `AsyncDeepfakeClient` for code that is not asynchronous. Adds nothing of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable
from concurrent.futures import CancelledError, Future, wait
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from deepfake_client.analysis.pipeline import OnProgress, Progress
from deepfake_client.async_client import DEFAULT_CONCURRENCY, DEFAULT_MAX_REQUESTS_IN_FLIGHT, AsyncDeepfakeClient
from deepfake_client.explain.findings import ExplainedFace
from deepfake_client.explain.types import Explainer, ExplainOptions
from deepfake_client.options import AnalyzeOptions, WatchOptions
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.verdict import Verdict
from deepfake_client.sources.inputs import Source
from deepfake_client.transport.connection import Connection
from deepfake_client.transport.protocol import ServedModel, Transport
from deepfake_preprocess.faces.detector import FaceDetector

T = TypeVar("T")


class DeepfakeClient:
    """`AsyncDeepfakeClient` for code that is not asynchronous: same arguments, same methods, same results.

    ::

        with DeepfakeClient("localhost:8001") as client:
            verdict = client.analyze("clip.mp4")

    The asynchronous client runs on one event loop in a thread of its own. May be shared between threads.
    """

    def __init__(
        self,
        connection: Connection | Transport | str | None = None,
        *,
        model: str | None = None,
        detector: FaceDetector | None = None,
        detect_threads: int | None = None,
        max_requests_in_flight: int = DEFAULT_MAX_REQUESTS_IN_FLIGHT,
    ) -> None:
        self._client = AsyncDeepfakeClient(
            connection,
            model=model,
            detector=detector,
            detect_threads=detect_threads,
            max_requests_in_flight=max_requests_in_flight,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="deepfake-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """See `AsyncDeepfakeClient.close`. Closing twice is harmless."""
        if self._loop.is_closed():
            return
        self._run(self._shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def model(self) -> ServedModel:
        """See `AsyncDeepfakeClient.model`."""
        return self._run(self._client.model())

    def model_of(self, verdict: Verdict) -> ServedModel:
        """See `AsyncDeepfakeClient.model_of`."""
        return self._client.model_of(verdict)

    def analyze(
        self,
        source: Source,
        *,
        options: AnalyzeOptions = AnalyzeOptions(),
        on_progress: OnProgress | None = None,
    ) -> Verdict:
        """See `AsyncDeepfakeClient.analyze`; `on_progress` is called on the client's thread."""
        return self._run(self._client.analyze(source, options=options, on_progress=on_progress))

    def analyze_many(
        self,
        sources: str | os.PathLike[str] | Iterable[Source],
        *,
        options: AnalyzeOptions = AnalyzeOptions(),
        concurrency: int = DEFAULT_CONCURRENCY,
        ordered: bool = False,
        on_progress: Callable[[str, Progress], None] | None = None,
    ) -> Generator[Outcome, None, None]:
        """See `AsyncDeepfakeClient.analyze_many`; leaving the loop over it cancels what is under way.

        `on_progress` is called on the client's thread.
        """
        return self._each(
            self._client.analyze_many(
                sources, options=options, concurrency=concurrency, ordered=ordered, on_progress=on_progress
            )
        )

    def watch(
        self,
        source: Source,
        *,
        options: WatchOptions = WatchOptions(),
    ) -> Generator[Verdict, None, None]:
        """See `AsyncDeepfakeClient.watch`; leaving the loop over it ends the watch."""
        return self._each(self._client.watch(source, options=options))

    def score(self, faces: NDArray[np.uint8], *, timeout_s: float | None = None) -> NDArray[np.float32]:
        """See `AsyncDeepfakeClient.score`."""
        return self._run(self._client.score(faces, timeout_s=timeout_s))

    def explain(
        self,
        verdict: Verdict,
        source: Source | None = None,
        *,
        top: int = 3,
        at_most: int | None = None,
        explainer: Explainer | None = None,
        options: ExplainOptions | None = None,
    ) -> tuple[ExplainedFace, ...]:
        """See `AsyncDeepfakeClient.explain`."""
        return self._run(
            self._client.explain(verdict, source, top=top, at_most=at_most, explainer=explainer, options=options)
        )

    def _each(self, items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        """Run an asynchronous generator on the client's loop."""

        # Inside coroutines, so that the loop sees the generator's first step and `close` can end it.
        async def step() -> T:
            return await anext(items)

        async def end() -> None:
            await items.aclose()

        try:
            while True:
                try:
                    item = self._run(step())
                except StopAsyncIteration:
                    return
                yield item
        finally:
            if not self._loop.is_closed():
                self._run(end())

    async def _shut_down(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        await self._client.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        result: Future[T] = Future()
        task: asyncio.Task[T] | None = None

        def start() -> None:
            nonlocal task
            task = self._loop.create_task(work)
            task.add_done_callback(pass_on)

        def pass_on(done: asyncio.Task[T]) -> None:
            if done.cancelled():
                result.set_exception(CancelledError())
            elif (error := done.exception()) is not None:
                result.set_exception(error)
            else:
                result.set_result(done.result())

        def cancel() -> None:
            if task is not None:
                task.cancel()
            else:  # interrupted before it was handed over
                work.close()
                result.set_exception(CancelledError())

        try:
            self._loop.call_soon_threadsafe(start)
            return result.result()
        except BaseException:
            # Ctrl-C arrives in the caller's thread: the work must have let go of everything before the error goes on.
            if not result.done():
                self._loop.call_soon_threadsafe(cancel)
                wait([result])
            raise
