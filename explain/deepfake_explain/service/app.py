"""The explain service: one POST that explains a face, health, metrics, and OpenAPI. Loads no checkpoint itself.

It can never starve serving: a bounded number of requests is let in, one face is explained at a time, pictures are
decoded by two threads, and everything has a limit in size and time. What does not fit is refused at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, FastAPI, Form, Response
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from deepfake_client.async_client import AsyncDeepfakeClient
from deepfake_client.explain.types import METHODS, ServedScores
from deepfake_client.explain.wire import EXPLAIN_PATH, Answer
from deepfake_explain._agreement import check_checkpoint
from deepfake_explain.explainer import CheckpointExplainer
from deepfake_explain.service.admission import REFUSALS, Admission, Limits, problem_of
from deepfake_explain.service.intake import ExplainForm, take_face
from deepfake_preprocess.faces.detector import FaceDetector

INTAKE_THREADS: Final = 2
"""Decode and detect side by side; with the limit in pixels this bounds the memory of decoded pictures."""

Connect = Callable[[], AsyncDeepfakeClient]


def build_app(
    explainer: CheckpointExplainer,
    detector: FaceDetector,
    *,
    limits: Limits | None = None,
    connect: Connect | None = None,
) -> FastAPI:
    """Return the service.

    Args:
        explainer: explains crops.
        detector: finds landmarks that a request does not bring.
        limits: what it takes on; the defaults of `Limits` when None.
        connect: makes a client of the server to compare every score with; None compares only scores that a request
            brings.
    """
    limits = limits or Limits()
    intake = ThreadPoolExecutor(INTAKE_THREADS, thread_name_prefix="deepfake-intake")
    # One face at a time: batches win nothing on a CPU (docs/decisions.md). Who gives up waiting leaves the queue.
    worker = ThreadPoolExecutor(1, thread_name_prefix="deepfake-explain")

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        with intake, worker:
            yield

    async def explain(form: Annotated[ExplainForm, Form(media_type="multipart/form-data")]) -> Answer:
        """Explain a face: where in its crop the detector sees the fake."""
        in_thread = asyncio.get_running_loop().run_in_executor
        options, served = form.options, form.served
        if served is not None:
            check_checkpoint(str(explainer.spec.checkpoint_sha256), served)
        face = await in_thread(
            intake, partial(take_face, form, explainer.spec, detector, max_pixels=limits.max_pixels)
        )
        crops, landmarks_xy = face.crop[None], [face.landmarks_xy]
        if connect is not None:
            served = await _ask(connect, crops)
        (explanation,) = await in_thread(
            worker, partial(explainer.explain, crops, options, landmarks_xy=landmarks_xy, served=served)
        )
        return Answer(explanation=explanation, crop_to_frame=face.crop_to_frame)

    async def model() -> dict[str, Any]:
        """Say what is explained, and how it can be."""
        return {
            "spec": explainer.spec.to_dict(),
            "methods": list(METHODS),
            "default_layer": explainer.default_layer(),
            "layers": list(explainer.layer_names()),
        }

    # The pages that show OpenAPI load their scripts from elsewhere.
    app = FastAPI(title="deepfake-serving explain", docs_url=None, redoc_url=None, lifespan=lifespan)
    admission = Admission(limits)
    admitted = APIRouter(route_class=admission.route())
    admitted.add_api_route(EXPLAIN_PATH, explain, methods=["POST"], responses=REFUSALS)
    app.include_router(admitted)
    app.include_router(_operations(admission))
    app.add_api_route("/v1/model", model)
    app.add_exception_handler(HTTPException, lambda _, exc: problem_of(exc))
    return app


def _operations(admission: Admission) -> APIRouter:
    """Return the routes for those who run the service."""
    router = APIRouter()

    @router.get("/health")
    async def health(response: Response) -> dict[str, bool]:
        """Say whether requests are let in: with status 503 when they are not."""
        response.status_code = 200 if admission.open else 503
        return {"live": True, "ready": admission.open}

    @router.get("/health/live")
    async def live() -> dict[str, bool]:
        """Answer as long as the process does."""
        return {"live": True}

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return the metrics for Prometheus."""
        return Response(generate_latest(admission.registry), media_type=CONTENT_TYPE_LATEST)

    return router


async def _ask(connect: Connect, crops: NDArray[np.uint8]) -> ServedScores:
    """Ask the server for its scores; with a client for this once, which finds the version that is served now."""
    async with connect() as client:
        model = await client.model()
        return ServedScores(await client.score(crops), model.spec.checkpoint_sha256, model.precision, model.tensorrt)
