"""Routes of live sources: begin to watch one, follow its verdict, end it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from deepfake_client.result.verdict import Interval, Verdict
from deepfake_gateway.api.documents import Document, ErrorDocument, error_json, time_text
from deepfake_gateway.api.parts import (
    KNOWN_QUERY,
    STREAM_HEADERS,
    CursorOf,
    DeskOf,
    JsonRoute,
    followed,
    last_event,
    looks,
    still_served,
)
from deepfake_gateway.intake.problems import OF_BODIES, responses
from deepfake_gateway.intake.watching import WatchForm
from deepfake_gateway.jobs.watching import rolling_of
from deepfake_gateway.store.analysis import Status
from deepfake_gateway.store.places import next_cursor, place_of
from deepfake_gateway.store.threads import in_store
from deepfake_gateway.store.watches import Watch

LOOK_S: Final = 0.25
"""How often who follows a watch looks for its next verdict, which comes once a second."""

router = APIRouter(tags=["live sources"], route_class=JsonRoute)


class WatchedFaceDocument(Document):
    """A face in the last seconds of a live source."""

    track: int
    """Number of the face, from 0, the same in all verdicts."""
    label: str
    fake_probability: float
    interval: Interval
    num_frames: int
    first_pts_seconds: float
    last_pts_seconds: float
    counted: bool
    background: bool
    box_xyxy: tuple[float, float, float, float] | None = None
    """Where it was seen last, in pixels of a frame of `size_wh`."""
    size_wh: tuple[int, int] | None = None


class RollingDocument(Document):
    """What an event ``verdict`` says of the last seconds: the verdict without its frames."""

    at_s: float
    """Time of the latest frame, from the start of the source."""
    label: str
    fake_probability: float | None
    interval: Interval | None
    reason: str | None
    detail: str
    threshold: float
    deciding_track: int | None
    frames_dropped: int
    """Since the start, because the server was slower than the source."""
    faces: list[WatchedFaceDocument]


class ListedWatch(Document):
    """One live source in a list."""

    id: str
    status: Status
    created_at: datetime
    started_at: datetime | None
    ends_at: datetime | None
    """When it is ended, if the source has not done so before."""
    finished_at: datetime | None
    source: str
    """Its address, without a password."""
    options: dict[str, Any]
    restarts: int
    """How often it was begun anew, because the worker that watched was started again."""
    end_reason: str | None
    """When `status` is ``done``: ``source_ended`` or ``time_is_up``."""
    error: ErrorDocument | None
    """When `status` is ``failed``."""
    links: dict[str, str]


class WatchDocument(ListedWatch):
    """One live source."""

    latest: RollingDocument | None
    """The latest verdict in short, as its event has it."""
    verdict: Verdict | None
    """The same complete, after docs/verdict.schema.json."""


class WatchesDocument(Document):
    """A page of the list of live sources, newest first."""

    items: list[ListedWatch]
    next_cursor: str | None
    """Give it as `cursor` for the next page; null on the last."""


def watch_json(watch: Watch) -> dict[str, Any]:
    """Return a `WatchDocument` as JSON data; the verdict is passed on as it was stored."""
    latest = None if watch.verdict is None else rolling_of(watch.verdict)
    return {**watched_json(watch), "latest": latest, "verdict": watch.verdict}


def watched_json(watch: Watch) -> dict[str, Any]:
    """Return a `ListedWatch` as JSON data."""
    address = f"/v1/watches/{watch.id}"
    return {
        "id": watch.id,
        "status": watch.status.value,
        "created_at": time_text(watch.created_at),
        "started_at": time_text(watch.started_at),
        "ends_at": time_text(watch.ends_at),
        "finished_at": time_text(watch.finished_at),
        "source": watch.name,
        "options": watch.options,
        "restarts": watch.restarts,
        "end_reason": watch.end_reason,
        "error": error_json(watch),
        "links": {"self": address, "events": f"{address}/events", "page": f"/live/{watch.id}"},
    }


@router.post(
    "/v1/watches",
    status_code=202,
    dependencies=[KNOWN_QUERY],
    responses={
        202: {"model": WatchDocument, "description": "It is queued; `Location` is where it is."},
        **responses(*OF_BODIES),
    },
)
async def begin(form: WatchForm, desk: DeskOf) -> Response:
    """Watch a live source by its address, where this service is set to open addresses.

    Each verdict is on its last seconds, and an event.
    """
    document = watch_json(await desk.live.begin(form))
    return JSONResponse(document, 202, {"Location": document["links"]["self"], "Retry-After": "1"})


@router.get("/v1/watches", responses={200: {"model": WatchesDocument}, **responses()}, dependencies=[KNOWN_QUERY])
async def list_watches(
    desk: DeskOf,
    cursor: CursorOf = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    """List live sources, newest first, also those that are watched no more."""
    found = await in_store(desk.live.store.page, after=place_of(cursor), limit=limit + 1)
    items: list[Any] = [watched_json(watch) for watch in found[:limit]]
    return JSONResponse({"items": items, "next_cursor": next_cursor(found, limit)})


@router.get("/v1/watches/{watch_id}", responses={200: {"model": WatchDocument}, **responses(404)})
async def read(watch_id: str, desk: DeskOf) -> Response:
    """Read a watch: its state and its latest verdict."""
    return JSONResponse(watch_json(await in_store(desk.live.find, watch_id)))


@router.get(
    "/v1/watches/{watch_id}/events",
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "Events until the watch is over."},
        **responses(404),
    },
    response_class=StreamingResponse,
)
async def events(
    watch_id: str, request: Request, desk: DeskOf, last_event_id: Annotated[str | None, Header()] = None
) -> Response:
    """Follow a watch: ``status`` and ``verdict`` events, and ``end`` with the watch itself.

    After a broken connection, send the last event's id as ``Last-Event-ID``, as browsers do; the verdicts of the
    last minutes are kept.
    """
    await in_store(desk.live.find, watch_id)
    watches = desk.live.store

    def state() -> tuple[bool, dict[str, Any]]:
        watch = watches.get(watch_id)
        return (True, {}) if watch is None else (watch.status.is_final, watch_json(watch))

    stream = followed(
        state,
        lambda after: watches.events(watch_id, after=after),
        last_event(last_event_id),
        news=looks(LOOK_S),
        is_served=still_served(request),
    )
    return StreamingResponse(stream, media_type="text/event-stream", headers=STREAM_HEADERS)


@router.post("/v1/watches/{watch_id}/cancel", responses={200: {"model": WatchDocument}, **responses(404, 409)})
async def cancel(watch_id: str, desk: DeskOf) -> Response:
    """End a watch; its latest verdict stays."""
    return JSONResponse(watch_json(await in_store(desk.live.cancel, watch_id)))


@router.delete("/v1/watches/{watch_id}", status_code=204, responses=responses(404))
async def delete(watch_id: str, desk: DeskOf) -> Response:
    """Remove a watch with its verdicts; one that runs is ended."""
    await in_store(desk.live.delete, watch_id)
    return Response(status_code=204)
