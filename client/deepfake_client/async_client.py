"""`AsyncDeepfakeClient`: from sources to verdicts, explanations and scores. All that a client does is here."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, NoReturn, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepfake_client.analysis.live import watch_frames
from deepfake_client.analysis.many import DEFAULT_CONCURRENCY, each_outcome
from deepfake_client.analysis.pipeline import (
    BULK_CROPS_PER_REQUEST,
    CROPS_PER_REQUEST,
    OnProgress,
    Progress,
    Stages,
    analyze_media,
    infer_in_chunks,
)
from deepfake_client.explain.evidence import Evidence, gather
from deepfake_client.explain.findings import ExplainedFace, explain_faces, open_explainer
from deepfake_client.explain.types import Explainer, ExplainOptions
from deepfake_client.options import AnalyzeOptions, WatchOptions
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.verdict import ModelIdentity, Verdict
from deepfake_client.sources.concurrency import each_over, is_async
from deepfake_client.sources.inputs import (
    AsyncSource,
    Source,
    check_path,
    input_errors,
    name_of,
    open_source,
    opened,
)
from deepfake_client.sources.threads import ForkGuard, in_thread
from deepfake_client.transport.connect import connect
from deepfake_client.transport.connection import Connection, check_timeout
from deepfake_client.transport.protocol import ServedModel, Transport
from deepfake_preprocess.errors import (
    ClientUseError,
    ModelContractError,
    ModelNotFoundError,
    ModelReplacedError,
    OptionError,
)
from deepfake_preprocess.faces.detector import FaceDetector
from deepfake_preprocess.media.live import live_media, open_live
from deepfake_preprocess.media.opening import Media
from deepfake_preprocess.support.machine import usable_cores

DEFAULT_MAX_REQUESTS_IN_FLIGHT = 32
"""Enough to let the server form full batches on every instance, and far below the bound of its queue."""

OnVerdict: TypeAlias = Callable[[Verdict, Media], None]
"""Takes a verdict and its input, which is open until it returns."""


class AsyncDeepfakeClient:
    """Turns videos and images into verdicts with the help of an inference server.

    ::

        async with AsyncDeepfakeClient("localhost:8001") as client:
            verdict = await client.analyze("clip.mp4")

    Nothing is contacted before the first call. A client belongs to the process that made it: after a fork, the child
    makes its own.

    Args:
        connection: which server, and how: a `Connection`, a URL such as ``host:port``, or a transport of the
            caller's; Triton's standard port on this host when None.
        model: name of the model; may be left out when the server offers exactly one detector.
        detector: finds faces; `deepfake_preprocess.faces.mtcnn.MtcnnDetector` when None.
        detect_threads: threads for face detection; the number of usable cores when None.
        max_requests_in_flight: bound on the concurrent requests of one analysis.

    Raises:
        OptionError: the URL, a certificate file or a number cannot be used.
        MissingExtraError: HTTP needs the extra ``http``.
        ClientUseError: by every method: the client was closed, or was made before this process was forked.
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
        if max_requests_in_flight < 1:
            raise OptionError(f"`max_requests_in_flight` must be at least 1, got {max_requests_in_flight}")
        if detect_threads is not None and detect_threads < 1:
            raise OptionError(f"`detect_threads` must be at least 1, got {detect_threads}")
        if connection is None or isinstance(connection, Connection | str):
            self._transport = connect(connection)
        else:
            self._transport = connection
        bulk = isinstance(connection, Connection) and connection.bulk
        self._crops_per_request = BULK_CROPS_PER_REQUEST if bulk else CROPS_PER_REQUEST
        self._wanted_model = model
        self._served: ServedModel | None = None
        self._used: dict[ModelIdentity, ServedModel] = {}
        self._detector = detector
        self._max_requests_in_flight = max_requests_in_flight
        self._detector_lock = threading.Lock()
        threads = detect_threads or usable_cores()
        self._detect_pool = ThreadPoolExecutor(threads, thread_name_prefix="deepfake-detect")
        self._fork = ForkGuard("this client")
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __reduce__(self) -> NoReturn:
        raise ClientUseError(
            "a client holds a connection and threads, and can be neither pickled nor copied; make one in each process"
        )

    async def close(self) -> None:
        """Release connection and threads. The client cannot be used afterwards. Closing twice is harmless.

        In a forked child there is nothing to release.
        """
        if self._is_closed or self._fork.is_forked:
            return
        self._is_closed = True
        await self._transport.close()
        self._detect_pool.shutdown(cancel_futures=True)

    def _check_usable(self) -> None:
        self._fork.check()
        if self._is_closed:
            raise ClientUseError("this client was closed; make a new one")

    async def model(self) -> ServedModel:
        """Return the contract of the model in use; the server is asked once, and again after it replaced it.

        Raises:
            ModelNotFoundError: no such model, or several to choose from and none named.
            ModelContractError: the model was not exported for this contract.
            ServerError: the server cannot be reached or failed.
        """
        self._check_usable()
        if self._served is None:
            name = self._wanted_model
            if name is None:
                names = await self._transport.list_models()
                if len(names) != 1:
                    offered = f"offers {', '.join(names)}; name one as `model`" if names else "offers no model"
                    raise ModelNotFoundError(f"the server at {self._transport.url} {offered}")
                name = names[0]
            self._served = await self._transport.describe(name)
            self._used[self._served.identity] = self._served
        return self._served

    def model_of(self, verdict: Verdict) -> ServedModel:
        """Return the contract of the model that gave a verdict of this client; another one may be served by now.

        Raises:
            ModelNotFoundError: this client never used that model.
        """
        try:
            return self._used[verdict.model]
        except KeyError:
            model = verdict.model
            raise ModelNotFoundError(
                f"the verdict on {verdict.source} is of {model.name} version {model.version}, which this client did "
                "not use; ask the client that made the verdict"
            ) from None

    async def analyze(
        self,
        source: AsyncSource,
        *,
        options: AnalyzeOptions = AnalyzeOptions(),
        on_progress: OnProgress | None = None,
    ) -> Verdict:
        """Analyze one video or image.

        Args:
            source: path, address, bytes, binary file object, opened `Media` (which stays open), RGB array, or an
                iterable of RGB frames, which may be asynchronous; see `deepfake_client.sources.inputs.Source`.
            options: which frames are looked at, and how the verdict is made of them.
            on_progress: called after each frame, in the client's event loop.

        Returns:
            The verdict; INCONCLUSIVE with a typed reason rather than a guess, also when the server fails midway.

        Raises:
            InputError: the input cannot be opened; found out before any server is asked.
            ServerError: the server cannot be reached or does not offer a usable model.
        """
        return await self._analyze(source, None, options, on_progress)

    async def _analyze(
        self,
        source: AsyncSource,
        name: str | None,
        options: AnalyzeOptions,
        on_progress: OnProgress | None,
        on_verdict: OnVerdict | None = None,
    ) -> Verdict:
        self._check_usable()

        async def once() -> Verdict:
            async with opened(source, name=name) as (media, release):
                stages = await self._stages(options.timeout_s)
                verdict = await analyze_media(media, stages, options, on_progress=on_progress, release=release)
                if on_verdict is not None:
                    await in_thread(on_verdict, verdict, media)
                return verdict

        try:
            return await once()
        except ModelReplacedError:
            # What can be opened again gets its whole verdict from the model that is served now.
            if not isinstance(source, str | os.PathLike | bytes | np.ndarray):
                raise
        return await once()

    def analyze_many(
        self,
        sources: str | os.PathLike[str] | Iterable[AsyncSource] | AsyncIterable[AsyncSource],
        *,
        options: AnalyzeOptions = AnalyzeOptions(),
        concurrency: int = DEFAULT_CONCURRENCY,
        ordered: bool = False,
        on_progress: Callable[[str, Progress], None] | None = None,
        on_verdict: OnVerdict | None = None,
    ) -> AsyncGenerator[Outcome, None]:
        """Analyze many inputs, some at once, and yield what became of each as it is finished.

        An input that cannot be opened, or that the server fails, is yielded as its error, and the others go on.
        `sources` is read in a thread and only as far as inputs are started. Closing the generator
        (`contextlib.aclosing`) or canceling cancels what is under way.

        Args:
            sources: a directory, a glob pattern, or an iterable of inputs, which may be asynchronous: whatever
                `analyze` takes, directories and patterns.
            options: how each of them is analyzed.
            concurrency: inputs under way at once, from 1.
            ordered: yield in the order of `sources`; up to 8 times `concurrency` verdicts wait for their turn.
            on_progress: called with the input's name and its progress after each frame, in the event loop.
            on_verdict: called in a thread with each verdict and its input, which is still open: frames that are to be
                shown can be decoded again.

        Yields:
            One `Outcome` for each input. Inputs without a name of their own are called ``source`` and their position.

        Raises:
            OptionError: `concurrency` is below 1; raised by this call, before anything is opened.
        """
        self._check_usable()

        def analyze(source: AsyncSource, name: str, report: OnProgress | None) -> Coroutine[Any, Any, Verdict]:
            return self._analyze(source, name, options, report, on_verdict)

        return each_outcome(analyze, sources, concurrency=concurrency, ordered=ordered, on_progress=on_progress)

    def watch(self, source: AsyncSource, *, options: WatchOptions = WatchOptions()) -> AsyncGenerator[Verdict, None]:
        """Watch a source that is still going on, and yield the verdict on its last seconds whenever it changes.

        Each verdict is on one window: its frames and tracks are those of the last `window_s`, its track ids last from
        window to window, and `frames_dropped` counts from the start. One is made every `step_s` of the source's time,
        and yielded when the label, the reason or the deciding face differs from those of the one yielded before, or
        the score has moved by `min_change`; and once more at the end. While the server fails, verdicts of a source
        that cannot wait are INCONCLUSIVE with the reason, and go on when it is back; one that can wait ends.

        Args:
            source: a file, which is read on as it grows (MPEG-TS, Matroska, fragmented MP4); an address (``http``,
                ``https``, ``rtsp``; HLS as well); a camera (``/dev/video0``); or whatever else `analyze` takes.
            options: how it is watched.

        Yields:
            Verdicts on the last window, whenever they are asked for and there is news.

        Raises:
            MediaNotFoundError: there is no such file or camera; raised by this call.
            InputError: the source cannot be opened, or broke off for good; after the last verdict.
            ServerError: the server cannot be reached at the start.
        """
        self._check_usable()
        stop = threading.Event()
        if isinstance(source, str | os.PathLike):
            check_path(source)
            live = open_live(source, fps=options.fps, stop=stop, options=options)
            return watch_frames(live, stop, self._stages, options)
        name = name_of(source) or "the given frames"

        def each(given: AsyncSource) -> AsyncGenerator[Verdict, None]:
            live = live_media(
                lambda: nullcontext(given) if isinstance(given, Media) else open_source(given, name=name),
                name=name,
                fps=options.fps,
                stop=stop,
            )
            return watch_frames(live, stop, self._stages, options)

        return each_over(source, each) if is_async(source) else each(source)

    async def _stages(self, timeout_s: float | None = None) -> Stages:
        model = await self.model()
        return Stages(
            infer=lambda faces: self._infer(model, faces, timeout_s),
            model=model,
            detector=await asyncio.to_thread(self._the_detector),
            detect_pool=self._detect_pool,
            max_requests_in_flight=self._max_requests_in_flight,
            crops_per_request=self._crops_per_request,
        )

    async def _infer(
        self, model: ServedModel, faces: NDArray[np.uint8], timeout_s: float | None
    ) -> NDArray[np.float32]:
        try:
            return await infer_in_chunks(self._transport, model, faces, timeout_s=timeout_s)
        except (ModelContractError, ModelNotFoundError):
            # The server has another model now: this call cannot go on with it, the next one asks again.
            if self._served is model:
                self._served = None
            raise

    async def score(self, faces: NDArray[np.uint8], *, timeout_s: float | None = None) -> NDArray[np.float32]:
        """Score face crops that the caller cut out.

        Args:
            faces: uint8 ``[N, H, W, 3]`` RGB of the model's input size; any N.
            timeout_s: deadline of each request, in seconds; the connection's own when None.

        Returns:
            float32 ``[N]`` fake probabilities in [0, 1].

        Raises:
            OptionError: another shape or dtype than the model takes.
            ModelReplacedError: the server has a model now that takes other crops.
            ServerError: the server failed.
        """
        check_timeout(timeout_s)
        model = await self.model()
        expected = (model.spec.input_height_px, model.spec.input_width_px, 3)
        if faces.ndim != 4 or faces.shape[1:] != expected or faces.dtype != np.uint8:
            height, width, channels = expected
            raise OptionError(
                f"faces must be uint8 [N, {height}, {width}, {channels}], got {faces.dtype} {list(faces.shape)}"
            )
        if len(faces) == 0:
            return np.empty(0, np.float32)
        try:
            return await self._infer(model, faces, timeout_s)
        except ModelReplacedError:
            now = await self.model()
            if (now.spec.input_size_wh, now.spec.crop) != (model.spec.input_size_wh, model.spec.crop):
                raise  # it wants other crops of the same faces
        return await self._infer(now, faces, timeout_s)

    async def explain(
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
        """Show where the model saw the fake in the most suspicious faces of a verdict.

        Args:
            verdict: what `analyze` returned.
            source: the input again; the path that the verdict names when None.
            top: at most that many faces of each track.
            at_most: at most that many faces in all, for which the tracks take turns; None for no such bound.
            evidence: faces that were cut out while the input was open; neither it nor the bounds are asked for then.
            explainer: see `open_explainer`; the service at its default address when None.
            options: method, layer and extra checks.

        Raises:
            InputError: the input cannot be opened, an option is wrong, or no face was scored.
            ExplainDisagreementError: the heatmap would not explain the served score.
            ServerError: server or service cannot be reached or failed.
        """
        if top < 1:
            raise OptionError(f"`top` is {top}; allowed: a whole number from 1")
        if evidence is None:
            async with opened(verdict.source if source is None else source) as (media, _):
                spec = (await self.model()).spec
                with input_errors(media.name):
                    evidence = await in_thread(gather, media, verdict, spec, per_track=top, at_most=at_most)
        explainer = explainer or open_explainer()
        return await explain_faces(
            verdict, evidence, get_model=self.model, score=self.score, explainer=explainer, options=options
        )

    def _the_detector(self) -> FaceDetector:
        with self._detector_lock:
            if self._detector is None:
                # Loaded here and not with this module: it brings ONNX Runtime, which scoring alone never needs.
                from deepfake_preprocess.faces.mtcnn import MtcnnDetector

                self._detector = MtcnnDetector()
            return self._detector
