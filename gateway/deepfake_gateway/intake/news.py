"""`News`: wakes the requests that wait for an analysis, with one look at the database for all of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Final, TypeAlias, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from deepfake_gateway.store.analysis import Analysis
from deepfake_gateway.store.explanations import StoredExplanation
from deepfake_gateway.store.records import HasChanged, Store
from deepfake_gateway.store.threads import in_store

SHORTEST_LOOK_S, LONGEST_LOOK_S = 0.05, 0.25
LATE_PART: Final = 20
"""Where a look is a query, it comes at intervals of this part of the time since somebody last began to wait. SQLite
says at once whether anything was stored."""
UNPROMPTED_S: Final = 2.0
"""Who waits looks so often all the same: what is deleted says nothing."""
AWAY_S: Final = 1.0
"""Between looks at a database that gives no answer."""
OVERLAP: Final = 32
"""Events that are looked at again: with several writers, Postgres may show one after others with higher ids."""

logger = logging.getLogger(__name__)

Wait: TypeAlias = Callable[[float], Awaitable[None]]
"""Returns when there may be news, at the latest after that many seconds."""

JobT = TypeVar("JobT", Analysis, StoredExplanation)


class News:
    """What happens to analyses, as far as somebody waits for it; belongs to one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: defaultdict[str, list[asyncio.Event]] = defaultdict(list)
        self._known: set[int] = set()
        self._latest_at = float("-inf")
        self._looking: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def about(self, analysis_id: str) -> AsyncIterator[Wait]:
        """Yield how to wait for news of an analysis; what came since the last wait, or since the start, is news."""
        changed = asyncio.Event()
        self._waiting[analysis_id].append(changed)
        self._latest_at = time.monotonic()
        try:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look())

            async def wait(within_s: float) -> None:
                try:
                    async with asyncio.timeout(min(within_s, UNPROMPTED_S)):
                        await changed.wait()
                except TimeoutError:
                    pass
                changed.clear()

            yield wait
        finally:
            self._waiting[analysis_id].remove(changed)
            if not self._waiting[analysis_id]:
                del self._waiting[analysis_id]

    async def _look(self) -> None:
        """Look as long as somebody waits. The first look knows nothing and wakes all that wait."""
        self._known = set()
        while self._waiting:
            try:
                with ExitStack() as stack:
                    has_changed = await in_store(stack.enter_context, self._store.changes())
                    while self._waiting:
                        await self._look_once(has_changed)
            except SQLAlchemyError as exc:
                logger.debug("no news: the database gives no answer (%s)", exc)
                await asyncio.sleep(AWAY_S)

    async def _look_once(self, has_changed: HasChanged | None) -> None:
        """Wake those of whom there is news, and wait until the next look."""
        pause_s = SHORTEST_LOOK_S
        if has_changed is None:
            waited_s = time.monotonic() - self._latest_at
            pause_s = min(LONGEST_LOOK_S, max(pause_s, waited_s / LATE_PART))
        if has_changed is None or has_changed():
            latest = await in_store(self._store.latest_events, OVERLAP)
            for analysis_id in {latest[number] for number in latest.keys() - self._known}:
                for changed in self._waiting.get(analysis_id, ()):
                    changed.set()
            self._known = set(latest)
        await asyncio.sleep(pause_s)


async def once_over(find: Callable[[], JobT], within_s: float, wait: Wait) -> JobT:
    """Return what is found once it is over, or as it is after `within_s` seconds."""
    give_up_at = time.monotonic() + within_s
    while True:
        found = await in_store(find)
        left_s = give_up_at - time.monotonic()
        if found.status.is_final or left_s <= 0:
            return found
        await wait(left_s)
