"""The job of a batch whose files are named by their addresses: each is fetched, and handed in like an upload.

A worker that died goes on with the files that are yet to be fetched.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoAnswerError

from deepfake_client.transport.request_id import REQUEST_ID
from deepfake_gateway.intake.fetching import Fetcher
from deepfake_gateway.intake.problems import Problem
from deepfake_gateway.intake.sink import Sink
from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.jobs.queue import Priority
from deepfake_gateway.jobs.running import stored
from deepfake_gateway.logs import first_line
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.analysis import Analysis
from deepfake_gateway.store.batches import Batch, key_of
from deepfake_gateway.store.keys import Keys
from deepfake_gateway.store.media import MediaAwayError
from deepfake_gateway.store.threads import in_media, in_store
from deepfake_gateway.tracing import traced
from deepfake_preprocess.support.pauses import Pauses

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Gathering:
    """Fetches the files of batches: so many at once as uploads of a key, and of all together, may be on their way."""

    def __init__(self, desk: Desk, settings: Settings) -> None:
        self._desk, self._keys = desk, Keys(desk.store.engine)
        self._max_bytes = settings.max_upload_bytes
        self._fetcher = Fetcher(settings, nullcontext)
        self._of_all = asyncio.Semaphore(settings.uploads_in_all)
        self._of_key: defaultdict[str | None, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(settings.uploads_at_once)
        )

    async def run(self, batch_id: str) -> None:
        """Bring the files of a batch in, or note why they cannot be."""
        batch = await stored(self._desk.batches.store.get, batch_id)
        if batch is None:
            return
        key = None if batch.key_id is None else await stored(self._keys.get, batch.key_id)
        desk = self._desk.of(key)
        REQUEST_ID.set(batch.request_id or "")
        with traced("gather", {"deepfake.batch": batch_id}, parent=batch.traceparent):
            await asyncio.gather(
                *(
                    self._bring(desk, batch, position, item.url)
                    for position, item in enumerate(batch.items)
                    if item.url is not None
                )
            )

    async def _bring(self, desk: Desk, batch: Batch, position: int, url: str) -> None:
        analysis: Analysis | None = None
        refusal: str | None = None
        async with self._of_key[batch.key_id], self._of_all:
            try:
                analysis = await _once_there(partial(self._fetched, desk, batch, position, url))
            except Problem as problem:
                refusal = problem.detail
            except Exception as exc:  # a file of which nothing becomes would be waited for forever
                logger.exception("a file of the batch %s cannot be taken in", batch.id)
                refusal = f"the gateway failed ({type(exc).__name__}); send it again, and report it if it fails again"
        is_wanted = await stored(self._desk.batches.store.settle, batch.id, position, analysis, refusal)
        if not is_wanted and analysis is not None and analysis.idempotency_key == key_of(batch.id, position):
            await _once_there(partial(in_media, desk.remove, analysis.id))

    async def _fetched(self, desk: Desk, batch: Batch, position: int, url: str) -> Analysis | None:
        """Return the analysis of a file: that of before the worker died, or a new one.

        None where the file is awaited no more, for the batch was deleted.
        """
        only = key_of(batch.id, position)
        is_awaited = partial(in_store, self._desk.batches.store.awaits, batch.id, position)
        if not await is_awaited():
            return None
        before = await in_store(desk.store.with_idempotency_key, only)
        if before is not None:
            return before
        sink = Sink(desk.media.new_upload(), self._max_bytes)
        try:
            await self._fetcher.fetch(url, sink)
            upload = sink.finished(("urls",))
            if not await is_awaited():
                return None
            submitted = await desk.submit(
                upload, batch.fields, idempotency_key=only, priority=Priority.BULK, is_awaited=True
            )
        finally:
            sink.discard()
        return submitted.analysis


async def _once_there(do: Callable[[], Awaitable[T]]) -> T:
    """Return what comes of doing something, however long the database or where media are kept is away."""
    pauses = Pauses()
    while True:
        try:
            return await do()
        except (OperationalError, InterfaceError, NoAnswerError, MediaAwayError) as exc:
            logger.warning("a batch's file has to wait (%s); next try in %g s", first_line(exc), pauses.next_s)
        await pauses.take()
