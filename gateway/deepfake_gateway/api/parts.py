"""What routes share: what they get from the application, how long a caller waits, and what cannot be made."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import Annotated, Final, TypeAlias, TypeVar

from fastapi import Depends, Header, Request

from deepfake_gateway.intake.problems import Problem
from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.jobs.evidence import MediumGoneError
from deepfake_gateway.sandbox.process import SandboxError, TaskError
from deepfake_gateway.settings import Settings

MAX_WAIT_S: Final = 300.0
SEALED: Final = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src 'self'"
"""A policy under which what an upload contains can do nothing, whatever a browser takes it for."""

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
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})\b", prefer or "")
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
