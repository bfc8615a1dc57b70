"""The explain service: one POST that explains a face, health, and metrics. FastAPI; loads no checkpoint itself.

It can never starve serving: a bounded number of requests is let in, one batch is computed at a time, pictures are
decoded by two threads, and everything has a limit in size and time. What does not fit is refused at once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from deepfake_client.async_client import AsyncDeepfakeClient
from deepfake_client.explain.draw import encode_png
from deepfake_client.explain.types import DEFAULT_METHOD, METHODS, ExplainOptions, Explanation, ServedScores
from deepfake_client.explain.wire import NPZ_TYPE, explanation_to_npz
from deepfake_client.transport.connection import Connection
from deepfake_client.transport.retry import NO_RETRY
from deepfake_explain._agreement import check_checkpoint, check_scores
from deepfake_explain.explainer import CheckpointExplainer
from deepfake_explain.service.batcher import Batcher
from deepfake_explain.service.intake import Intake, parse_numbers, read_picture, take_crop, take_frame
from deepfake_explain.service.problems import Problem, RefusedError
from deepfake_preprocess.errors import DeepfakeError, OptionError, ServerError
from deepfake_preprocess.faces.detector import FaceDetector

INTAKE_THREADS = 2
"""Decode and detect side by side; together with the limit in pixels this bounds the memory of decoded pictures."""
RETRY_AFTER_S = 1
FIELDS = (
    "box", "landmarks", "method", "layer", "faithfulness", "sanity", "served_probability", "served_checkpoint_sha256",
    "served_precision", "served_tensorrt",
)  # fmt: skip
FILES = ("crop", "frame")
ANSWERS = ("application/json", "image/png", NPZ_TYPE)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the service takes on.

    Attributes:
        max_requests: requests let in at a time, whether uploading, waiting or computing.
        max_upload_bytes: of one request's body.
        max_pixels: of one picture.
        timeout_s: from the first byte to the answer, in seconds.
        max_batch: most crops in one pass.
    """

    max_requests: int = 32
    max_upload_bytes: int = 10 * 2**20
    max_pixels: int = 2**25
    timeout_s: float = 30.0
    max_batch: int = 8

    def __post_init__(self) -> None:
        for name in ("max_requests", "max_upload_bytes", "max_pixels", "timeout_s", "max_batch"):
            if getattr(self, name) <= 0:
                raise OptionError(f"{name} is {getattr(self, name)}; allowed: a number above 0")


@dataclass(frozen=True, slots=True)
class Agreement:
    """The server whose scores are compared before every answer.

    Attributes:
        url: ``host:port`` of its gRPC endpoint.
        model: its name; may be left out where the server offers exactly one.
    """

    url: str
    model: str | None = None


class Metrics:
    """What Prometheus is told."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "deepfake_explain_requests", "Answers to POST /v1/explain.", ["status"], registry=self.registry
        )
        self.seconds = Histogram(
            "deepfake_explain_seconds", "From request to answer, of those that were let in.", registry=self.registry
        )
        self.in_flight = Gauge(
            "deepfake_explain_requests_in_flight", "Requests that were let in.", registry=self.registry
        )
        self.batch = Histogram(
            "deepfake_explain_batch_size", "Crops per pass.", buckets=(1, 2, 4, 8, 16, 32), registry=self.registry
        )


def build_app(
    explainer: CheckpointExplainer,
    detector: FaceDetector,
    *,
    limits: Limits | None = None,
    agreement: Agreement | None = None,
) -> FastAPI:
    """Return the service.

    Args:
        explainer: explains crops.
        detector: finds faces and landmarks that a request does not bring.
        limits: what it takes on; the defaults of `Limits` when None.
        agreement: the server to compare every score with; only scores that a request brings are, when None.
    """
    service = _Service(explainer, detector, limits or Limits(), agreement)
    app = FastAPI(
        title="deepfake-serving explain", docs_url=None, redoc_url=None, openapi_url=None, lifespan=service.lifespan
    )
    app.add_api_route("/v1/explain", service.explain, methods=["POST"], response_model=None)
    app.add_api_route("/v1/model", service.model, methods=["GET"], response_model=None)
    app.add_api_route("/health", service.health, methods=["GET"], response_model=None)
    app.add_api_route("/health/live", service.live, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", service.metrics_page, methods=["GET"], response_model=None)
    app.add_exception_handler(HTTPException, _http_problem)
    return app


class _Service:
    """State and handlers of one app."""

    def __init__(
        self, explainer: CheckpointExplainer, detector: FaceDetector, limits: Limits, agreement: Agreement | None
    ) -> None:
        self._explainer = explainer
        self._detector = detector
        self._limits = limits
        self._agreement = agreement
        self._metrics = Metrics()
        self._in_flight = 0
        self._batcher: Batcher | None = None
        self._client: AsyncDeepfakeClient | None = None
        self._intake = ThreadPoolExecutor(INTAKE_THREADS, thread_name_prefix="deepfake-intake")

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        async with Batcher(
            self._explain_batch, max_batch=self._limits.max_batch, on_batch=self._metrics.batch.observe
        ) as batcher:
            self._batcher = batcher
            yield
            self._batcher = None
        await self._drop_client()
        self._intake.shutdown()

    async def live(self) -> Response:
        return JSONResponse({"live": True})

    async def health(self) -> Response:
        """Live as soon as it answers; ready while it lets requests in."""
        ready = self._batcher is not None and self._in_flight < self._limits.max_requests
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        return JSONResponse({"live": True, "ready": ready, "requests_in_flight": self._in_flight}, int(status))

    async def metrics_page(self) -> Response:
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def model(self) -> Response:
        """What is explained, and how it can be."""
        return JSONResponse(
            {
                "spec": self._explainer.spec.to_dict(),
                "methods": list(METHODS),
                "default_layer": self._explainer.default_layer(),
                "layers": list(self._explainer.layer_names()),
            }
        )

    async def explain(self, request: Request) -> Response:
        """Let a request in, keep its deadline, and say in one sentence what went wrong."""
        started = time.perf_counter()
        unread = _Unread()
        try:
            response = await self._admitted(request, unread)
        except DeepfakeError as exc:
            response = Problem.of(exc, drain=unread.left)
        if response.status_code != HTTPStatus.SERVICE_UNAVAILABLE:
            self._metrics.seconds.observe(time.perf_counter() - started)
        self._metrics.requests.labels(str(response.status_code)).inc()
        return response

    async def _admitted(self, request: Request, unread: _Unread) -> Response:
        if self._in_flight >= self._limits.max_requests:
            raise RefusedError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"the explain service is busy with {self._in_flight} requests, as many as it takes; try again later",
                {"Retry-After": str(RETRY_AFTER_S)},
            )
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                return await self._answer(request, unread)
        except TimeoutError as exc:
            raise RefusedError(
                HTTPStatus.REQUEST_TIMEOUT if unread.left else HTTPStatus.GATEWAY_TIMEOUT,
                f"there was no explanation within {self._limits.timeout_s:g} s"
                + (", because the upload was not complete by then" if unread.left else "; the service is overloaded")
                + "; try again later, or raise --timeout",
            ) from exc
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)

    async def _answer(self, request: Request, unread: _Unread) -> Response:
        answer_type = _wanted_type(request.headers.get("accept", ""))
        fields, files = await _read_form(request, self._limits.max_upload_bytes)
        unread.left = False
        options, served = _options_of(fields), _served_of(fields)
        self._explainer.check_options(options)
        if served is not None:
            check_checkpoint(str(self._explainer.spec.checkpoint_sha256), served)
        loop = asyncio.get_running_loop()
        intake = await loop.run_in_executor(self._intake, partial(self._take, fields, files))
        if self._batcher is None:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "the explain service is shutting down; try another")
        explanation = await self._batcher.submit(intake.crop, options, intake.landmarks_xy)
        if self._agreement is not None:
            served = await self._served(intake, self._agreement)
            check_checkpoint(str(self._explainer.spec.checkpoint_sha256), served)
        if served is not None:
            explanation = _compared(explanation, served)
        return _respond(explanation, intake, answer_type)

    def _take(self, fields: dict[str, str], files: dict[str, bytes]) -> Intake:
        """Turn the form into a crop; on a worker thread."""
        if len(files) != 1:
            raise OptionError(
                f"the form must hold one picture, as 'crop' or as 'frame'; got {' and '.join(files) or 'none'}"
            )
        ((kind, data),) = files.items()
        points = None
        if "landmarks" in fields:
            points = parse_numbers(
                fields["landmarks"], 10, name="landmarks", allowed="x,y of eyes, nose and mouth corners: ten numbers"
            ).reshape(5, 2)
        box = None
        if "box" in fields:
            box = parse_numbers(fields["box"], 4, name="box", allowed="left,top,right,bottom in pixels of the frame")
            if kind == "crop":
                raise OptionError("a box was given with a 'crop', which is cut out already; send a 'frame' with it")
        image = read_picture(data, max_pixels=self._limits.max_pixels)
        if kind == "crop":
            return take_crop(image, self._explainer.spec, self._detector, points)
        return take_frame(image, self._explainer.spec, self._detector, box, points)

    def _explain_batch(
        self, crops: np.ndarray[Any, np.dtype[np.uint8]], options: ExplainOptions, landmarks_xy: list[Any]
    ) -> list[Explanation]:
        return self._explainer.explain(crops, options, landmarks_xy=landmarks_xy)

    async def _served(self, intake: Intake, agreement: Agreement) -> ServedScores:
        """Ask the server for its score of the crop."""
        if self._client is None:
            # Not tried again: who waits has a deadline, and holds one of the few places.
            connection = Connection(url=agreement.url, retry=NO_RETRY)
            self._client = AsyncDeepfakeClient(connection, model=agreement.model, detector=self._detector)
        try:
            model = await self._client.model()
            probabilities = await self._client.score(intake.crop[None])
        except ServerError:
            # A client remembers the model's version; a new one finds the one that is served now.
            await self._drop_client()
            raise
        return ServedScores(probabilities, model.spec.checkpoint_sha256, model.precision, model.tensorrt)

    async def _drop_client(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()


@dataclass(slots=True)
class _Unread:
    """Whether a part of the upload has not been read yet."""

    left: bool = True


async def _read_form(request: Request, limit: int) -> tuple[dict[str, str], dict[str, bytes]]:
    """Return fields and files of a multipart form; refuses one that is too large as soon as that is known."""
    content_type = request.headers.get("content-type", "")
    if not content_type.lower().startswith("multipart/form-data"):
        raise RefusedError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the request is {content_type or 'without a content type'}; send multipart/form-data with a picture as "
            "'crop' or 'frame'",
        )
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise _too_large(int(length), limit)
    parser = _InMemory(
        request.headers, _counted(request, limit), max_files=len(FILES), max_fields=len(FIELDS), max_part_size=4096
    )
    try:
        form = await parser.parse()
    except MultiPartException as exc:
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"the form is damaged ({exc.message.rstrip('.')})") from exc
    fields: dict[str, str] = {}
    files: dict[str, bytes] = {}
    try:
        for name, value in form.multi_items():
            if isinstance(value, str) and name in FIELDS:
                fields[name] = value
            elif not isinstance(value, str) and name in FILES:
                files[name] = await value.read()
            else:
                allowed = f"the pictures {', '.join(FILES)}, and {', '.join(FIELDS)}"
                raise OptionError(f"the form has a field {name!r}; allowed: {allowed}")
    finally:
        await form.close()
    return fields, files


class _InMemory(MultiPartParser):
    """The form's files stay in memory: they are bounded, and the container's disk is read-only."""

    spool_max_size = 0  # never rolls over


async def _counted(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    seen = 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen > limit:
            raise _too_large(seen, limit)
        yield chunk


def _too_large(size: int, limit: int) -> RefusedError:
    return RefusedError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the upload has {size} bytes or more; at most {limit} are accepted: send the crop, or a smaller picture",
    )


def _wanted_type(accept: str) -> str:
    """Return the first of our answers that the client takes; JSON for one that takes anything."""
    wanted = []
    for item in accept.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = next((part.removeprefix("q=") for part in parameters if part.startswith("q=")), "1")
        wanted.append((float(quality) if quality.replace(".", "", 1).isdigit() else 0.0, name))
    for share, name in sorted(wanted, key=lambda item: -item[0]):
        if name in ("", "*/*", "application/*"):
            return ANSWERS[0]
        if share > 0 and (name in ANSWERS or name == "image/*"):
            return "image/png" if name == "image/*" else name
    raise RefusedError(HTTPStatus.NOT_ACCEPTABLE, f"Accept is {accept!r}; an explanation can be {', '.join(ANSWERS)}")


def _options_of(fields: dict[str, str]) -> ExplainOptions:
    return ExplainOptions(
        method=fields.get("method") or DEFAULT_METHOD,
        layer=fields.get("layer") or None,
        faithfulness=_flag(fields, "faithfulness"),
        sanity=_flag(fields, "sanity"),
    )


def _served_of(fields: dict[str, str]) -> ServedScores | None:
    if "served_probability" not in fields:
        return None
    probability = parse_numbers(
        fields["served_probability"], 1, name="served_probability", allowed="a number from 0 to 1"
    )
    return ServedScores(
        probability,
        fields.get("served_checkpoint_sha256") or None,
        fields.get("served_precision") or "fp32",
        _flag(fields, "served_tensorrt"),
    )


def _flag(fields: dict[str, str], name: str) -> bool:
    value = fields.get(name, "false").lower()
    if value not in ("true", "false"):
        raise OptionError(f"{name} is {value!r}; allowed: true, false")
    return value == "true"


def _compared(explanation: Explanation, served: ServedScores) -> Explanation:
    tolerance = check_scores(np.array([explanation.fake_probability], np.float32), served)
    return dataclasses.replace(explanation, served_probability=float(served.probabilities[0]), tolerance=tolerance)


def _respond(explanation: Explanation, intake: Intake, answer_type: str) -> Response:
    if answer_type == "image/png":
        return Response(encode_png(explanation.overlay), media_type=answer_type)
    placed: dict[str, Any] = {}
    if intake.crop_to_frame is not None and intake.box_xyxy is not None:
        placed = {"crop_to_frame": intake.crop_to_frame, "box_xyxy": intake.box_xyxy}
    if answer_type == NPZ_TYPE:
        return Response(explanation_to_npz(explanation, crop=intake.crop, **placed), media_type=answer_type)
    data = explanation.to_dict() | {name: value.tolist() for name, value in placed.items()}
    return JSONResponse(data)


async def _http_problem(_request: Request, exc: Exception) -> Response:
    """Answer what no route takes."""
    assert isinstance(exc, HTTPException)
    status = HTTPStatus(exc.status_code)
    return Problem(
        status, f"{status.description or status.phrase}; the service has POST /v1/explain, GET /v1/model, "
        "GET /health, GET /health/live and GET /metrics", exc.headers,
    )  # fmt: skip
