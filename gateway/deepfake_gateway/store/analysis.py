"""`Analysis`: what the database holds of one, its states and its events."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, Self


class Status(StrEnum):
    """Where an analysis is."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self in (Status.DONE, Status.FAILED, Status.CANCELED)


UNFINISHED = (Status.QUEUED, Status.RUNNING)
_OF_VERDICT: Final = (
    "label", "fake_probability", "reason", "model_name", "model_version", "checkpoint_sha256"
)  # fmt: skip
"""Columns that say what the verdict says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """One analysis as it is stored; times in seconds since 1970, null before they are reached."""

    id: str
    created_at: float
    status: Status
    priority: int
    file_name: str
    media_type: str
    size_bytes: int
    sha256: str
    options: dict[str, Any]
    idempotency_key: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    model_name: str | None = None
    model_version: int | None = None
    checkpoint_sha256: str | None = None
    label: str | None = None
    fake_probability: float | None = None
    reason: str | None = None
    verdict: dict[str, Any] | None = None
    error_type: str | None = None
    error_detail: str | None = None
    tenant: str = ""
    key_id: str | None = None
    request_id: str | None = None
    traceparent: str | None = None

    @property
    def is_image(self) -> bool:
        """Whether its medium is a picture."""
        return self.media_type.startswith("image/")

    def answered_by(self, earlier: Self) -> Self:
        """Return this analysis as done, with the verdict that an earlier one has on the same bytes."""
        assert earlier.verdict is not None
        return replace(
            self,
            status=Status.DONE,
            finished_at=time.time(),
            verdict={**earlier.verdict, "source": self.file_name},
            **{name: getattr(earlier, name) for name in _OF_VERDICT},
        )

    @classmethod
    def of(cls, row: Any, verdict: dict[str, Any] | None = None) -> Self:
        """Return the analysis of a row of SQLAlchemy's; the `verdict` is that of a row without it."""
        values = row._asdict()
        values["status"] = Status(values["status"])
        values["options"] = json.loads(values["options"])
        text = values.pop("verdict", None)
        values["verdict"] = verdict if text is None else json.loads(text)
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an analysis; ids increase."""

    id: int
    kind: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which analyses are listed; None for all."""

    label: str | None = None
    status: str | None = None
    name: str | None = None
    model: str | None = None
    sha256: str | None = None
    since: float | None = None
    until: float | None = None


def canonical(options: Mapping[str, Any]) -> str:
    """Return the one text that equal options have."""
    return json.dumps(options, sort_keys=True, separators=(",", ":"))
