"""`Desk`: takes an upload in. It answers from an earlier result, or records a new analysis and queues it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError

from deepfake_client.async_client import AsyncDeepfakeClient
from deepfake_client.transport.connect import connect
from deepfake_client.transport.protocol import ServedModel
from deepfake_client.transport.request_id import REQUEST_ID
from deepfake_gateway.intake.news import News, Wait
from deepfake_gateway.intake.options import ExplanationForm, stored_options
from deepfake_gateway.intake.problems import Problem
from deepfake_gateway.intake.sink import MAX_NAME, Upload, printable_of
from deepfake_gateway.intake.watching import WatchDesk, WatchForm
from deepfake_gateway.jobs.evidence import Evidence, listed_faces
from deepfake_gateway.jobs.queue import Job, Priority, Queue
from deepfake_gateway.sandbox.process import RunTask
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.batches import Batch, Batches, BatchItem, key_of
from deepfake_gateway.store.explanations import Explanations, StoredExplanation
from deepfake_gateway.store.keys import Key
from deepfake_gateway.store.media import Media
from deepfake_gateway.store.records import UNFINISHED, Analysis, Status, Store
from deepfake_gateway.store.threads import in_media, in_store
from deepfake_gateway.store.usage import Quotas, Usage
from deepfake_gateway.store.watches import Watch
from deepfake_gateway.store.webhooks import Webhooks
from deepfake_gateway.tracing import current_traceparent
from deepfake_preprocess.errors import DeepfakeError
from deepfake_preprocess.media.remote import without_password

MODEL_ASKED_EVERY_S: Final = 2.0
LOOK_S: Final = 0.05
"""How often somebody who waits for heatmaps looks for them."""

DEFAULT_FACES: Final = 3
"""Faces that are explained where none are named."""

JobT = TypeVar("JobT", Analysis, StoredExplanation)

AskModels = Callable[[], Awaitable[list[ServedModel]]]
"""Returns what the server offers, the model in use first; raises DeepfakeError."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of an upload; `is_new` is False where an earlier analysis of the same file is the answer."""

    analysis: Analysis
    is_new: bool


def without_verdict(analysis: Analysis) -> Problem:
    """Return the refusal of what is made of a verdict, for an analysis that has none yet, or will have none."""
    status = analysis.status
    state, advice = f"is {status.value}", "ask again once it is done"
    if status is Status.FAILED:
        state, advice = "failed", "its `error` says why"
    elif status is Status.CANCELED:
        state, advice = "was canceled", "send the file again"
    return Problem(409, f"the analysis {state} and has no verdict; {advice}")


def without_medium() -> Problem:
    """Return the refusal of what is made of a medium, for an analysis whose medium was removed."""
    return Problem(404, "the medium of this analysis was removed; send the file again")


class Desk:
    """Where analyses begin and end: used by the API, the compatibility routes and the page alike."""

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
        self.news = News(store)
        self.batches = Batches(store.engine)
        self.webhooks = Webhooks(store.engine)
        self.explanations = Explanations(store.engine)
        self.live = WatchDesk(store.engine, queue, settings)
        self.evidence = Evidence(media, run)
        self._queue, self._ask_models = queue, ask_models
        self._max_queued, self._explain_url = settings.max_queued, settings.explain_url
        self._max_frames, self._keeps_media = settings.max_frames, settings.media_hours > 0
        # Shared by the desks of all callers.
        self._checkpoint: dict[str, tuple[float, str | None]] = {}
        self._key: Key | None = None
        self.usage, self._quotas = Usage(store.engine), Quotas(store.engine, settings.seconds_per_day)

    def of(self, key: Key | None) -> Desk:
        """Return the desk of a caller: only what belongs to the key's tenant is there, and its quota counts.

        On an open service, where there are no keys, and for an administrator all is there.
        """
        desk = copy(self)
        desk._key, desk.live = key, self.live.of(key)
        if key is not None and "admin" not in key.scopes:
            desk.store = self.store.of_tenant(key.tenant)
            desk.batches = Batches(self.store.engine, key.tenant)
            desk.webhooks = Webhooks(self.store.engine, key.tenant)
            desk.usage = Usage(self.store.engine, key.tenant)
        return desk

    @property
    def tenant(self) -> str:
        """Whose what is sent becomes."""
        return "" if self._key is None else self._key.tenant

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
        if earlier is not None and earlier.file_name == upload.file_name:
            return Submitted(earlier, is_new=False)
        if earlier is None:
            self._check_quota()
            if not is_awaited:
                self._check_room(1)
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

    async def submit_together(
        self, files: Sequence[Upload | tuple[str, Problem]], fields: Mapping[str, Any], name: str
    ) -> Batch:
        """Take several files in as one batch, behind everything that somebody waits for.

        A file that cannot be taken is an item that says why.

        Raises:
            Problem: 422 for options, 429 where not all of them may wait.
        """
        self.check_options(fields)
        await in_store(self._check_room, len(files))
        items = []
        for file in files:
            if isinstance(file, tuple):
                items.append(BatchItem(file[0], refusal=file[1].detail))
                continue
            try:
                submitted = await self.submit(file, fields, priority=Priority.BULK)
            except Problem as problem:
                items.append(BatchItem(file.file_name, refusal=problem.detail))
            else:
                items.append(BatchItem(file.file_name, submitted.analysis))
        return await in_store(self._begin_batch, name, fields, items)

    async def submit_addresses(
        self, urls: Sequence[str], fields: Mapping[str, str], name: str, check: Callable[[str], None]
    ) -> Batch:
        """Take files in that a worker will fetch, as one batch, behind everything that somebody waits for.

        What `check` refuses as no address is an item that says why.

        Raises:
            Problem: 403 where no addresses are taken, 422 for options, 429 where not all of them may wait.
        """
        self.check_options(fields)
        items = []
        for url in urls:
            shown = printable_of(without_password(url))[:MAX_NAME]
            try:
                check(url)
            except Problem as problem:
                if problem.status == 403:
                    raise
                items.append(BatchItem(shown, refusal=problem.detail))
            else:
                items.append(BatchItem(shown, url=url))
        await in_store(self._check_room, len(items))
        return await in_store(self._begin_batch, name, fields, items)

    def _begin_batch(self, name: str, fields: Mapping[str, str], items: Sequence[BatchItem]) -> Batch:
        batch = Batch(
            id=secrets.token_hex(16),
            created_at=time.time(),
            name=name,
            items=tuple(items),
            fields=dict(fields),
            tenant=self.tenant,
            key_id=None if self._key is None else self._key.id,
            request_id=REQUEST_ID.get() or None,
            traceparent=current_traceparent(),
        )
        self.batches.add(batch, partial(self._enqueue, Job.GATHER, Priority.BULK))
        return batch

    async def begin_watch(self, form: WatchForm) -> Watch:
        """Begin to watch a live source; Problem as `WatchDesk.begin`, and 429 where the key's quota is used up."""
        await in_store(self._check_quota)
        return await self.live.begin(form)

    def find_batch(self, batch_id: str) -> Batch:
        """Return a batch; Problem 404 where there is none."""
        batch = self.batches.get(batch_id)
        if batch is None:
            raise Problem(404, f"there is no batch {batch_id[:64]!r}; it was deleted, or the address is wrong")
        return batch

    def delete_batch(self, batch_id: str) -> None:
        """Remove a batch with its analyses, each as `delete` does; what is yet to be fetched is not any more."""
        tenant = self.find_batch(batch_id).tenant
        self.batches.await_no_more(batch_id)  # first, so that none comes while the others go
        for position, item in enumerate(self.find_batch(batch_id).items):
            analysis = item.analysis
            if analysis is None:  # unless a worker died before it noted it
                analysis = self.store.of_tenant(tenant).with_idempotency_key(key_of(batch_id, position))
            if analysis is not None:
                self.remove(analysis.id)
        self.batches.delete(batch_id)  # last, so that it can be asked for again where media are away
        self._queue.forget(batch_id)

    def _check_quota(self) -> None:
        allowed = None if self._key is None else self._quotas.used_up(self._key.id)
        if allowed is not None:
            left_s = str(86_400 - int(time.time()) % 86_400)
            raise Problem(
                429, f"this key's {allowed:g} seconds of video for today are used up; send more after midnight (UTC)",
                {"Retry-After": left_s, "RateLimit-Limit": f"{allowed:g}", "RateLimit-Remaining": "0",
                 "RateLimit-Reset": left_s}, reason="seconds_per_day",
            )  # fmt: skip

    def _check_room(self, num_files: int) -> None:
        """Raise Problem 429 where so many may not wait beside those that do, or that are yet to be fetched."""
        counts = self.store.count_by("status")
        waiting = sum(counts.get((status.value,), 0) for status in UNFINISHED) + self.batches.awaited()
        if waiting + num_files > self._max_queued:
            raise self._full("analyses")

    def _full(self, what: str) -> Problem:
        detail = f"{self._max_queued} {what} are waiting, as many as may; try again later"
        return Problem(429, detail, {"Retry-After": "10"}, reason="max_queued")

    def _repeated(self, before: Analysis, upload: Upload, options: dict[str, Any]) -> Submitted:
        if (before.sha256, before.options) != (upload.sha256, options):
            raise Problem(
                409, "this Idempotency-Key was used for another file or other options; use a new key for each request"
            )
        return Submitted(before, is_new=False)

    async def finished(self, analysis_id: str, within_s: float) -> Analysis:
        """Return an analysis once it is over, or as it is after `within_s` seconds."""
        async with self.news.about(analysis_id) as wait:
            return await _once_over(lambda: self.find(analysis_id), within_s, wait)

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
        self.store.cancel(analysis_id)
        self.store.delete(analysis_id)
        self.media.delete(analysis_id)
        self._queue.forget(analysis_id)

    def explain(self, analysis_id: str, form: ExplanationForm) -> StoredExplanation:
        """Ask for heatmaps of a finished analysis; the same request is answered by what it gave before.

        Raises:
            Problem: 404 where its medium was removed, 409 where it has no verdict, 422 for faces that it lacks,
                429 while too many wait, 503 where there is no explain service.
        """
        analysis = self.find(analysis_id)
        if analysis.verdict is None:
            raise without_verdict(analysis)
        self.medium_bytes(analysis_id)
        if self._explain_url is None:
            raise Problem(
                503, "there is no explain service; whoever runs this one starts `deepfake explain-serve CHECKPOINT` "
                "and sets `explain_url`, or sets `checkpoint` where the gateway starts Triton itself"
            )  # fmt: skip
        names = [face["name"] for face in listed_faces(analysis.verdict)]
        if not names:
            raise Problem(409, "no face was scored, so there is nothing to explain")
        wanted = names[:DEFAULT_FACES] if form.crops is None else form.crops
        if unknown := [name for name in wanted if name not in names]:
            raise Problem(422, f"`crops` has {unknown[0][:40]!r}; there are {', '.join(names)}")
        if self.explanations.unfinished() >= self._max_queued:
            raise self._full("explanations")
        request = {**form.model_dump(), "crops": [name for name in names if name in wanted]}
        return self.explanations.begin(
            analysis_id, request, partial(self._enqueue, Job.EXPLAIN, Priority.INTERACTIVE)
        )

    def _enqueue(self, job: Job, priority: Priority, connection: sa.Connection, job_id: str) -> None:
        self._queue.enqueue(connection, job, job_id, priority)

    def find_explanation(self, analysis_id: str, explanation_id: str) -> StoredExplanation:
        """Return an explanation; Problem 404 where the analysis has none of this id."""
        explanation = self.explanations.get(explanation_id)
        if explanation is None or explanation.analysis_id != analysis_id:
            raise Problem(404, f"the analysis has no explanation {explanation_id[:64]!r}; ask for it again")
        return explanation

    async def explained(self, explanation: StoredExplanation, within_s: float) -> StoredExplanation:
        """Return an explanation once it is over, or as it is after `within_s` seconds."""
        find = partial(self.find_explanation, explanation.analysis_id, explanation.id)
        return await _once_over(find, within_s, lambda left_s: asyncio.sleep(min(left_s, LOOK_S)))

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


async def _once_over(find: Callable[[], JobT], within_s: float, wait: Wait) -> JobT:
    give_up_at = time.monotonic() + within_s
    while True:
        found = await in_store(find)
        left_s = give_up_at - time.monotonic()
        if found.status.is_final or left_s <= 0:
            return found
        await wait(left_s)
