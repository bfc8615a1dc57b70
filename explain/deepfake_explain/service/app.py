"""The explain service: one POST that explains a face, health, metrics, and OpenAPI. Loads no checkpoint itself.

It can never starve serving: one face is explained at a time, pictures are decoded by two threads, and `Admission`
refuses at once what does not fit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, FastAPI, Form, Response
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from deepfake_client.async_client import AsyncDeepfakeClient
from deepfake_client.explain.types import METHODS, ExplainOptions, ServedScores
from deepfake_client.explain.wire import EXPLAIN_PATH, ExplainAnswer
from deepfake_explain._agreement import check_checkpoint
from deepfake_explain.explainer import CheckpointExplainer
from deepfake_explain.service.admission import REFUSALS, Admission, RequestLimits, problem_of
from deepfake_explain.service.intake import ExplainForm, take_face
from deepfake_preprocess.faces.detector import FaceDetector


def build_app(
    explainer: CheckpointExplainer,
    detector: FaceDetector,
    *,
    limits: RequestLimits = RequestLimits(),
    connect: Callable[[], AsyncDeepfakeClient] | None = None,
) -> FastAPI:
    """Return the service; `connect` makes a client of the server to compare every score with.

    Without one only scores that a request brings are compared.
    """
    # With the limit in pixels this bounds the memory of decoded pictures.
    intake = ThreadPoolExecutor(2, thread_name_prefix="deepfake-intake")
    # One face at a time: batches win nothing on a CPU (docs/decisions.md). Who gives up waiting leaves the queue.
    worker = ThreadPoolExecutor(1, thread_name_prefix="deepfake-explain")

    async def explain(form: Annotated[ExplainForm, Form(media_type="multipart/form-data")]) -> ExplainAnswer:
        """Explain a face: where in its crop the detector sees the fake."""
        in_thread = asyncio.get_running_loop().run_in_executor
        options, served = ExplainOptions(form.method, form.layer, form.faithfulness, form.sanity), form.served
        if served is not None:
            check_checkpoint(str(explainer.spec.checkpoint_sha256), served)
        crop, landmarks_xy, crop_to_frame = await in_thread(
            intake, take_face, form, explainer.spec, detector, limits.max_pixels
        )
        if connect is not None:
            served = await _ask(connect(), crop[None])
        task = partial(explainer.explain, crop[None], options, landmarks_xy=[landmarks_xy], served=served)
        (explanation,) = await in_thread(worker, task)
        return ExplainAnswer(explanation=explanation, crop_to_frame=crop_to_frame)

    # The pages that show OpenAPI load their scripts from elsewhere.
    app = FastAPI(title="deepfake-serving explain", docs_url=None, redoc_url=None)
    admission = Admission(limits)
    admitted = APIRouter(route_class=admission.route())
    admitted.add_api_route(EXPLAIN_PATH, explain, methods=["POST"], responses=REFUSALS)
    app.include_router(admitted)
    app.add_exception_handler(HTTPException, lambda _, exc: problem_of(exc))
    _add_operations(app, admission)

    @app.get("/v1/model")
    async def model() -> dict[str, Any]:
        """Say what is explained, and how it can be."""
        return {
            "spec": explainer.spec.to_dict(),
            "methods": list(METHODS),
            "default_layer": explainer.default_layer(),
            "layers": list(explainer.layer_names()),
        }

    return app


def _add_operations(app: FastAPI, admission: Admission) -> None:
    """Add the routes for those who run the service."""

    @app.get("/health")
    async def health(response: Response) -> dict[str, bool]:
        """Say whether requests are let in: with status 503 when they are not."""
        response.status_code = 200 if admission.open else 503
        return {"live": True, "ready": admission.open}

    @app.get("/health/live")
    async def live() -> dict[str, bool]:
        """Answer as long as the process does."""
        return {"live": True}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return the metrics for Prometheus."""
        return Response(generate_latest(admission.registry), media_type=CONTENT_TYPE_LATEST)


async def _ask(client: AsyncDeepfakeClient, crops: NDArray[np.uint8]) -> ServedScores:
    """Ask the server for its scores, with a new client, which finds the version that is served now."""
    async with client:
        model = await client.model()
        return ServedScores(await client.score(crops), model.spec.checkpoint_sha256, model.precision, model.tensorrt)
