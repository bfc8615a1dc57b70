"""Routes for those who run the service: models and health."""

from __future__ import annotations

import asyncio
import shutil
from typing import Final

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import SQLAlchemyError

from deepfake_gateway.api.documents import ModelsDocument, model_document
from deepfake_gateway.api.metrics import WORKER_SILENT_S
from deepfake_gateway.api.parts import DeskOf, SettingsOf
from deepfake_gateway.intake.problems import Problem, responses
from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.records import Store
from deepfake_preprocess.errors import DeepfakeError

LEAST_FREE_BYTES: Final = 2**28

router = APIRouter(tags=["operations"])


@router.get("/v1/models", responses=responses(503))
async def models(desk: DeskOf) -> ModelsDocument:
    """List the detectors that the server offers."""
    try:
        served = await desk.models()
    except DeepfakeError as exc:
        raise Problem(503, f"the inference server gives no answer: {exc}", {"Retry-After": "5"}) from None
    return ModelsDocument(
        models=[model_document(model, is_default=number == 0) for number, model in enumerate(served)]
    )


@router.get("/v1/health/live")
async def live() -> dict[str, bool]:
    """Answer as long as the process does."""
    return {"live": True}


@router.get(
    "/v1/health/ready",
    responses={503: {"description": "Something is missing; `checks` says what."}},
)
async def ready(desk: DeskOf, settings: SettingsOf) -> Response:
    """Say whether an upload would be analyzed now: server, database, worker and disk."""
    checks = {
        "server": await _server(desk),
        "store": await asyncio.to_thread(_store, desk.store),
        "worker": await asyncio.to_thread(_worker, desk.store),
        "disk": _disk(settings),
    }
    is_ready = all(problem is None for problem in checks.values())
    body = {"ready": is_ready, "checks": {name: problem or "ok" for name, problem in checks.items()}}
    return JSONResponse(body, 200 if is_ready else 503)


async def _server(desk: Desk) -> str | None:
    try:
        return None if await desk.models() else "the inference server offers no model"
    except DeepfakeError as exc:
        return str(exc)


def _store(store: Store) -> str | None:
    try:
        store.count_by("status")
    except SQLAlchemyError as exc:
        return f"the database gives no answer ({type(exc).__name__})"
    return None


def _worker(store: Store) -> str | None:
    try:
        return None if store.workers_alive(WORKER_SILENT_S) else "no worker runs"
    except SQLAlchemyError:
        return "the database gives no answer"


def _disk(settings: Settings) -> str | None:
    free = shutil.disk_usage(settings.data_dir).free
    return None if free >= LEAST_FREE_BYTES else f"{free >> 20} MiB are free; remove analyses, or use a larger disk"
