"""`Desk`: takes an upload in. It answers from an earlier result, or records a new analysis and queues it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.exc import DBAPIError, IntegrityError

from deepfake_client.async_client import AsyncDeepfakeClient
from deepfake_client.transport.connect import connect
from deepfake_client.transport.protocol import ServedModel
from deepfake_client.transport.request_id import REQUEST_ID
from deepfake_gateway.intake.batches import BatchDesk
from deepfake_gateway.intake.explaining import ExplanationDesk
from deepfake_gateway.intake.news import News, once_over
from deepfake_gateway.intake.options import stored_options
from deepfake_gateway.intake.problems import Problem, without_medium
from deepfake_gateway.intake.room import Room
from deepfake_gateway.intake.sink import Upload
from deepfake_gateway.intake.watching import WatchDesk
from deepfake_gateway.jobs.evidence import Evidence
from deepfake_gateway.jobs.queue import Job, Priority, Queue
from deepfake_gateway.jobs.retention import remove
from deepfake_gateway.sandbox.process import RunTask
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.analysis import Analysis, Status
from deepfake_gateway.store.keys import Key, seen_with, tenant_of
from deepfake_gateway.store.media import Media
from deepfake_gateway.store.records import Store
from deepfake_gateway.store.threads import in_media, in_store
from deepfake_gateway.store.usage import Usage
from deepfake_gateway.store.webhooks import Webhooks
from deepfake_gateway.tracing import current_traceparent
from deepfake_preprocess.errors import DeepfakeError

MODEL_ASKED_EVERY_S: Final = 2.0

AskModels = Callable[[], Awaitable[list[ServedModel]]]
"""Returns what the server offers, the model in use first; raises DeepfakeError."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of an upload; `is_new` is False where an earlier analysis of the same file is the answer."""

    analysis: Analysis
    is_new: bool


class Desk:
    """Where analyses begin and end: used by the API, the compatibility routes and the page alike.

    Beside it are the desks of what else is taken in: `batches`, `explanations` and, of live sources, `live`.
    """

    def __init__(
        self,
        store: Store,
        media: Media,
        queue: Queue,
        ask_models: AskModels,
        run: RunTask,
        settings: Settings,
    ) -> None:
        self.store, self.media = store, media
        self.news, self.evidence = News(store), Evidence(media, run)
        self.webhooks, self.usage = Webhooks(store.engine), Usage(store.engine)
        self._room = Room(store, settings)
        self.batches = BatchDesk(store, media, queue, self._room, settings, self._submit_of_batch)
        self.explanations = ExplanationDesk(store.engine, media, queue, self._room, settings)
        self.live = WatchDesk(store.engine, queue, self._room, settings)
        self._queue, self._ask_models = queue, ask_models
        self._max_frames, self._keeps_media = settings.max_frames, settings.media_hours > 0
        # Shared by the desks of all callers.
        self._checkpoint: dict[str, tuple[float, str | None]] = {}
        self._key: Key | None = None

    def of(self, key: Key | None) -> Desk:
        """Return the desk of a caller: only what belongs to the key's tenant is there, and its quota counts.

        On an open service, where there are no keys, and for an administrator all is there.
        """
        desk, tenant, engine = copy(self), seen_with(key), self.store.engine
        desk._key = key
        desk.store = self.store.of_tenant(tenant)
        desk.webhooks, desk.usage = Webhooks(engine, tenant), Usage(engine, tenant)
        desk.batches, desk.live = self.batches.of(key, desk._submit_of_batch), self.live.of(key)
        return desk

    @property
    def tenant(self) -> str:
        """Whose what is sent becomes."""
        return tenant_of(self._key)

    @property
    def _mine(self) -> Store:
        """What the caller has sent: an administrator's own, too."""
        return self.store.of_tenant(self.tenant)

    def check_options(self, fields: Mapping[str, Any]) -> None:
        """Raise Problem 422 for options that `submit` would refuse."""
        stored_options(fields, max_frames=self._max_frames)

    async def submit(
        self,
        upload: Upload,
        fields: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        priority: Priority = Priority.INTERACTIVE,
        is_awaited: bool = False,
    ) -> Submitted:
        """Take an upload in; one that `is_awaited` as part of a batch waited already, and may go on doing so.

        Raises:
            Problem: 409 for a key that was used for another upload, 422 for options, 429 while too many wait.
        """
        options = stored_options(fields, max_frames=self._max_frames)
        known = await in_store(self._mine.knows, upload.sha256, options)
        checkpoint = await self._checkpoint_in_use() if known else None
        return await in_media(self._submit, upload, options, checkpoint, idempotency_key, priority, is_awaited)

    async def _submit_of_batch(self, upload: Upload, fields: Mapping[str, Any]) -> Analysis:
        """See `batches.Submit`."""
        return (await self.submit(upload, fields, priority=Priority.BULK)).analysis

    async def submit_again(self, analysis_id: str, fields: Mapping[str, Any]) -> Submitted:
        """Take the file of an analysis in once more, with other options.

        Raises:
            Problem: 404 for an unknown analysis and where its file was removed, and as `submit`.
        """
        before = await in_store(self.find, analysis_id)
        path = self.media.new_upload()
        try:
            await in_media(self.media.send_again, analysis_id, path)
            upload = Upload(path, before.file_name, before.size_bytes, before.sha256, before.media_type)
            return await self.submit(upload, fields)
        except FileNotFoundError:
            raise without_medium() from None
        finally:
            path.unlink(missing_ok=True)

    def _submit(
        self,
        upload: Upload,
        options: dict[str, Any],
        checkpoint: str | None,
        idempotency_key: str | None,
        priority: Priority,
        is_awaited: bool,
    ) -> Submitted:
        mine = self._mine
        if idempotency_key is not None and (before := mine.with_idempotency_key(idempotency_key)):
            return self._repeated(before, upload, options)
        earlier = mine.earlier(upload.sha256, options, checkpoint, name=upload.file_name)
        if earlier is not None and earlier.file_name == upload.file_name and not self._lacks_medium(earlier):
            return Submitted(earlier, is_new=False)
        if earlier is None:
            self._room.check_quota(self._key)
            if not is_awaited:
                self._room.check_analyses(1)
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
            tenant=self.tenant,
            key_id=None if self._key is None else self._key.id,
            request_id=REQUEST_ID.get() or None,
            traceparent=current_traceparent(),
        )
        if earlier is not None:
            analysis = analysis.answered_by(earlier)
        if earlier is None or self._keeps_media:
            self.media.keep(upload.path, analysis.id)
        try:
            if earlier is None:
                self.store.add(
                    analysis, lambda connection: self._queue.enqueue(connection, Job.ANALYZE, analysis.id, priority)
                )
            else:
                self.store.add_answered(analysis)
        except IntegrityError:
            self.media.delete(analysis.id)
            before = mine.with_idempotency_key(idempotency_key or "")
            if before is None:
                raise
            return self._repeated(before, upload, options)
        except DBAPIError:
            raise  # it may be recorded all the same; `purge` removes what belongs to nothing
        except BaseException:
            self.media.delete(analysis.id)
            raise
        return Submitted(analysis, is_new=True)

    def _lacks_medium(self, earlier: Analysis) -> bool:
        """Whether the time of its file is over before that of the result: what is sent again has one anew."""
        return self._keeps_media and self.media.size(earlier.id) is None

    def _repeated(self, before: Analysis, upload: Upload, options: dict[str, Any]) -> Submitted:
        if (before.file_name, before.sha256, before.options) != (upload.file_name, upload.sha256, options):
            raise Problem(
                409,
                "this Idempotency-Key was used for another file, name or options; use a new key for each request",
            )
        return Submitted(before, is_new=False)

    async def finished(self, analysis_id: str, within_s: float) -> Analysis:
        """Return an analysis once it is over, or as it is after `within_s` seconds."""
        async with self.news.about(analysis_id) as wait:
            return await once_over(lambda: self.find(analysis_id), within_s, wait)

    def find(self, analysis_id: str) -> Analysis:
        """Return an analysis; Problem 404 where there is none."""
        analysis = self.store.get(analysis_id)
        if analysis is None:
            raise Problem(404, f"there is no analysis {analysis_id[:64]!r}; it was deleted, or the address is wrong")
        return analysis

    def medium_bytes(self, analysis_id: str) -> int:
        """Return the size of an analysis' medium; Problem 404 where it was removed."""
        size = self.media.size(analysis_id)
        if size is None:
            raise without_medium()
        return size

    def cancel(self, analysis_id: str) -> Analysis:
        """End an analysis without a result, whether it waits or runs; Problem 409 where it is over."""
        analysis = self.find(analysis_id)
        if not self.store.cancel(analysis_id):
            raise Problem(409, f"the analysis is over ({analysis.status.value}); there is nothing to cancel")
        return self.find(analysis_id)

    def delete(self, analysis_id: str) -> None:
        """Remove an analysis with its medium, its reports and its result from disk; one that runs is ended."""
        self.find(analysis_id)
        self.remove(analysis_id)

    def remove(self, analysis_id: str) -> None:
        """Remove what there is of an analysis, as `delete` does."""
        remove(self.store, self.media, self._queue, analysis_id)

    async def models(self) -> list[ServedModel]:
        """Return what the server offers; raises DeepfakeError."""
        return await self._ask_models()

    async def _checkpoint_in_use(self) -> str | None:
        asked_at, checkpoint = self._checkpoint.get("in use", (-MODEL_ASKED_EVERY_S, None))
        if time.monotonic() - asked_at > MODEL_ASKED_EVERY_S:
            checkpoint = None
            with suppress(DeepfakeError):
                models = await self._ask_models()
                checkpoint = models[0].spec.checkpoint_sha256 if models else None
            self._checkpoint["in use"] = time.monotonic(), checkpoint
        return checkpoint


async def ask_models(settings: Settings) -> list[ServedModel]:
    """Return what the server offers, the model in use first."""
    async with AsyncDeepfakeClient(settings.connection, model=settings.model) as client:
        default = await client.model()
    transport = connect(settings.connection)
    try:
        names = [name for name in await transport.list_models() if name != default.name]
        return [default, *[await transport.describe(name) for name in names]]
    finally:
        await transport.close()
