"""`DeepfakeClient`, `AsyncDeepfakeClient` for code that is not asynchronous. Adds nothing of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from deepfake_client.analysis.many import DEFAULT_CONCURRENCY
from deepfake_client.analysis.pipeline import OnProgress, Progress
from deepfake_client.async_client import (
    DEFAULT_MAX_REQUESTS_IN_FLIGHT,
    AsyncDeepfakeClient,
    OnVerdict,
)
from deepfake_client.explain.evidence import Evidence
from deepfake_client.explain.findings import ExplainedFace
from deepfake_client.explain.types import Explainer, ExplainOptions
from deepfake_client.options import AnalyzeOptions, WatchOptions
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.verdict import Verdict
from deepfake_client.sources.inputs import Source
from deepfake_client.sources.threads import LoopThread
from deepfake_client.transport.connection import Connection
from deepfake_client.transport.protocol import ServedModel, Transport
from deepfake_preprocess.faces.detector import FaceDetector


class DeepfakeClient:
    """`AsyncDeepfakeClient` for code that is not asynchronous: same arguments, same methods, same results.

    ::

        with DeepfakeClient("localhost:8001") as client:
            verdict = client.analyze("clip.mp4")

    The asynchronous client runs on one event loop in a thread of its own. May be shared between threads, but not
    between processes: a client made before a fork raises ClientUseError in the child.
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
        self._loop = LoopThread("this client")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        self._client.__reduce__()

    def close(self) -> None:
        """See `AsyncDeepfakeClient.close`. Closing twice is harmless."""
        self._loop.stop(self._client.close)

    def model(self) -> ServedModel:
        """See `AsyncDeepfakeClient.model`."""
        return self._loop.wait_for(self._client.model())

    def model_of(self, verdict: Verdict) -> ServedModel:
        """See `AsyncDeepfakeClient.model_of`."""
        return self._client.model_of(verdict)

    def analyze(
        self, source: Source, *, options: AnalyzeOptions = AnalyzeOptions(), on_progress: OnProgress | None = None
    ) -> Verdict:
        """See `AsyncDeepfakeClient.analyze`; `on_progress` is called on the client's thread.

        Calling the client there raises ClientUseError: it would wait for itself.
        """
        return self._loop.wait_for(self._client.analyze(source, options=options, on_progress=on_progress))

    def analyze_many(
        self,
        sources: str | os.PathLike[str] | Iterable[Source],
        *,
        options: AnalyzeOptions = AnalyzeOptions(),
        concurrency: int = DEFAULT_CONCURRENCY,
        ordered: bool = False,
        on_progress: Callable[[str, Progress], None] | None = None,
        on_verdict: OnVerdict | None = None,
    ) -> Generator[Outcome, None, None]:
        """See `AsyncDeepfakeClient.analyze_many`; leaving the loop over it cancels what is under way.

        `on_progress` is called on the client's thread.
        """
        return self._loop.each(
            self._client.analyze_many(
                sources,
                options=options,
                concurrency=concurrency,
                ordered=ordered,
                on_progress=on_progress,
                on_verdict=on_verdict,
            )
        )

    def watch(self, source: Source, *, options: WatchOptions = WatchOptions()) -> Generator[Verdict, None, None]:
        """See `AsyncDeepfakeClient.watch`; leaving the loop over it ends the watch."""
        return self._loop.each(self._client.watch(source, options=options))

    def score(self, faces: NDArray[np.uint8], *, timeout_s: float | None = None) -> NDArray[np.float32]:
        """See `AsyncDeepfakeClient.score`."""
        return self._loop.wait_for(self._client.score(faces, timeout_s=timeout_s))

    def explain(
        self,
        verdict: Verdict,
        source: Source | None = None,
        *,
        top: int = 3,
        at_most: int | None = None,
        evidence: Sequence[Evidence] | None = None,
        explainer: Explainer | None = None,
        options: ExplainOptions = ExplainOptions(),
    ) -> tuple[ExplainedFace, ...]:
        """See `AsyncDeepfakeClient.explain`."""
        return self._loop.wait_for(
            self._client.explain(
                verdict, source, top=top, at_most=at_most, evidence=evidence, explainer=explainer, options=options
            )
        )
