"""The pages of results, their comparison and history, and of the API. All pages work without JavaScript."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlencode
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fastapi import APIRouter, FastAPI, Form, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.staticfiles import StaticFiles

from deepfake_gateway.intake.problems import Problem, check_span
from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.jobs.evidence import makes_pdf
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.analysis import Analysis, Filters
from deepfake_gateway.store.places import CURSOR, next_cursor, place_of
from deepfake_gateway.store.threads import in_media, in_store
from deepfake_gateway.web import comparing, lanes, live, moments, signing, start, words
from deepfake_gateway.web.language import Language, language_of
from deepfake_gateway.web.progress import progress_of
from deepfake_gateway.web.rendering import render
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import DeepfakeError

PAGE: Final = 25
OTHERS: Final = 8
"""Other results of a file that its page lists."""

router = APIRouter(include_in_schema=False)


def add_to(app: FastAPI) -> None:
    """Add the pages and their files to an application."""
    for part in (start.router, router, live.router, moments.router, signing.router):
        app.include_router(part)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")


def wants_page(request: Request) -> bool:
    """Whether a person's browser asked, and not a program."""
    path = request.url.path
    is_api = path.startswith(("/v1/", "/api/", "/predict/", "/static/"))
    return not is_api and "text/html" in request.headers.get("accept", "")


def problem_page(request: Request, problem: Problem) -> Response:
    """Return a refusal as a page."""
    return render("problem.html.j2", request, problem.status, problem.headers, problem=problem)


def _parts(request: Request) -> tuple[Desk, Language]:
    return request.state.desk, language_of(request)


def _address(request: Request) -> str:
    return str(request.base_url).rstrip("/")


@router.get("/analyses/{analysis_id}")
async def result(analysis_id: str, request: Request) -> Response:
    """Show the result of an analysis, or how far it is."""
    desk, say = _parts(request)
    analysis = await in_store(desk.find, analysis_id)
    has_media = await in_media(desk.media.size, analysis.id) is not None
    if analysis.verdict is not None:
        values = await _result_values(desk, say, request.app.state.settings, analysis, analysis.verdict)
        return render("result.html.j2", request, has_media=has_media, **values)
    return render(
        "progress.html.j2",
        request,
        item=await progress_of(desk, say, analysis),
        has_media=has_media,
        advice=words.advice(say, analysis.error_type, is_image=analysis.is_image),
        is_of_file=analysis.error_type in words.OF_FILE,
    )


async def _result_values(
    desk: Desk, say: Language, settings: Settings, analysis: Analysis, verdict: dict[str, Any]
) -> dict[str, Any]:
    same_file = Filters(sha256=analysis.sha256, status="done")
    found = await in_store(desk.store.page, same_file, limit=OTHERS + 1)
    shown = await moments.moments_values(desk, say, settings, analysis)
    spec = await _spec(desk, verdict)
    span_s = lanes.span_of(verdict)
    return {
        "analysis": analysis,
        "verdict": verdict,
        "makes_pdf": makes_pdf(),
        "headline": words.headline(say, verdict),
        "advice": words.advice(say, verdict["reason"], is_image=analysis.is_image),
        "by_hand": words.threshold_by_hand(say, analysis.options, verdict, None if spec is None else spec.threshold),
        "facts": words.facts_of(say, analysis, verdict),
        "numbers": words.numbers_of(say, analysis, verdict),
        "lanes": lanes.lanes_of(say, verdict),
        "span_s": span_s,
        "ticks": lanes.ticks_of(say, span_s),
        "thumbs": {moment["track"]: moment["crop"] for moment in reversed(shown["moments"])},
        **shown,
        "others": [other for other in found if other.id != analysis.id][:OTHERS],
        "training_data": (spec and spec.training_data) or "",
        "media_until": settings.media_until(analysis.finished_at),
        "result_until": settings.result_until(analysis.finished_at),
    }


async def _spec(desk: Desk, verdict: dict[str, Any]) -> ModelSpec | None:
    """Return the spec of the model that judged, while that model is served."""
    try:
        models = await desk.models()
    except DeepfakeError:
        return None
    wanted = verdict["model"]["name"], verdict["model"]["checkpoint_sha256"]
    return next((model.spec for model in models if (model.name, model.spec.checkpoint_sha256) == wanted), None)


@router.get("/analyses/{analysis_id}/progress")
async def progress(analysis_id: str, request: Request) -> Response:
    """Show how far an analysis is, as a part of its page; the page is loaded anew when it is over."""
    desk, say = _parts(request)
    analysis = await in_store(desk.find, analysis_id)
    if analysis.status.is_final:
        return Response(headers={"HX-Refresh": "true"})
    return render("progress_part.html.j2", request, item=await progress_of(desk, say, analysis))


@router.get("/analyses/{analysis_id}/row")
async def row(analysis_id: str, request: Request, known: bool = False) -> Response:
    """Show an analysis as a row of what runs; one that is over is none, and the page is told so.

    One that was over when its file was sent again is shown all the same: among the recent results it may not be.
    """
    desk, say = _parts(request)
    analysis = await in_store(desk.find, analysis_id)
    if analysis.status.is_final and not known:
        return Response(headers={"HX-Trigger": "analysis-over"})
    return render("row.html.j2", request, item=await progress_of(desk, say, analysis))


@router.post("/analyses/{analysis_id}/again")
async def again(
    analysis_id: str,
    request: Request,
    num_frames: Annotated[str, Form(max_length=16)] = "",
    threshold: Annotated[str, Form(max_length=16)] = "",
) -> Response:
    """Analyze a stored file once more, with other options."""
    desk, _ = _parts(request)
    submitted = await desk.submit_again(analysis_id, {"num_frames": num_frames, "threshold": threshold})
    return RedirectResponse(f"/analyses/{submitted.analysis.id}", status_code=303)


@router.post("/analyses/{analysis_id}/cancel")
async def cancel(analysis_id: str, request: Request) -> Response:
    """End an analysis, and go back to the start."""
    desk, _ = _parts(request)
    await in_store(desk.cancel, analysis_id)
    return RedirectResponse("/", status_code=303)


@router.post("/analyses/{analysis_id}/delete")
async def delete(analysis_id: str, request: Request) -> Response:
    """Remove an analysis, and go to the history."""
    desk, _ = _parts(request)
    await in_media(desk.delete, analysis_id)
    return RedirectResponse("/history", status_code=303)


@router.get("/compare")
async def compare(
    request: Request, one: Annotated[str, Query(max_length=64)], two: Annotated[str, Query(max_length=64)]
) -> Response:
    """Show two results of the same file side by side."""
    desk, say = _parts(request)
    first, second = [await in_store(desk.find, analysis_id) for analysis_id in (one, two)]
    return render(
        "compare.html.j2",
        request,
        sides=comparing.sides_of(say, first, second),
        difference=comparing.difference_of(say, first, second),
        rows=comparing.rows_of(say, first, second),
    )


class Asked(BaseModel):
    """What the history is searched for; empty for all. Days are those of the time zone `zone`, by default UTC."""

    model_config = ConfigDict(extra="ignore")

    name: str = Field("", max_length=255)
    label: str = Field("", max_length=16)
    status: str = Field("", max_length=16)
    model: str = Field("", max_length=255)
    since: str = Field("", pattern=r"^(\d{4}-\d\d-\d\d)?$")
    until: str = Field("", pattern=r"^(\d{4}-\d\d-\d\d)?$")
    zone: str = Field("", max_length=64)
    after: str = Field("", pattern=f"{CURSOR}|^$")

    def filters(self) -> Filters:
        """Return the filters of the list; Problem 422 for days in the wrong order."""
        filters = Filters(
            name=self.name or None,
            label=self.label or None,
            status=self.status or None,
            model=self.model or None,
            since=_seconds(self.since, self.zone),
            until=_seconds(self.until, self.zone, days=1),
        )
        check_span(filters)
        return filters


def _seconds(day: str, zone: str, *, days: int = 0) -> float | None:
    if not day:
        return None
    try:
        tzinfo = ZoneInfo(zone) if zone else UTC
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise Problem(422, f"the time zone {zone!r} is not known here; leave it out for UTC") from None
    try:
        return (datetime.fromisoformat(day).replace(tzinfo=tzinfo) + timedelta(days)).timestamp()
    except (ValueError, OverflowError):
        raise Problem(422, f"{day} is no day; give it as YYYY-MM-DD") from None


@router.get("/history")
async def history(request: Request, asked: Annotated[Asked, Query()]) -> Response:
    """Show all analyses, newest first, with filters."""
    desk, say = _parts(request)
    found = await in_store(desk.store.page, asked.filters(), after=place_of(asked.after), limit=PAGE + 1)
    following = ""
    if cursor := next_cursor(found, PAGE):
        following = urlencode({**asked.model_dump(), "after": cursor})
    items = [await progress_of(desk, say, analysis) for analysis in found[:PAGE]]
    models = sorted({*await in_store(desk.store.model_names), *filter(None, [asked.model])})
    return render("history.html.j2", request, items=items, asked=asked, following=following, models=models)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Describe the API, from the same document that programs read."""
    return render("docs.html.j2", request, document=request.app.openapi(), address=_address(request))
