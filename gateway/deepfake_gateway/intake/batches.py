"""`BatchDesk`: takes files in that are sent, or named by their addresses, together, and removes them together."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from typing import Any, Self

import sqlalchemy as sa

from deepfake_client.transport.request_id import REQUEST_ID
from deepfake_gateway.intake.options import stored_options
from deepfake_gateway.intake.problems import Problem
from deepfake_gateway.intake.room import Room
from deepfake_gateway.intake.sink import MAX_NAME, Upload, printable_of
from deepfake_gateway.jobs.queue import Job, Priority, Queue
from deepfake_gateway.jobs.retention import remove
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.analysis import Analysis
from deepfake_gateway.store.batches import Batch, Batches, BatchItem, key_of
from deepfake_gateway.store.keys import Key, seen_with, tenant_of
from deepfake_gateway.store.media import Media
from deepfake_gateway.store.records import Store
from deepfake_gateway.store.threads import in_store
from deepfake_gateway.tracing import current_traceparent
from deepfake_preprocess.media.remote import without_password

Submit = Callable[[Upload, Mapping[str, Any]], Awaitable[Analysis]]
"""Takes one file in with its options, behind everything that somebody waits for; raises Problem."""


class BatchDesk:
    """Where batches begin and end, of all callers; `of` gives that of one."""

    def __init__(
        self, analyses: Store, media: Media, queue: Queue, room: Room, settings: Settings, submit: Submit
    ) -> None:
        self.store = Batches(analyses.engine)
        self._analyses, self._media, self._queue, self._room = analyses, media, queue, room
        self._max_frames, self._submit = settings.max_frames, submit
        self._key: Key | None = None

    def of(self, key: Key | None, submit: Submit) -> Self:
        """Return the desk of a caller, in which there is only what belongs to the key's tenant."""
        desk = copy(self)
        desk._key, desk._submit = key, submit
        desk.store = Batches(self._analyses.engine, seen_with(key))
        return desk

    async def submit(
        self, files: Sequence[Upload | tuple[str, Problem]], fields: Mapping[str, Any], name: str
    ) -> Batch:
        """Take several files in as one batch, behind everything that somebody waits for.

        A file that cannot be taken is an item that says why.

        Raises:
            Problem: 422 for options, 429 where not all of them may wait.
        """
        stored_options(fields, max_frames=self._max_frames)
        await in_store(self._room.check_analyses, len(files))
        items = []
        for file in files:
            if isinstance(file, tuple):
                items.append(BatchItem(file[0], refusal=file[1].detail))
                continue
            try:
                analysis = await self._submit(file, fields)
            except Problem as problem:
                items.append(BatchItem(file.file_name, refusal=problem.detail))
            else:
                items.append(BatchItem(file.file_name, analysis))
        return await in_store(self._begin, name, fields, items)

    async def submit_addresses(
        self, urls: Sequence[str], fields: Mapping[str, str], name: str, check: Callable[[str], None]
    ) -> Batch:
        """Take files in that a worker will fetch, as one batch, behind everything that somebody waits for.

        What `check` refuses as no address is an item that says why.

        Raises:
            Problem: 403 where no addresses are taken, 422 for options, 429 where not all of them may wait.
        """
        stored_options(fields, max_frames=self._max_frames)
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
        await in_store(self._room.check_analyses, len(items))
        return await in_store(self._begin, name, fields, items)

    def _begin(self, name: str, fields: Mapping[str, str], items: Sequence[BatchItem]) -> Batch:
        batch = Batch(
            id=secrets.token_hex(16),
            created_at=time.time(),
            name=name,
            items=tuple(items),
            fields=dict(fields),
            tenant=tenant_of(self._key),
            key_id=None if self._key is None else self._key.id,
            request_id=REQUEST_ID.get() or None,
            traceparent=current_traceparent(),
        )
        self.store.add(batch, self._enqueue)
        return batch

    def _enqueue(self, connection: sa.Connection, batch_id: str) -> None:
        self._queue.enqueue(connection, Job.GATHER, batch_id, Priority.BULK)

    def find(self, batch_id: str) -> Batch:
        """Return a batch; Problem 404 where there is none."""
        batch = self.store.get(batch_id)
        if batch is None:
            raise Problem(404, f"there is no batch {batch_id[:64]!r}; it was deleted, or the address is wrong")
        return batch

    def delete(self, batch_id: str) -> None:
        """Remove a batch with its analyses, as `remove` does; what is yet to be fetched is not any more."""
        of_tenant = self._analyses.of_tenant(self.find(batch_id).tenant)
        self.store.await_no_more(batch_id)  # first, so that none comes while the others go
        items = self.find(batch_id).items
        without = [key_of(batch_id, position) for position, item in enumerate(items) if item.analysis is None]
        unnoted = of_tenant.with_idempotency_keys(without)  # by workers that died before they did
        noted = [item.analysis.id for item in items if item.analysis is not None]
        remove(of_tenant, self._media, self._queue, *noted, *unnoted)
        self.store.delete(batch_id)  # last, so that it can be asked for again where media are away
        self._queue.forget(batch_id)
