"""`Desk`: takes an upload in. It answers from an earlier result, or records a new analysis and queues it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.exc import IntegrityError

from deepfake_client.transport.protocol import ServedModel
from deepfake_gateway.intake.options import stored_options
from deepfake_gateway.intake.problems import Problem
from deepfake_gateway.intake.upload import Upload
from deepfake_gateway.jobs.queue import Priority, Queue
from deepfake_gateway.store.media import MediaFolder
from deepfake_gateway.store.records import UNFINISHED, Analysis, Status, Store
from deepfake_preprocess.errors import DeepfakeError

MAX_REPORTS: Final = 2
"""Pages of reports that are made at once; each takes a process for a second or two."""
MODEL_ASKED_EVERY_S: Final = 2.0
FIRST_LOOK_S, LONGEST_LOOK_S = 0.02, 0.25
"""How often a waiting request looks for the result; from often to seldom."""

AskModels = Callable[[], Awaitable[list[ServedModel]]]
"""Returns what the server offers, the model in use first; raises DeepfakeError."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of an upload; `is_new` is False where an earlier analysis answers it."""

    analysis: Analysis
    is_new: bool


class Desk:
    """Where analyses begin and end: used by the API, the compatibility routes and the page alike."""

    def __init__(
        self, store: Store, media: MediaFolder, queue: Queue, ask_models: AskModels, *, max_queued: int
    ) -> None:
        self.store, self.media = store, media
        self._queue, self._ask_models, self._max_queued = queue, ask_models, max_queued
        self.report_places = asyncio.Semaphore(MAX_REPORTS)
        self._checkpoint: tuple[float, str | None] = (0.0, None)

    async def submit(
        self,
        upload: Upload,
        fields: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        priority: Priority = Priority.INTERACTIVE,
    ) -> Submitted:
        """Take an upload in.

        Raises:
            Problem: 409 for a key that was used for another upload, 422 for options, 429 while too many wait.
        """
        options = stored_options(fields)
        checkpoint = await self._checkpoint_in_use()
        return await asyncio.to_thread(self._submit, upload, options, checkpoint, idempotency_key, priority)

    def _submit(
        self,
        upload: Upload,
        options: dict[str, Any],
        checkpoint: str | None,
        idempotency_key: str | None,
        priority: Priority,
    ) -> Submitted:
        if idempotency_key is not None and (before := self.store.with_idempotency_key(idempotency_key)):
            return self._repeated(before, upload, options)
        if (earlier := self.store.earlier(upload.sha256, options, checkpoint)) is not None:
            return Submitted(earlier, is_new=False)
        counts = self.store.count_by("status")
        if sum(counts.get((status.value,), 0) for status in UNFINISHED) >= self._max_queued:
            raise Problem(
                429,
                f"{self._max_queued} analyses are waiting, as many as may; try again later",
                {"Retry-After": "10"},
            )
        analysis = Analysis(
            id=secrets.token_hex(16),
            created_at=time.time(),
            status=Status.QUEUED,
            priority=priority,
            file_name=upload.file_name,
            media_type=upload.media_type,
            size_bytes=upload.size_bytes,
            sha256=upload.sha256,
            options=options,
            idempotency_key=idempotency_key,
        )
        self.media.keep(upload.path, analysis.id)
        try:
            self.store.add(analysis, lambda connection: self._queue.enqueue(connection, analysis.id, priority))
        except IntegrityError:
            self.media.delete(analysis.id)
            before = self.store.with_idempotency_key(idempotency_key or "")
            if before is None:
                raise
            return self._repeated(before, upload, options)
        except BaseException:
            self.media.delete(analysis.id)
            raise
        return Submitted(analysis, is_new=True)

    def _repeated(self, before: Analysis, upload: Upload, options: dict[str, Any]) -> Submitted:
        if (before.sha256, before.options) != (upload.sha256, options):
            raise Problem(
                409, "this Idempotency-Key was used for another file or other options; use a new key for each request"
            )
        return Submitted(before, is_new=False)

    async def finished(self, analysis_id: str, within_s: float) -> Analysis:
        """Return an analysis once it is over, or as it is after `within_s` seconds."""
        give_up_at, look_s = time.monotonic() + within_s, FIRST_LOOK_S
        while True:
            analysis = await asyncio.to_thread(self.find, analysis_id)
            if analysis.status.is_final or time.monotonic() >= give_up_at:
                return analysis
            await asyncio.sleep(min(look_s, max(0.0, give_up_at - time.monotonic())))
            look_s = min(1.3 * look_s, LONGEST_LOOK_S)

    def find(self, analysis_id: str) -> Analysis:
        """Return an analysis; Problem 404 where there is none."""
        analysis = self.store.get(analysis_id)
        if analysis is None:
            raise Problem(404, f"there is no analysis {analysis_id[:64]!r}; it was deleted, or the address is wrong")
        return analysis

    def cancel(self, analysis_id: str) -> Analysis:
        """End an analysis without a result, whether it waits or runs; Problem 409 where it is over."""
        analysis = self.find(analysis_id)
        if not self.store.cancel(analysis_id):
            raise Problem(409, f"the analysis is over ({analysis.status.value}); there is nothing to cancel")
        return self.find(analysis_id)

    def delete(self, analysis_id: str) -> None:
        """Remove an analysis with its medium, its reports and its result from disk; one that runs is ended."""
        self.find(analysis_id)
        self.store.cancel(analysis_id)
        self.store.delete(analysis_id)
        self.media.delete(analysis_id)
        self._queue.forget(analysis_id)

    async def models(self) -> list[ServedModel]:
        """Return what the server offers; raises DeepfakeError."""
        return await self._ask_models()

    async def _checkpoint_in_use(self) -> str | None:
        asked_at, checkpoint = self._checkpoint
        if time.monotonic() - asked_at > MODEL_ASKED_EVERY_S or asked_at == 0.0:
            checkpoint = None
            with suppress(DeepfakeError):
                models = await self._ask_models()
                checkpoint = models[0].spec.checkpoint_sha256 if models else None
            self._checkpoint = time.monotonic(), checkpoint
        return checkpoint
