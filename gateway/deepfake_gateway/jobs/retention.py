"""How analyses are removed; and what is, once its time is over: media, results, and uploads that broke off."""

from __future__ import annotations

import logging
import time
from typing import Final

from deepfake_gateway.jobs.queue import Queue
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.batches import Batches
from deepfake_gateway.store.explanations import Explanations
from deepfake_gateway.store.media import Media
from deepfake_gateway.store.records import Store
from deepfake_gateway.store.watches import Watches

logger = logging.getLogger(__name__)

PURGE_EVERY_S: Final = 60.0
BROKEN_OFF_S: Final = 24 * 3600.0
"""An upload, or a medium that no analysis was recorded for, is left over from a gateway that was killed."""


def remove(store: Store, media: Media, queue: Queue, *analysis_ids: str) -> None:
    """Remove what there is of analyses: media, reports, results and explanations; those that run are ended.

    The results go last, so that it can be asked for again where media are away. An explanation needs the medium: none
    is begun once that is gone.
    """
    if not analysis_ids:
        return
    store.cancel(*analysis_ids)
    for analysis_id in analysis_ids:
        media.delete(analysis_id)
    queue.forget(*analysis_ids, *Explanations(store.engine).ids_of(*analysis_ids))
    store.delete(*analysis_ids)


def purge(store: Store, media: Media, queue: Queue, settings: Settings) -> None:
    """Remove what has been there for long enough; workers may do so at the same time."""
    now = time.time()
    media.discard_uploads(now - BROKEN_OFF_S)
    for analysis_id in media.kept():
        analysis = store.get(analysis_id)
        if analysis is None:
            is_over = media.kept_since(analysis_id) < now - BROKEN_OFF_S
        else:
            until = settings.media_until(analysis.finished_at)
            is_over = until is not None and until <= now
        if is_over:
            media.delete(analysis_id)
    over = store.finished_before(now - settings.results_s)
    remove(store, media, queue, *over)
    for analysis_id in over:
        logger.info("analysis %s was removed, its time is over", analysis_id)
    batches = Batches(store.engine)
    for batch_id in batches.over_before(now - settings.results_s):
        batches.delete(batch_id)
        queue.forget(batch_id)
    watches = Watches(store.engine)
    for watch_id in watches.finished_before(now - settings.results_s):
        watches.delete(watch_id)
        queue.forget(watch_id)
