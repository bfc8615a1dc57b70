"""What routes share: what they get from the application, how long a caller waits, and what cannot be made."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Final, TypeAlias, TypeVar

from fastapi import Depends, Header, Request

from deepfake_gateway.intake.problems import Problem
from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.jobs.evidence import MediumGoneError
from deepfake_gateway.sandbox.process import SandboxError, TaskError
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.records import Event

MAX_WAIT_S: Final = 300.0
SEALED: Final = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src 'self'"
"""A policy under which what an upload contains can do nothing, whatever a browser takes it for."""
FIRST_LOOK_S, LONGEST_LOOK_S = 0.02, 0.25
LATE_PART: Final = 20
"""Events are looked for at intervals of this part of the time so far, so that many followers cost little."""
HEARTBEAT_S: Final = 15.0
"""A comment is sent so often, or proxies close a silent connection."""
STREAM_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

T = TypeVar("T")


def _desk(request: Request) -> Desk:
    desk: Desk = request.state.desk
    return desk


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


DeskOf: TypeAlias = Annotated[Desk, Depends(_desk)]
SettingsOf: TypeAlias = Annotated[Settings, Depends(_settings)]


def _wait_s(
    prefer: Annotated[
        str | None, Header(description="``wait=N``: answer with the result if it is there in N seconds")
    ] = None,
) -> float:
    """Return the seconds of ``wait=N`` (RFC 7240), 0 without it."""
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?([0-9]{1,18})\b", prefer or "", re.IGNORECASE)
    return min(float(found[1]), MAX_WAIT_S) if found else 0.0


WaitOf: TypeAlias = Annotated[float, Depends(_wait_s)]


async def made(evidence: Awaitable[T]) -> T:
    """Return what is made of an analysis; Problem 404 where its medium was removed, 503 where that fails."""
    try:
        return await evidence
    except MediumGoneError:
        raise Problem(404, "the medium of this analysis was removed; send the file again") from None
    except (TaskError, SandboxError) as exc:
        raise Problem(503, f"it cannot be made now: {exc}", {"Retry-After": "10"}) from None


def last_event(header: str | None) -> int:
    """Return the number in ``Last-Event-ID``; 0, from the beginning on, for what is none of ours."""
    return int(header) if header and re.fullmatch(r"[0-9]{1,18}", header) else 0


async def followed(
    state: Callable[[], tuple[bool, dict[str, Any]]], events: Callable[[int], list[Event]], after: int
) -> AsyncIterator[str]:
    """Yield the events of a job behind one of them as they come, and ``end`` with its document.

    `state` returns whether the job is over, and its document; `events` those behind a number.
    """
    began = heard = time.monotonic()
    while True:
        # Read before the events, so that none is missed that came with the end.
        is_over, document = await asyncio.to_thread(state)
        for event in await asyncio.to_thread(events, after):
            after, heard = event.id, time.monotonic()
            yield _event(event.kind, event.data, event.id)
        if is_over:
            yield _event("end", document, after)
            return
        now = time.monotonic()
        if now - heard >= HEARTBEAT_S:
            heard = now
            yield ": still here\n\n"
        await asyncio.sleep(min(LONGEST_LOOK_S, max(FIRST_LOOK_S, (now - began) / LATE_PART)))


def _event(kind: str, data: dict[str, Any], number: int) -> str:
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
