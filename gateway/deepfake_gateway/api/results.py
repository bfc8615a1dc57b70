"""Routes of what belongs to an analysis: events, medium and report."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from deepfake_gateway.api.documents import analysis_json
from deepfake_gateway.api.parts import SEALED, DeskOf, made
from deepfake_gateway.api.ranges import ranged
from deepfake_gateway.intake.problems import Problem, responses
from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.jobs.evidence import makes_pdf
from deepfake_gateway.store.media import UNKNOWN

FIRST_LOOK_S, LONGEST_LOOK_S = 0.02, 0.25
LATE_PART: Final = 20
"""Events are looked for at intervals of this part of the time so far, so that many followers cost little."""
HEARTBEAT_S: Final = 15.0
"""A comment is sent so often, or proxies close a silent connection."""
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
    analysis_id: str, request: Request, desk: DeskOf, last_event_id: Annotated[str | None, Header()] = None
) -> Response:
    """Follow an analysis: ``status`` and ``progress`` events, and ``end`` with the analysis itself.

    After a broken connection, send the last event's id as ``Last-Event-ID``, as browsers do.
    """
    await asyncio.to_thread(desk.find, analysis_id)
    after = int(last_event_id) if last_event_id and last_event_id.isdecimal() else 0
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_follow(desk, analysis_id, after), media_type="text/event-stream", headers=headers)


async def _follow(desk: Desk, analysis_id: str, after: int) -> AsyncIterator[str]:
    began = heard = time.monotonic()
    while True:
        # Read before the events, so that none is missed that came with the end.
        analysis = await asyncio.to_thread(desk.store.get, analysis_id)
        for event in await asyncio.to_thread(desk.store.events, analysis_id, after=after):
            after, heard = event.id, time.monotonic()
            yield _event(event.kind, event.data, event.id)
        if analysis is None or analysis.status.is_final:
            yield _event("end", {} if analysis is None else analysis_json(analysis), after)
            return
        now = time.monotonic()
        if now - heard >= HEARTBEAT_S:
            heard = now
            yield ": still here\n\n"
        await asyncio.sleep(min(LONGEST_LOOK_S, max(FIRST_LOOK_S, (now - began) / LATE_PART)))


def _event(kind: str, data: dict[str, Any], number: int) -> str:
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"


@router.get(
    "/v1/analyses/{analysis_id}/media",
    responses={
        200: {"content": _MEDIA, "description": "The file."},
        206: {"content": _MEDIA, "description": "A part of it."},
        **responses(404, 416),
    },
    response_class=StreamingResponse,
)
async def media(analysis_id: str, request: Request, desk: DeskOf) -> Response:
    """Return the file that was analyzed, or a range of it; as a picture or a video, or else as a download."""
    analysis = await asyncio.to_thread(desk.find, analysis_id)
    size = await asyncio.to_thread(desk.media.size, analysis_id)
    if size is None:
        raise Problem(404, "the medium of this analysis was removed; send the file again")
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
        **responses(404, 409, 422, 503),
    },
    response_class=Response,
)
async def report(
    analysis_id: str,
    desk: DeskOf,
    format: Annotated[
        Literal["html", "json", "csv", "pdf"], Query(description="``pdf`` where the extra of this name is installed")
    ] = "html",
) -> Response:
    """Return the report: a page that needs nothing else, the same as PDF, the verdict as JSON, its faces as CSV."""
    analysis = await asyncio.to_thread(desk.find, analysis_id)
    if analysis.verdict is None:
        raise Problem(
            409, f"the analysis is {analysis.status.value} and has no verdict to report; ask again once it is done"
        )
    stem = quote(Path(analysis.file_name).stem or "report", safe="")
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{stem}.{format}"}
    if format == "json":
        return JSONResponse(analysis.verdict, headers=headers)
    if format == "csv":
        return Response(csv_of(analysis.verdict), media_type="text/csv; charset=utf-8", headers=headers)
    if format == "pdf":
        if not makes_pdf():
            raise Problem(422, "this service makes no PDF, for its extra `pdf` is not installed; ask for html")
        return Response(
            await made(desk.evidence.report(analysis, "pdf")), media_type="application/pdf", headers=headers
        )
    page = await made(desk.evidence.report(analysis, "html"))
    headers = {"Content-Security-Policy": SEALED}
    return Response(page, media_type="text/html; charset=utf-8", headers=headers)


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
