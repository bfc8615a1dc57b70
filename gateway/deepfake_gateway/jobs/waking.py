"""`Waking`: DBOS looks for analyses the moment one may be there, and not only when its interval is over.

A look costs some 3 ms of CPU time, so that none can come every few milliseconds. Whether anything was stored, SQLite
tells for some microseconds: that is asked instead. Where the database tells only by a query, the interval stays.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from dbos import DBOS
from dbos._queue import queue_worker_thread  # no other way to wake it; hence the upper bound of its version
from sqlalchemy.exc import SQLAlchemyError

from deepfake_gateway.jobs.queue import Job
from deepfake_gateway.store.records import Store

logger = logging.getLogger(__name__)

ASK_EVERY_S: Final = 0.02
LONGEST_RING_S: Final = 1.0
"""While an analysis waits that could be begun, DBOS is woken again, each time after twice as long: the job may be on
its way, and DBOS gives it only once the last one is put away."""
AWAY_S: Final = 1.0


class Waking(threading.Event):
    """What DBOS's thread of a queue waits with between two looks; such a wait ends at once when work is there."""

    def __init__(self, store: Store, is_free: Callable[[], bool]) -> None:
        super().__init__()
        self._store, self._is_free, self._rung = store, is_free, threading.Event()

    @property
    def wakes(self) -> bool:
        """Whether the database tells of changes; else only the interval counts."""
        with self._store.changes() as has_changed:
            return has_changed is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Return False, as an event that is not set, after `timeout` seconds or when work is there."""
        self._rung.wait(timeout)
        self._rung.clear()
        return False

    def take(self, dbos: DBOS, job: Job) -> None:
        """Take the jobs of a queue in threads of their own, as long as this process lives."""
        threading.Thread(target=self.follow, daemon=True).start()
        threading.Thread(target=self._look, args=(dbos, job), daemon=True).start()

    def _look(self, dbos: DBOS, job: Job) -> None:
        while True:
            try:
                if (queue := DBOS.retrieve_queue(job.value)) is not None:
                    queue_worker_thread(self, dbos, queue)
            except Exception:  # as DBOS's own threads, which are started again
                logger.exception("the queue %s is looked at again in %g s", job, AWAY_S)
            time.sleep(AWAY_S)

    def follow(self) -> None:
        """Ask whether anything was stored, and end `wait` while analyses wait that can be begun."""
        while True:
            try:
                with self._store.changes() as has_changed:
                    if has_changed is None:
                        return
                    waits, pause_s, ring_at = False, ASK_EVERY_S, 0.0
                    while True:
                        if has_changed():
                            waits = self._store.has_queued()
                        if not waits or not self._is_free():
                            pause_s, ring_at = ASK_EVERY_S, 0.0
                        elif time.monotonic() >= ring_at:
                            self._rung.set()
                            ring_at = time.monotonic() + pause_s
                            pause_s = min(2 * pause_s, LONGEST_RING_S)
                        time.sleep(ASK_EVERY_S)
            except SQLAlchemyError:  # the interval goes on
                time.sleep(AWAY_S)
