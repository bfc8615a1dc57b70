"""Routes for those who run the service: models, usage and health."""

from __future__ import annotations

import asyncio
import shutil
from datetime import date
from typing import Annotated, Final

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import SQLAlchemyError

from deepfake_gateway.api.documents import ModelsDocument, UsageDocument, model_document, usage_json
from deepfake_gateway.api.metrics import WORKER_SILENT_S
from deepfake_gateway.api.parts import KNOWN_QUERY, DeskOf, SettingsOf
from deepfake_gateway.intake.problems import Problem, responses
from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.media import Media, MediaAwayError
from deepfake_gateway.store.records import Store
from deepfake_gateway.store.threads import ANSWER_S, in_media, in_store
from deepfake_gateway.store.usage import today
from deepfake_preprocess.errors import DeepfakeError

USAGE_DAYS: Final = 30
MOST_USAGE_DAYS: Final = 366
LEAST_FREE_BYTES: Final = 2**28

router = APIRouter(tags=["operations"])


@router.get("/v1/models", responses=responses())
async def models(desk: DeskOf) -> ModelsDocument:
    """List the detectors that the server offers."""
    try:
        served = await desk.models()
    except DeepfakeError as exc:
        raise Problem(503, f"the inference server gives no answer: {exc}", {"Retry-After": "5"}) from None
    return ModelsDocument(
        models=[model_document(model, is_default=number == 0) for number, model in enumerate(served)]
    )


@router.get("/v1/usage", responses={200: {"model": UsageDocument}, **responses()}, dependencies=[KNOWN_QUERY])
async def usage(
    desk: DeskOf,
    first: Annotated[date | None, Query(alias="from", description="30 days before `to` by default")] = None,
    last: Annotated[date | None, Query(alias="to", description="included; today by default, in UTC")] = None,
) -> Response:
    """Say what was used by key and day: a tenant's own keys, or all where there is no key or it is an admin's."""
    last = last or today()
    first = first or date.fromordinal(max(1, last.toordinal() - USAGE_DAYS + 1))
    if not 0 <= (last - first).days < MOST_USAGE_DAYS:
        detail = f"`from` is {first} and `to` is {last}; give up to {MOST_USAGE_DAYS} days, the earlier one first"
        raise Problem(422, detail)
    return JSONResponse(usage_json(first, last, await in_store(desk.usage.between, first, last)))


@router.get("/v1/health/live")
async def live() -> dict[str, bool]:
    """Answer as long as the process does."""
    return {"live": True}


@router.get(
    "/v1/health/ready",
    responses={503: {"description": "Something is missing; `checks` says what."}},
)
async def ready(desk: DeskOf, settings: SettingsOf) -> Response:
    """Say whether an upload would be analyzed now: server, database, worker, disk, and where media are kept."""
    asked = await asyncio.gather(_server(desk), _store(desk.store), _worker(desk.store), _media(desk.media))
    checks = {"disk": _disk(settings), **dict(zip(("server", "store", "worker", "media"), asked, strict=True))}
    is_ready = all(problem is None for problem in checks.values())
    body = {"ready": is_ready, "checks": {name: problem or "ok" for name, problem in checks.items()}}
    return JSONResponse(body, 200 if is_ready else 503)


async def _server(desk: Desk) -> str | None:
    try:
        return None if await desk.models() else "the inference server offers no model"
    except DeepfakeError as exc:
        return str(exc)


async def _store(store: Store) -> str | None:
    try:
        await in_store(store.count_by, "status")
    except SQLAlchemyError as exc:
        return f"the database gives no answer ({type(exc).__name__})"
    return None


async def _worker(store: Store) -> str | None:
    try:
        return None if await in_store(store.workers_alive, WORKER_SILENT_S) else "no worker runs"
    except SQLAlchemyError:
        return "the database gives no answer"


def _disk(settings: Settings) -> str | None:
    free = shutil.disk_usage(settings.data_dir).free
    return None if free >= LEAST_FREE_BYTES else f"{free >> 20} MiB are free; remove analyses, or use a larger disk"


async def _media(media: Media) -> str | None:
    try:
        async with asyncio.timeout(ANSWER_S):
            await in_media(media.check)
    except MediaAwayError as exc:
        return str(exc)
    except TimeoutError:
        return f"where media are kept gives no answer within {ANSWER_S:g} s"
    return None
