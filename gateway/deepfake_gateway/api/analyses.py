"""Routes of analyses: begin, read, list, cancel and delete them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BeforeValidator, WithJsonSchema

from deepfake_gateway.addresses import MAX_URL
from deepfake_gateway.api.documents import AnalysesDocument, AnalysisDocument, address_of, analysis_json, listed_json
from deepfake_gateway.api.parts import KNOWN_QUERY, CursorOf, DeskOf, FetcherOf, SettingsOf, WaitOf
from deepfake_gateway.intake.options import OptionsForm, form_properties
from deepfake_gateway.intake.problems import OF_BODIES, Problem, check_span, repeated, responses
from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.intake.upload import received
from deepfake_gateway.jobs.queue import Priority
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.analysis import Analysis, Filters, Status
from deepfake_gateway.store.places import next_cursor, place_of
from deepfake_gateway.store.threads import in_media, in_store

NOT_OPTIONS: Final = frozenset({"file_name", "priority"})
"""Fields and query parameters of an upload that are not options of the analysis."""

_MOMENT: Final = WithJsonSchema(
    {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "format": "date"}]}
)


def _with_its_day(until: Any) -> Any:
    """Return the end of a day that is given without a time: it is included, as in the history and the usage."""
    if not isinstance(until, str) or not re.fullmatch(r"\d{4}-\d\d-\d\d", until):
        return until
    try:
        return datetime.fromisoformat(until) + timedelta(days=1)
    except OverflowError:
        return datetime.max


router = APIRouter(tags=["analyses"])

_OPTIONS: Final = OptionsForm.model_json_schema()["properties"]
_FIELDS: Final = form_properties()
_FILE: Final = {"type": "string", "contentMediaType": "application/octet-stream", "minLength": 1}
_UPLOAD: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": _FILE,
                        **_FIELDS,
                    },
                    "additionalProperties": False,
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["url"],
                    "properties": {"url": {"type": "string", "maxLength": MAX_URL}, **_OPTIONS},
                    "additionalProperties": False,
                }
            },
            "application/octet-stream": {"schema": _FILE},
        },
    },
    "parameters": [
        {"name": name, "in": "query", "required": False, "schema": schema} for name, schema in _FIELDS.items()
    ],
}


@router.post(
    "/v1/analyses",
    status_code=202,
    responses={
        200: {"model": AnalysisDocument, "description": "It is over: an earlier result, or it ended while waiting."},
        202: {"model": AnalysisDocument, "description": "It is queued; `Location` is where it is."},
        **responses(*OF_BODIES, 404, 409),
    },
    openapi_extra=_UPLOAD,
)
async def begin(
    request: Request,
    desk: DeskOf,
    settings: SettingsOf,
    fetcher: FetcherOf,
    wait_s: WaitOf,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    priority: Annotated[Literal["interactive", "bulk"], Query()] = "interactive",
    file_name: Annotated[str | None, Query(max_length=255, description="of a file that is the body itself")] = None,
) -> Response:
    """Analyze a video or a picture.

    Send multipart with ``file`` and options as fields, or the file as the body and options in the query, or where
    this service is set to fetch files, JSON with a ``url`` and options.
    """
    query = {name: value for name, value in request.query_params.items() if name not in NOT_OPTIONS}

    def options(fields: Mapping[str, str]) -> dict[str, str]:
        if misplaced := sorted(NOT_OPTIONS & fields.keys()):
            raise Problem(422, f"`{misplaced[0]}` is a parameter of the query, not a field; give it in the address")
        if twice := sorted(query.keys() & fields.keys()):
            raise repeated("the request", twice[0])
        return {**query, **fields}

    async with received(
        request,
        desk.media.new_upload(),
        max_bytes=settings.max_upload_bytes,
        fetcher=fetcher,
        check=lambda fields: desk.check_options(options(fields)),
    ) as upload:
        submitted = await desk.submit(
            upload,
            options(upload.fields),
            idempotency_key=idempotency_key,
            priority=Priority[priority.upper()],
        )
    analysis = submitted.analysis
    if wait_s and not analysis.status.is_final:
        analysis = await desk.finished(analysis.id, wait_s)
    status = 200 if analysis.status.is_final else 202
    headers = {"Location": address_of(analysis)}
    if wait_s:
        headers["Preference-Applied"] = f"wait={wait_s:g}"
    if status == 202:
        headers["Retry-After"] = "1"
    return JSONResponse(analysis_json(analysis, settings), status, headers)


@router.get("/v1/analyses", responses={200: {"model": AnalysesDocument}, **responses()}, dependencies=[KNOWN_QUERY])
async def list_analyses(
    desk: DeskOf,
    settings: SettingsOf,
    cursor: CursorOf = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    label: Literal["REAL", "FAKE", "INCONCLUSIVE"] | None = None,
    status: Status | None = None,
    name: Annotated[str | None, Query(max_length=255, description="part of the file's name")] = None,
    model: Annotated[str | None, Query(max_length=255)] = None,
    since: Annotated[
        datetime | None, _MOMENT, Query(description="begun at or after; in UTC unless it says otherwise")
    ] = None,
    until: Annotated[
        datetime | None, BeforeValidator(_with_its_day), _MOMENT, Query(description="begun before, or on this day")
    ] = None,
) -> Response:
    """List analyses, newest first."""
    filters = Filters(
        label=label,
        status=None if status is None else status.value,
        name=name,
        model=model,
        since=_seconds(since),
        until=_seconds(until),
    )
    check_span(filters)
    found = await in_store(desk.store.page, filters, after=place_of(cursor), limit=limit + 1)
    items: list[Any] = [listed_json(analysis, settings) for analysis in found[:limit]]
    return JSONResponse({"items": items, "next_cursor": next_cursor(found, limit)})


def _seconds(moment: datetime | None) -> float | None:
    """Return seconds since 1970 of a moment, which is one of UTC where it names no zone."""
    return None if moment is None else (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@router.get("/v1/analyses/{analysis_id}", responses={200: {"model": AnalysisDocument}, **responses(404)})
async def read(analysis_id: str, desk: DeskOf, settings: SettingsOf) -> Response:
    """Read an analysis: its state, its progress, and at the end its verdict."""
    analysis = await in_store(desk.find, analysis_id)
    return JSONResponse(await _with_progress(desk, settings, analysis))


@router.post("/v1/analyses/{analysis_id}/cancel", responses={200: {"model": AnalysisDocument}, **responses(404, 409)})
async def cancel(analysis_id: str, desk: DeskOf, settings: SettingsOf) -> Response:
    """End an analysis without a result; what decodes its medium is ended with it."""
    return JSONResponse(analysis_json(await in_store(desk.cancel, analysis_id), settings))


@router.delete("/v1/analyses/{analysis_id}", status_code=204, responses=responses(404))
async def delete(analysis_id: str, desk: DeskOf) -> Response:
    """Remove an analysis with its medium, reports and result from disk."""
    await in_media(desk.delete, analysis_id)
    return Response(status_code=204)


async def _with_progress(desk: Desk, settings: Settings, analysis: Analysis) -> dict[str, Any]:
    progress = None
    if analysis.status is Status.RUNNING:
        progress = await in_store(desk.store.last_progress, analysis.id)
    return analysis_json(analysis, settings, progress)
