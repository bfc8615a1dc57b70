"""What routes share: what they get from the application, how long a caller waits, and what cannot be made."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any, Final, TypeAlias, TypeVar

from fastapi import Depends, Header, Query, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from sqlalchemy.exc import SQLAlchemyError

from deepfake_gateway.intake.fetching import Fetcher
from deepfake_gateway.intake.news import Wait
from deepfake_gateway.intake.problems import Problem, json_of, without_medium
from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.jobs.evidence import MediumGoneError
from deepfake_gateway.logs import first_line
from deepfake_gateway.sandbox.process import SandboxError, TaskError
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.analysis import Event, Status
from deepfake_gateway.store.keys import Key, Keys
from deepfake_gateway.store.places import CURSOR
from deepfake_gateway.store.threads import in_store

MAX_WAIT_S: Final = 300.0
SEALED: Final = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src 'self'"
"""A policy under which what an upload contains can do nothing, whatever a browser takes it for."""
CHECK_S: Final = 2.0
"""Who follows a job is told within this time that it was deleted, or that the key is valid no more."""
HEARTBEAT_S: Final = 15.0
"""A comment is sent so often, or proxies close a silent connection."""
STREAM_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

T = TypeVar("T")
CursorOf: TypeAlias = Annotated[str | None, Query(pattern=CURSOR, description="`next_cursor` of the page before")]

logger = logging.getLogger(__name__)


def _desk(request: Request) -> Desk:
    desk: Desk = request.state.desk
    return desk


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _fetcher(request: Request) -> Fetcher:
    return Fetcher(request.app.state.settings, request.state.on_its_way)


DeskOf: TypeAlias = Annotated[Desk, Depends(_desk)]
SettingsOf: TypeAlias = Annotated[Settings, Depends(_settings)]
FetcherOf: TypeAlias = Annotated[Fetcher, Depends(_fetcher)]


def _known_query(request: Request) -> None:
    """Raise Problem 422 for a parameter of the query that the route does not have: it would be passed over."""
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    if unknown := [name for name in request.query_params if name not in known]:
        there_are = f"there are {', '.join(known)}" if known else "what this address takes is in the body"
        raise Problem(422, f"there is no parameter `{unknown[0][:80]}` in the address; {there_are}")


KNOWN_QUERY: Final = Depends(_known_query)


class JsonRoute(APIRoute):
    """A route whose body is JSON in which no object repeats a name."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return handle_json


class _JsonRequest(Request):
    async def json(self) -> Any:
        return json_of(await self.body())


def _wait_s(
    request: Request,
    prefer: Annotated[
        str | None, Header(description="``wait=N``: answer with the result if it is there in N seconds")
    ] = None,
) -> float:
    """Return the seconds of ``wait=N`` (RFC 7240), 0 without it; the header may come several times."""
    asked = ", ".join(request.headers.getlist("prefer"))
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?([0-9]{1,18})\b", asked, re.IGNORECASE)
    return min(float(found[1]), MAX_WAIT_S) if found else 0.0


WaitOf: TypeAlias = Annotated[float, Depends(_wait_s)]


async def made(evidence: Awaitable[T]) -> T:
    """Return what is made of an analysis; Problem 404 where its medium was removed, 503 where that fails."""
    try:
        return await evidence
    except MediumGoneError:
        raise without_medium() from None
    except (TaskError, SandboxError) as exc:
        raise Problem(503, f"it cannot be made now: {exc}", {"Retry-After": "10"}) from None


def last_event(header: str | None) -> int:
    """Return the number in ``Last-Event-ID``; 0 (from the beginning on) for one that is not ours."""
    return int(header) if header and re.fullmatch(r"[0-9]{1,18}", header) else 0


@asynccontextmanager
async def looks(every_s: float) -> AsyncIterator[Wait]:
    """Yield a wait for jobs of which nobody has news: each of their followers looks for itself."""
    yield lambda within_s: asyncio.sleep(min(within_s, every_s))


def still_served(request: Request) -> Callable[[], bool]:
    """Return how to find out whether the caller's key, where it has one, is still valid."""
    keys: Keys = request.app.state.keys
    key: Key | None = request.state.key
    return lambda: key is None or keys.is_valid(key.id)


async def followed(
    state: Callable[[], tuple[bool, dict[str, Any]]],
    events: Callable[[int], list[Event]],
    after: int,
    *,
    news: AbstractAsyncContextManager[Wait],
    is_served: Callable[[], bool],
) -> AsyncIterator[str]:
    """Yield the events of a job behind one of them as they come, and ``end`` with its document.

    `state` returns whether the job is over, and its document; `events` those behind a number; `news` is how to
    wait for more; `is_served` says whether the caller is still let in. While the database is away, it is waited for.
    """
    heard, checked = time.monotonic(), float("-inf")
    async with news as wait:
        while True:
            try:
                found = await in_store(events, after)
                for event in found:
                    after, heard = event.id, time.monotonic()
                    yield _event(event.kind, event.data, event.id)
                has_ended = bool(found) and _is_last(found[-1])
                if found and not has_ended and checked < 0:
                    checked = time.monotonic()  # its latest event says that it is under way
                if has_ended or time.monotonic() - checked >= CHECK_S:
                    if not await in_store(is_served):
                        return
                    is_over, document = await in_store(state)
                    checked = time.monotonic()
                    if is_over:
                        for event in await in_store(events, after):  # that came with the end
                            after = event.id
                            yield _event(event.kind, event.data, event.id)
                        yield _event("end", document, after)
                        return
            except SQLAlchemyError as exc:
                logger.debug("the database is away (%s); events are looked for again", first_line(exc))
            if time.monotonic() - heard >= HEARTBEAT_S:
                heard = time.monotonic()
                yield ": still here\n\n"
            await wait(CHECK_S)


def _is_last(event: Event) -> bool:
    return event.kind == "status" and Status(event.data["status"]).is_final


def _event(kind: str, data: dict[str, Any], number: int) -> str:
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
