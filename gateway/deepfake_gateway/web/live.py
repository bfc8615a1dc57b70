"""The pages of live sources: an address is entered, and its rolling verdict is followed, face by face."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError

from deepfake_gateway.addresses import MAX_URL
from deepfake_gateway.intake.problems import Problem
from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.intake.watching import WatchForm
from deepfake_gateway.settings import wrong_value
from deepfake_gateway.store.analysis import Event, Status
from deepfake_gateway.store.threads import in_store
from deepfake_gateway.store.watches import Watch
from deepfake_gateway.web import lanes, words
from deepfake_gateway.web.language import Language, language_of
from deepfake_gateway.web.rendering import render

LISTED: Final = 20
SHOWN_S: Final = 120.0
"""How much of the past the lanes show, in seconds of the source's time."""

MAP_WH: Final = (260, 200)
"""The map of where the faces are is so large at most."""

Json = dict[str, Any]

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a face was seen last: a box in percent of the frame."""

    number: int
    kind: str
    x: float
    y: float
    width: float
    height: float


@router.get("/live")
async def live(request: Request) -> Response:
    """Show the form for an address, and what is and was watched."""
    desk, _ = _parts(request)
    watches = await in_store(desk.live.store.page, limit=LISTED)
    minutes = desk.live.max_s // 60
    return render("live.html.j2", request, watches=watches, is_on=desk.live.is_on, minutes=max(1, int(minutes)))


@router.post("/live")
async def begin(
    request: Request,
    url: Annotated[str, Form(max_length=MAX_URL)],
    threshold: Annotated[str, Form(max_length=16)] = "",
    minutes: Annotated[str, Form(max_length=16)] = "",
) -> Response:
    """Begin to watch an address, and show what is seen."""
    desk, _ = _parts(request)
    given: Json = {"url": url.strip()}
    try:
        if threshold:
            given["threshold"] = float(threshold)
        if minutes:
            given["duration_s"] = 60 * float(minutes)
        form = WatchForm.model_validate(given)
    except ValidationError as exc:
        error = exc.errors()[0]
        raise Problem(422, wrong_value(str(error["loc"][0]), error)) from None
    except ValueError:
        raise Problem(422, "the minutes and the threshold are numbers; leave them empty if in doubt") from None
    watch = await desk.live.begin(form)
    return RedirectResponse(f"/live/{watch.id}", status_code=303)


@router.get("/live/{watch_id}")
async def watched(watch_id: str, request: Request) -> Response:
    """Show what is seen of a source now, or was at its end."""
    return render("watch.html.j2", request, **await _values(watch_id, request))


@router.get("/live/{watch_id}/part")
async def part(watch_id: str, request: Request) -> Response:
    """Show the same as a part of its page."""
    return render("watch_part.html.j2", request, **await _values(watch_id, request))


@router.post("/live/{watch_id}/end")
async def end(watch_id: str, request: Request) -> Response:
    """End a watch, and show what was seen last."""
    desk, _ = _parts(request)
    await in_store(desk.live.store.cancel, (await in_store(desk.live.find, watch_id)).id)
    return RedirectResponse(f"/live/{watch_id}", status_code=303)


@router.post("/live/{watch_id}/delete")
async def delete(watch_id: str, request: Request) -> Response:
    """Remove a watch, and go to the others."""
    desk, _ = _parts(request)
    await in_store(desk.live.delete, watch_id)
    return RedirectResponse("/live", status_code=303)


def _parts(request: Request) -> tuple[Desk, Language]:
    return request.state.desk, language_of(request)


async def _values(watch_id: str, request: Request) -> Json:
    desk, say = _parts(request)
    watch = await in_store(desk.live.find, watch_id)
    verdict = watch.verdict
    values: Json = {
        "watch": watch,
        "verdict": verdict,
        "ended": _ended(say, watch),
        "advice": words.live_advice(say, watch.error_type),
    }
    if verdict is None:
        return values
    events = await in_store(desk.live.store.events, watch_id)
    past = _past(events)
    span_s = max(past[-1]["at_s"] - past[0]["at_s"], 1.0) if past else 1.0
    return {
        **values,
        "headline": words.headline(say, verdict),
        "by_hand": words.threshold_by_hand(say, watch.options, verdict),
        "lanes": [_lane(say, verdict, lane, past, span_s) for lane in lanes.lanes_of(say, verdict)],
        "ticks": _ticks(say, past, span_s),
        "places": _places(verdict),
        "map_wh": _map_wh(verdict),
        "at_s": past[-1]["at_s"] if past else 0.0,
    }


def _ended(say: Language, watch: Watch) -> str:
    """Return why it is watched no more; nothing while it is, or where an error says so."""
    if watch.status is Status.CANCELED:
        return say.say("It was ended by hand.")
    if watch.end_reason == "time_is_up":
        return say.say("The time that a source is watched is over.")
    return say.say("The source ended.") if watch.status is Status.DONE else ""


def _past(events: list[Event]) -> list[Json]:
    """Return the rolling verdicts of the last minutes, since the source was begun anew."""
    anew = [number for number, event in enumerate(events) if event.data.get("reason") == "worker_restarted"]
    since = max(anew, default=0)
    rolling = [event.data for event in events[since:] if event.kind == "verdict"]
    return [item for item in rolling if item["at_s"] >= rolling[-1]["at_s"] - SHOWN_S]


def _lane(say: Language, verdict: Json, lane: lanes.Lane, past: list[Json], span_s: float) -> lanes.Lane:
    """Return a lane of the verdict's last seconds as one of the last minutes: a point for each verdict."""
    points = []
    for item in past:
        for face in item["faces"]:
            if face["track"] == lane.track:
                title = f"{say.clock(item['at_s'])}: {say.number(face['fake_probability'])}"
                x = round(100 * (item["at_s"] - past[0]["at_s"]) / span_s, 2)
                points.append(lanes.Point(x, lanes.height_of(face["fake_probability"]), not face["counted"], title))
    first, last = (point.x for point in (points[0], points[-1])) if points else (0.0, 0.0)
    return lane.of_points(tuple(points), first, last)


def _ticks(say: Language, past: list[Json], span_s: float) -> list[tuple[float, str]]:
    if not past:
        return []
    begin_s = past[0]["at_s"]
    return [(0.0, say.clock(begin_s)), (100.0, say.clock(begin_s + span_s))]


def _places(verdict: Json) -> list[Place]:
    kinds = {track["track"]: lanes.kind_of(track) for track in verdict["tracks"]}
    found = []
    for frame in verdict["frames"][-1:]:
        width, height = (max(1, size) for size in frame["size_wh"])
        for face in frame["faces"]:
            left, top, right, bottom = face["box_xyxy"]
            across = [100 * at / width for at in (left, right - left)]
            down = [100 * at / height for at in (top, bottom - top)]
            place = (round(at, 1) for at in (across[0], down[0], across[1], down[1]))
            found.append(Place(face["track"] + 1, kinds.get(face["track"], "inc"), *place))
    return found


def _map_wh(verdict: Json) -> tuple[int, int]:
    """Return width and height of the map of the picture, in pixels of the page."""
    width, height = verdict["frames"][-1]["size_wh"] if verdict["frames"] else (16, 9)
    scale = min(MAP_WH[0] / max(1, width), MAP_WH[1] / max(1, height))
    return round(width * scale), round(height * scale)
