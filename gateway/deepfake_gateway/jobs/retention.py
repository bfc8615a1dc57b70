"""How analyses are removed; and what is, once its time is over: media, results, and uploads that broke off."""

from __future__ import annotations

import logging
import time
from typing import Final

from deepfake_gateway.jobs.queue import Queue
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.batches import Batches
from deepfake_gateway.store.media import Media
from deepfake_gateway.store.records import Store
from deepfake_gateway.store.watches import Watches

logger = logging.getLogger(__name__)

PURGE_EVERY_S: Final = 60.0
BROKEN_OFF_S: Final = 24 * 3600.0
"""An upload, or a medium that no analysis was recorded for, is left over from a gateway that was killed."""


def remove(store: Store, media: Media, queue: Queue, analysis_id: str) -> None:
    """Remove what there is of an analysis: its medium, its reports and its result; one that runs is ended."""
    store.cancel(analysis_id)
    store.delete(analysis_id)
    media.delete(analysis_id)
    queue.forget(analysis_id)


def purge(store: Store, media: Media, queue: Queue, settings: Settings) -> None:
    """Remove what has been there for long enough; workers may do so at the same time."""
    now = time.time()
    media.discard_uploads(now - BROKEN_OFF_S)
    for analysis_id in media.kept():
        analysis = store.get(analysis_id)
        if analysis is None:
            over = media.kept_since(analysis_id) < now - BROKEN_OFF_S
        else:
            until = settings.media_until(analysis.finished_at)
            over = until is not None and until <= now
        if over:
            media.delete(analysis_id)
    for analysis_id in store.finished_before(now - settings.results_s):
        media.delete(analysis_id)
        store.delete(analysis_id)
        queue.forget(analysis_id)
        logger.info("analysis %s was removed, its time is over", analysis_id)
    batches = Batches(store.engine)
    for batch_id in batches.over_before(now - settings.results_s):
        batches.delete(batch_id)
        queue.forget(batch_id)
    watches = Watches(store.engine)
    for watch_id in watches.finished_before(now - settings.results_s):
        watches.delete(watch_id)
        queue.forget(watch_id)
