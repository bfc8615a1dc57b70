"""The worker: a process that takes analyses off the queue until it is stopped.

Started as ``python -m deepfake_gateway.jobs.worker``, with its settings in the environment. What it was working on
when it was killed, it takes up again when it is started under the same name.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final

from dbos import DBOS
from sqlalchemy.exc import SQLAlchemyError

from deepfake_client.transport.connect import connect
from deepfake_gateway.addresses import Addresses
from deepfake_gateway.jobs.delivering import deliver_all
from deepfake_gateway.jobs.evidence import Evidence
from deepfake_gateway.jobs.explaining import ServiceExplain, run_explanation
from deepfake_gateway.jobs.queue import APPLICATION, APPLICATION_VERSION, DurableQueue, Job
from deepfake_gateway.jobs.retention import PURGE_EVERY_S, purge
from deepfake_gateway.jobs.running import SandboxedWork, run_job
from deepfake_gateway.sandbox.limits import limits_of
from deepfake_gateway.sandbox.process import SandboxPool
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.bucket import media_of
from deepfake_gateway.store.media import Media, MediaAwayError
from deepfake_gateway.store.records import Store
from deepfake_gateway.store.webhooks import Webhooks
from deepfake_preprocess.support.limits import end_with_parent

logger = logging.getLogger(__name__)

PICK_UP_S: Final = 0.1
"""How often the queue of analyses is looked at: somebody waits. A look costs some 4 ms of CPU time."""
PICK_UP_OTHERS_S: Final = 0.5
"""The same of the other queues."""
SEEN_EVERY_S: Final = 2.0
EXPLAIN_CONCURRENCY: Final = 1
"""The explain service takes one face at a time."""

RunJob = Callable[[str], Coroutine[Any, Any, None]]
"""Brings the job with an id to its end."""


async def work(settings: Settings) -> None:
    """Take jobs until SIGTERM or SIGINT; unfinished ones are taken up by the next start."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    store, media = Store(settings.database_url), media_of(settings)
    transport = connect(settings.connection)
    pool = SandboxPool(settings.concurrency, limits_of(settings), transport, settings.model)
    await pool.start()
    sandboxed, explain = SandboxedWork(pool, media), ServiceExplain(settings)
    # A pool of its own, so that somebody who looks at a result does not wait behind long analyses.
    looking = SandboxPool(EXPLAIN_CONCURRENCY, limits_of(settings), transport, settings.model)
    evidence = Evidence(media, looking.run)

    async def analyze(analysis_id: str) -> None:
        await run_job(store, analysis_id, sandboxed, server_wait_s=settings.server_wait_s)
        if settings.media_hours == 0:
            with suppress(MediaAwayError):  # then `purge` does it
                await asyncio.to_thread(media.delete, analysis_id)

    jobs: dict[Job, tuple[int, RunJob]] = {
        Job.ANALYZE: (settings.concurrency, analyze),
        Job.EXPLAIN: (EXPLAIN_CONCURRENCY, partial(run_explanation, store, media, evidence, explain=explain)),
    }
    await asyncio.to_thread(_launch, settings, jobs, loop)
    beside = [
        asyncio.create_task(_purge_now_and_then(store, media, settings)),
        asyncio.create_task(deliver_all(Webhooks(store.engine), Addresses.of(settings.allowed_networks))),
    ]
    while not stop.is_set():
        await asyncio.to_thread(store.worker_seen, settings.worker_name)
        try:
            await asyncio.wait_for(stop.wait(), SEEN_EVERY_S)
        except TimeoutError:
            continue
    for task in beside:
        task.cancel()
    # Nothing is waited for, and above all not canceled: a canceled job would be over, an unfinished one is durable.
    # The sandboxes end with this process.
    logging.shutdown()
    os._exit(0)


async def _purge_now_and_then(store: Store, media: Media, settings: Settings) -> None:
    queue = await asyncio.to_thread(DurableQueue, settings.database_url)
    while True:
        try:
            await asyncio.to_thread(purge, store, media, queue, settings)
        except (SQLAlchemyError, OSError):
            logger.exception("what is over could not be removed; it is tried again")
        await asyncio.sleep(PURGE_EVERY_S)


def _launch(settings: Settings, jobs: dict[Job, tuple[int, RunJob]], loop: asyncio.AbstractEventLoop) -> None:
    logging.getLogger("dbos").setLevel(logging.WARNING)
    DBOS(
        config={
            "name": APPLICATION,
            "system_database_url": settings.database_url,
            "application_version": APPLICATION_VERSION,
            "executor_id": settings.worker_name,
            "log_level": "WARNING",
        }
    )
    for job, (_, run) in jobs.items():
        DBOS.workflow(name=job.value)(_on_loop(run, loop))
    DBOS.launch()
    for job, (concurrency, _) in jobs.items():
        pick_up_s = PICK_UP_S if job is Job.ANALYZE else PICK_UP_OTHERS_S
        DBOS.register_queue(job.value, worker_concurrency=concurrency, polling_interval_sec=pick_up_s)


def _on_loop(run: RunJob, loop: asyncio.AbstractEventLoop) -> Callable[[str], None]:
    """DBOS runs a job in a thread of its own; all that is asynchronous stays in this one loop."""

    def job(job_id: str) -> None:
        asyncio.run_coroutine_threadsafe(run(job_id), loop).result()

    return job


def main() -> None:
    """Run a worker with the settings of the environment."""
    end_with_parent()
    asyncio.run(work(Settings.of()))


if __name__ == "__main__":
    main()
