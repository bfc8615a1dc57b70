"""Routes of what belongs to an analysis: events, medium and report."""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from deepfake_gateway.api.documents import analysis_json
from deepfake_gateway.api.parts import (
    KNOWN_QUERY,
    SEALED,
    STREAM_HEADERS,
    DeskOf,
    SettingsOf,
    followed,
    last_event,
    made,
    still_served,
)
from deepfake_gateway.api.ranges import ranged
from deepfake_gateway.intake.problems import Problem, responses, without_verdict
from deepfake_gateway.jobs.evidence import makes_pdf
from deepfake_gateway.store.media import UNKNOWN
from deepfake_gateway.store.threads import in_media, in_store

_MEDIA: Final[dict[str, Any]] = {"video/*": {}, "image/*": {}, UNKNOWN: {}}

router = APIRouter(tags=["results"])


@router.get(
    "/v1/analyses/{analysis_id}/events",
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "Events until the analysis is over."},
        **responses(404),
    },
    response_class=StreamingResponse,
)
async def events(
    analysis_id: str,
    request: Request,
    desk: DeskOf,
    settings: SettingsOf,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Follow an analysis: ``status`` and ``progress`` events, and ``end`` with the analysis itself.

    After a broken connection, send the last event's id as ``Last-Event-ID``, as browsers do.
    """
    await in_store(desk.find, analysis_id)
    store = desk.store

    def state() -> tuple[bool, dict[str, Any]]:
        analysis = store.get(analysis_id)
        return (True, {}) if analysis is None else (analysis.status.is_final, analysis_json(analysis, settings))

    stream = followed(
        state,
        lambda after: store.events(analysis_id, after=after),
        last_event(last_event_id),
        news=desk.news.about(analysis_id),
        is_served=still_served(request),
    )
    return StreamingResponse(stream, media_type="text/event-stream", headers=STREAM_HEADERS)


@router.get(
    "/v1/analyses/{analysis_id}/media",
    responses={
        200: {"content": _MEDIA, "description": "The file."},
        206: {"content": _MEDIA, "description": "A part of it."},
        304: {"description": "It is the one that ``If-None-Match`` names."},
        **responses(404, 416),
    },
    response_class=StreamingResponse,
)
async def media(analysis_id: str, request: Request, desk: DeskOf) -> Response:
    """Return the file that was analyzed, or a range of it; as a picture or a video, or else as a download."""
    analysis = await in_store(desk.find, analysis_id)
    size = await in_media(desk.medium_bytes, analysis_id)
    disposition = "attachment" if analysis.media_type == UNKNOWN else "inline"
    headers = {
        "Content-Disposition": f"{disposition}; filename*=UTF-8''{quote(analysis.file_name, safe='')}",
        "Content-Security-Policy": SEALED,
        "Cache-Control": "private, max-age=3600",
        "ETag": f'"{analysis.sha256}"',
    }
    pieces = partial(desk.media.pieces, analysis_id)
    return ranged(request, size, pieces, media_type=analysis.media_type, headers=headers)


@router.get(
    "/v1/analyses/{analysis_id}/report",
    responses={
        200: {
            "content": {"text/html": {}, "application/json": {}, "text/csv": {}, "application/pdf": {}},
            "description": "The report.",
        },
        **responses(404, 409),
    },
    dependencies=[KNOWN_QUERY],
    response_class=Response,
)
async def report(
    analysis_id: str,
    desk: DeskOf,
    settings: SettingsOf,
    format: Annotated[
        Literal["html", "json", "csv", "pdf"], Query(description="``pdf`` where the extra of this name is installed")
    ] = "html",
) -> Response:
    """Return the report: a page that needs nothing else, the same as PDF, the verdict as JSON, its faces as CSV."""
    analysis = await in_store(desk.find, analysis_id)
    if analysis.verdict is None:
        raise without_verdict(analysis)
    stem = quote(Path(analysis.file_name).stem or "report", safe="")
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{stem}.{format}"}
    if format == "json":
        return JSONResponse(analysis.verdict, headers=headers)
    if format == "csv":
        return Response(csv_of(analysis.verdict), media_type="text/csv; charset=utf-8", headers=headers)
    if format == "pdf":
        if not makes_pdf():
            raise Problem(422, "this service makes no PDF, for its extra `pdf` is not installed; ask for html")
        media_type = "application/pdf"
    else:
        media_type, headers = "text/html; charset=utf-8", {"Content-Security-Policy": SEALED}
    kept_until = settings.media_until(analysis.finished_at)
    return Response(
        await made(desk.evidence.report(analysis, format, kept_until)), media_type=media_type, headers=headers
    )


def csv_of(verdict: dict[str, Any]) -> str:
    """Return one line for each face in each frame of a verdict's JSON."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(
        ["frame", "pts_seconds", "track", "fake_probability", "weight", "concerns", "left", "top", "right", "bottom"]
    )
    for frame in verdict["frames"]:
        for face in frame["faces"]:
            writer.writerow(
                [
                    frame["index"],
                    frame["pts_seconds"],
                    face["track"],
                    face["fake_probability"],
                    face["weight"],
                    " ".join(face["concerns"]),
                    *face["box_xyxy"],
                ]
            )
    return out.getvalue()
