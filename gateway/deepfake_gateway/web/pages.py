"""The pages: start, result, history and the API's description. All work without JavaScript."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import jinja2
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from deepfake_gateway.intake.problems import Problem
from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.intake.upload import received
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.records import UNFINISHED, Analysis, Filters, Status
from deepfake_gateway.web import view
from deepfake_preprocess.errors import DeepfakeError

RECENT: Final = 8
PAGE: Final = 25
FIELDS: Final = ("num_frames", "threshold")
"""Options that the start page asks for."""

_templates = jinja2.Environment(
    loader=jinja2.PackageLoader("deepfake_gateway.web"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_templates.filters["clock"] = view.clock
_templates.filters["when"] = lambda seconds: datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
_templates.filters["iso"] = lambda seconds: datetime.fromtimestamp(seconds, UTC).isoformat()
_templates.filters["size"] = lambda count: f"{count / 2**30:g} GB" if count >= 2**30 else f"{count / 2**20:.1f} MB"
_templates.globals["symbols"] = {"FAKE": "\u25b2", "REAL": "\u25cf", "INCONCLUSIVE": "\u25a0"}
_templates.globals["kinds"] = {"FAKE": "fake", "REAL": "real", "INCONCLUSIVE": "inc"}

router = APIRouter(include_in_schema=False)


def add_to(app: FastAPI) -> None:
    """Add the pages and their files to an application."""
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")


def wants_page(request: Request) -> bool:
    """Whether a person's browser asked, and not a program."""
    path = request.url.path
    is_api = path.startswith(("/v1/", "/api/", "/predict/", "/static/"))
    return not is_api and "text/html" in request.headers.get("accept", "")


def problem_page(request: Request, problem: Problem) -> Response:
    """Return a refusal as a page."""
    page = _render("problem.html.j2", request, problem=problem)
    return HTMLResponse(page, problem.status, problem.headers)


def _render(template: str, request: Request, **values: Any) -> str:
    return _templates.get_template(template).render(path=request.url.path, **values)


def _parts(request: Request) -> tuple[Desk, Settings]:
    return request.app.state.desk, request.app.state.settings


@router.get("/")
async def start(request: Request) -> Response:
    """Show where files are sent, what runs, and what was found last."""
    desk, settings = _parts(request)
    running = [
        analysis
        for status in UNFINISHED
        for analysis in await asyncio.to_thread(desk.store.page, Filters(status=status.value), limit=RECENT)
    ]
    recent = await asyncio.to_thread(desk.store.page, Filters(), limit=RECENT)
    recent = [analysis for analysis in recent if analysis.status.is_final]
    page = _render(
        "start.html.j2", request, running=running, recent=recent, max_bytes=settings.max_upload_bytes,
        address=str(request.base_url).rstrip("/"),
    )  # fmt: skip
    return HTMLResponse(page)


@router.post("/")
async def upload(request: Request) -> Response:
    """Take a file from the start page's form, and show its result's page."""
    desk, settings = _parts(request)
    async with received(request, desk.media.new_upload(), max_bytes=settings.max_upload_bytes) as sent:
        fields = {name: value for name, value in sent.fields.items() if name in FIELDS}
        submitted = await desk.submit(sent, fields)
    return RedirectResponse(f"/analyses/{submitted.analysis.id}", status_code=303)


@router.get("/analyses/{analysis_id}")
async def result(analysis_id: str, request: Request) -> Response:
    """Show the result of an analysis, or how far it is."""
    desk, _ = _parts(request)
    analysis = await asyncio.to_thread(desk.find, analysis_id)
    if analysis.verdict is not None:
        return HTMLResponse(await _result_page(request, desk, analysis, analysis.verdict))
    progress = await asyncio.to_thread(desk.store.last_progress, analysis_id)
    ahead = 0
    if analysis.status is Status.QUEUED:
        queued = await asyncio.to_thread(
            desk.store.page, Filters(status="queued", until=analysis.created_at), limit=100
        )
        ahead = len(queued)
    return HTMLResponse(_render("progress.html.j2", request, analysis=analysis, progress=progress, ahead=ahead))


async def _result_page(request: Request, desk: Desk, analysis: Analysis, verdict: dict[str, Any]) -> str:
    return _render(
        "result.html.j2",
        request,
        analysis=analysis,
        verdict=verdict,
        headline=view.headline(verdict),
        lanes=view.lanes_of(verdict),
        span_s=view.span_of(verdict),
        facts=view.facts_of(verdict),
        notes=view.notes_of(verdict),
        moments=view.moments_of(verdict),
        has_media=await asyncio.to_thread(desk.media.path(analysis.id).exists),
        training_data=await _training_data(desk, verdict),
    )


async def _training_data(desk: Desk, verdict: dict[str, Any]) -> str:
    """Return what the model's spec says about its training, while that model is served."""
    try:
        models = await desk.models()
    except DeepfakeError:
        return ""
    wanted = verdict["model"]
    return next(
        (model.spec.training_data or "" for model in models if model.name == wanted["name"]
         and model.spec.checkpoint_sha256 == wanted["checkpoint_sha256"]),
        "",
    )  # fmt: skip


@router.post("/analyses/{analysis_id}/cancel")
async def cancel(analysis_id: str, request: Request) -> Response:
    """End an analysis, and go back to the start."""
    desk, _ = _parts(request)
    await asyncio.to_thread(desk.cancel, analysis_id)
    return RedirectResponse("/", status_code=303)


@router.post("/analyses/{analysis_id}/delete")
async def delete(analysis_id: str, request: Request) -> Response:
    """Remove an analysis, and go to the history."""
    desk, _ = _parts(request)
    await asyncio.to_thread(desk.delete, analysis_id)
    return RedirectResponse("/history", status_code=303)


@router.get("/history")
async def history(
    request: Request,
    name: Annotated[str, Query(max_length=255)] = "",
    label: Annotated[str, Query(max_length=16)] = "",
    after: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """Show all analyses, newest first, with filters."""
    desk, _ = _parts(request)
    filters = Filters(name=name or None, label=label or None)
    found = await asyncio.to_thread(desk.store.page, filters, after=after, limit=PAGE + 1)
    following = found[PAGE - 1].id if len(found) > PAGE else None
    page = _render("history.html.j2", request, items=found[:PAGE], searched=name, label=label, following=following)
    return HTMLResponse(page)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Describe the API, from the same document that programs read."""
    document = request.app.openapi()
    return HTMLResponse(
        _render("docs.html.j2", request, document=document, address=str(request.base_url).rstrip("/"))
    )
