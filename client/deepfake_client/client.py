"""`AsyncDeepfakeClient`, and `DeepfakeClient`, the same for code that is not asynchronous."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from deepfake_client.aggregation import DEFAULT_STRATEGY, check_threshold, strategy_named
from deepfake_client.pipeline import (
    DEFAULT_MAX_REQUESTS_IN_FLIGHT,
    OnProgress,
    Stages,
    analyze_media,
    infer_in_chunks,
)
from deepfake_client.transport import DEFAULT_TIMEOUT_S, ServedModel, Transport
from deepfake_client.transport_connect import connect
from deepfake_client.transport_retry import Retry
from deepfake_client.transport_tls import Tls
from deepfake_client.verdict import Verdict
from deepfake_preprocess.errors import ModelNotFoundError, OptionError
from deepfake_preprocess.face import FaceDetector
from deepfake_preprocess.video import Media, Sampling, open_media

Source: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | Media
"""A path, an encoded file in memory, a seekable binary file object, or what `open_media` returned."""

T = TypeVar("T")


class AsyncDeepfakeClient:
    """Turns videos and images into verdicts with the help of an inference server.

    ::

        async with AsyncDeepfakeClient("localhost:8001") as client:
            verdict = await client.analyze("clip.mp4")

    Nothing is contacted before the first call.

    Args:
        url: ``host:port`` of the server, or a URL that begins with grpc, grpcs, http or https; Triton's standard port
            on this host when None.
        model: name of the model; may be left out when the server offers exactly one detector.
        protocol: ``grpc``, ``http`` or ``grpc-shm`` (crops in shared memory, same host only); by the URL when None,
            which is gRPC unless it says HTTP.
        tls: secures the connection, also with a client certificate.
        headers: sent with every request, for example ``{"authorization": "Bearer ..."}``.
        timeout_s: deadline of every request, in seconds.
        retry: how long requests are tried again while the server is away or busy; for 30 s when None.
        max_requests_in_flight: bound on concurrent requests.
        detect_threads: threads for face detection; the number of usable cores when None.
        detector: finds faces; `deepfake_preprocess.mtcnn.MtcnnDetector` when None.
        transport: reaches the server instead; the options of the connection are not looked at then.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        model: str | None = None,
        protocol: str | None = None,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: Retry | None = None,
        max_requests_in_flight: int = DEFAULT_MAX_REQUESTS_IN_FLIGHT,
        detect_threads: int | None = None,
        detector: FaceDetector | None = None,
        transport: Transport | None = None,
    ) -> None:
        if max_requests_in_flight < 1:
            raise OptionError(f"max_requests_in_flight must be at least 1, got {max_requests_in_flight}")
        self._transport = (
            connect(url, protocol=protocol, tls=tls, headers=headers, timeout_s=timeout_s, retry=retry)
            if transport is None
            else transport
        )
        self._wanted_model = model
        self._served: ServedModel | None = None
        self._detector = detector
        self._detector_lock = threading.Lock()
        self._max_requests_in_flight = max_requests_in_flight
        threads = detect_threads or len(os.sched_getaffinity(0))
        self._detect_pool = ThreadPoolExecutor(threads, thread_name_prefix="deepfake-detect")
        self._decode_pool = ThreadPoolExecutor(thread_name_prefix="deepfake-decode")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Release connection and threads. The client cannot be used afterwards."""
        await self._transport.close()
        self._detect_pool.shutdown(cancel_futures=True)
        self._decode_pool.shutdown(cancel_futures=True)

    async def model(self) -> ServedModel:
        """Return the contract of the model in use, asking the server once.

        Raises:
            ModelNotFoundError: no such model, or several to choose from and none named.
            ModelContractError: the model was not exported for this contract.
            ServerError: the server cannot be reached or failed.
        """
        if self._served is None:
            name = self._wanted_model
            if name is None:
                names = await self._transport.list_models()
                if len(names) != 1:
                    offered = f"offers {', '.join(names)}; name one with --model" if names else "offers no model"
                    raise ModelNotFoundError(f"the server at {self._transport.url} {offered}")
                name = names[0]
            self._served = await self._transport.describe(name)
        return self._served

    async def analyze(
        self,
        source: Source,
        *,
        sampling: Sampling | None = None,
        aggregation: str = DEFAULT_STRATEGY,
        threshold: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Verdict:
        """Analyze one video or image.

        Args:
            source: path, bytes, binary file object or opened `Media` (which stays open).
            sampling: which frames to take; 32 evenly spaced ones when None.
            aggregation: name of a strategy in `deepfake_client.aggregation.STRATEGIES`.
            threshold: FAKE at or above it, in (0, 1); the model's own when None.
            on_progress: called after each frame, in the client's event loop.

        Returns:
            The verdict; INCONCLUSIVE with a typed reason rather than a guess, also when the server fails midway.

        Raises:
            InputError: the input cannot be opened, or an option is wrong; found out before any server is asked.
            ServerError: the server cannot be reached or does not offer a usable model.
        """
        strategy = strategy_named(aggregation)
        check_threshold(threshold)
        sampling = sampling or Sampling()
        media = source if isinstance(source, Media) else await asyncio.to_thread(_open, source)
        try:
            model = await self.model()
            stages = Stages(
                transport=self._transport,
                model=model,
                detector=await asyncio.to_thread(self._the_detector),
                decode_pool=self._decode_pool,
                detect_pool=self._detect_pool,
                max_requests_in_flight=self._max_requests_in_flight,
            )
            return await analyze_media(
                media, stages, sampling=sampling, strategy=strategy, threshold=threshold, on_progress=on_progress
            )
        finally:
            if media is not source:
                await asyncio.to_thread(media.close)

    async def score(self, faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Score face crops that the caller cut out.

        Args:
            faces: uint8 ``[N, H, W, 3]`` RGB of the model's input size; any N.

        Returns:
            float32 ``[N]`` fake probabilities in [0, 1].

        Raises:
            OptionError: another shape or dtype than the model takes.
            ServerError: the server failed.
        """
        model = await self.model()
        expected = (model.spec.input_height_px, model.spec.input_width_px, 3)
        if faces.ndim != 4 or faces.shape[1:] != expected or faces.dtype != np.uint8:
            height, width, channels = expected
            raise OptionError(
                f"faces must be uint8 [N, {height}, {width}, {channels}], got {faces.dtype} {list(faces.shape)}"
            )
        if len(faces) == 0:
            return np.empty(0, np.float32)
        return await infer_in_chunks(self._transport, model, faces)

    def _the_detector(self) -> FaceDetector:
        with self._detector_lock:
            if self._detector is None:
                # Loaded here and not with this module: it brings ONNX Runtime, which scoring alone never needs.
                from deepfake_preprocess.mtcnn import MtcnnDetector

                self._detector = MtcnnDetector()
            return self._detector


def _open(source: str | os.PathLike[str] | bytes | BinaryIO) -> Media:
    # A path is reported as the caller wrote it, so that results of several directories can be told apart.
    return open_media(source, name=os.fspath(source) if isinstance(source, str | os.PathLike) else None)


class DeepfakeClient:
    """`AsyncDeepfakeClient` for code that is not asynchronous: same arguments, same methods, same results.

    ::

        with DeepfakeClient("localhost:8001") as client:
            verdict = client.analyze("clip.mp4")

    The asynchronous client runs on one event loop in a thread of its own. May be shared between threads.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        model: str | None = None,
        protocol: str | None = None,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: Retry | None = None,
        max_requests_in_flight: int = DEFAULT_MAX_REQUESTS_IN_FLIGHT,
        detect_threads: int | None = None,
        detector: FaceDetector | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._client = AsyncDeepfakeClient(
            url,
            model=model,
            protocol=protocol,
            tls=tls,
            headers=headers,
            timeout_s=timeout_s,
            retry=retry,
            max_requests_in_flight=max_requests_in_flight,
            detect_threads=detect_threads,
            detector=detector,
            transport=transport,
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
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def model(self) -> ServedModel:
        """See `AsyncDeepfakeClient.model`."""
        return self._run(self._client.model())

    def analyze(
        self,
        source: Source,
        *,
        sampling: Sampling | None = None,
        aggregation: str = DEFAULT_STRATEGY,
        threshold: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Verdict:
        """See `AsyncDeepfakeClient.analyze`; `on_progress` is called on the client's thread."""
        return self._run(
            self._client.analyze(
                source, sampling=sampling, aggregation=aggregation, threshold=threshold, on_progress=on_progress
            )
        )

    def score(self, faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `AsyncDeepfakeClient.score`."""
        return self._run(self._client.score(faces))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C arrives in the caller's thread: stop the work before the error goes on.
            future.cancel()
            raise
