"""The worker: a process that takes analyses off the queue until it is stopped.

Started as ``python -m deepfake_gateway.worker``, with its settings in the environment. What it was working on
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
from deepfake_gateway.intake.gathering import Gathering
from deepfake_gateway.intake.submission import Desk, ask_models
from deepfake_gateway.jobs.delivering import deliver_all
from deepfake_gateway.jobs.evidence import Evidence
from deepfake_gateway.jobs.explaining import ServiceExplain, patient, run_explanation
from deepfake_gateway.jobs.queue import APPLICATION, APPLICATION_VERSION, DurableQueue, Job, Queue
from deepfake_gateway.jobs.retention import PURGE_EVERY_S, purge
from deepfake_gateway.jobs.running import SandboxedWork, WithinQuota, run_job, stored
from deepfake_gateway.jobs.waking import Waking
from deepfake_gateway.jobs.watching import SandboxedWatch, run_watch
from deepfake_gateway.logs import first_line, set_up_logs
from deepfake_gateway.sandbox.limits import limits_of
from deepfake_gateway.sandbox.process import SandboxPool
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.bucket import media_of
from deepfake_gateway.store.media import Media, MediaAwayError
from deepfake_gateway.store.records import Store
from deepfake_gateway.store.usage import Quotas
from deepfake_gateway.store.watches import Watches
from deepfake_gateway.store.webhooks import Webhooks
from deepfake_gateway.tracing import end_traces, set_up_traces
from deepfake_preprocess.errors import DeepfakeError
from deepfake_preprocess.support.limits import end_with_parent

logger = logging.getLogger(__name__)

PICK_UP_S: Final = {Job.ANALYZE: 0.25, Job.EXPLAIN: 0.5, Job.WATCH: 1.0, Job.GATHER: 1.0}
"""How often a queue is looked at: somebody waits, and a look costs some 3 ms of CPU time."""
WOKEN_S: Final = 1.0
"""The same where `Waking` says when analyses wait: those that a dead worker began wait as well."""
SELDOM_S: Final = 10.0
"""The same where the settings begin no such jobs: there may be some of a time when they did."""
SEEN_EVERY_S: Final = 2.0
LOST_LOOK_S: Final = 10.0
"""A job that twice in a row is this worker's and not under way is taken up again."""
BATCHES_AT_ONCE: Final = 8
"""Batches whose files a worker fetches at once, so that a large one does not hold up the others."""
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
    quotas = Quotas(store.engine, settings.seconds_per_day)
    sandboxed, explain = (
        WithinQuota(SandboxedWork(pool, media), quotas),
        patient(ServiceExplain(settings), settings.server_wait_s),
    )
    # A pool of its own, so that somebody who looks at a result does not wait behind long analyses.
    looking = SandboxPool(EXPLAIN_CONCURRENCY, limits_of(settings), transport, settings.model)
    evidence = Evidence(media, looking.run)
    queue = await stored(DurableQueue, settings.database_url)
    gathering = Gathering(Desk(store, media, queue, partial(ask_models, settings), looking.run, settings), settings)

    async def analyze(analysis_id: str) -> None:
        await run_job(store, analysis_id, sandboxed, server_wait_s=settings.server_wait_s)
        if settings.media_hours == 0:
            with suppress(MediaAwayError):  # then `purge` does it
                await asyncio.to_thread(media.delete, analysis_id)

    jobs: dict[Job, tuple[int, RunJob]] = {
        Job.ANALYZE: (settings.concurrency, analyze),
        Job.EXPLAIN: (EXPLAIN_CONCURRENCY, partial(run_explanation, store, media, evidence, explain=explain)),
        Job.WATCH: (
            settings.watches_in_all,
            partial(
                run_watch,
                Watches(store.engine),
                follow=SandboxedWatch(settings, transport),
                server_wait_s=settings.server_wait_s,
            ),
        ),
        Job.GATHER: (BATCHES_AT_ONCE, gathering.run),
    }
    under_way: dict[str, Job] = {}

    def is_free() -> bool:
        return list(under_way.values()).count(Job.ANALYZE) < settings.concurrency

    await asyncio.to_thread(_launch, settings, jobs, loop, under_way, Waking(store, is_free))
    beside = [
        asyncio.create_task(_take_up_lost(settings.worker_name, under_way)),
        asyncio.create_task(_purge_now_and_then(store, media, queue, settings)),
        asyncio.create_task(deliver_all(Webhooks(store.engine), Addresses.of(settings.allowed_networks))),
    ]
    while not stop.is_set():
        with suppress(SQLAlchemyError):  # while the database is away, nobody can ask who is alive
            await asyncio.to_thread(store.worker_seen, settings.worker_name)
        try:
            await asyncio.wait_for(stop.wait(), SEEN_EVERY_S)
        except TimeoutError:
            continue
    for task in beside:
        task.cancel()
    # Nothing is waited for, and above all not canceled: a canceled job would be over, an unfinished one is durable.
    # The sandboxes end with this process.
    end_traces()
    logging.shutdown()
    os._exit(0)


async def _purge_now_and_then(store: Store, media: Media, queue: Queue, settings: Settings) -> None:
    while True:
        try:
            await asyncio.to_thread(purge, store, media, queue, settings)
        except (SQLAlchemyError, OSError) as exc:
            logger.warning("what is over cannot be removed now (%s); it is tried again", first_line(exc))
        await asyncio.sleep(PURGE_EVERY_S)


async def _take_up_lost(worker_name: str, under_way: dict[str, Job]) -> None:
    """Queue jobs again that DBOS took off their queue for this worker, and could not begin.

    That is so where the database went away before it answered. DBOS itself would begin them with the next start.
    """
    missed: set[str] = set()
    while True:
        await asyncio.sleep(LOST_LOOK_S)
        try:
            missed = await asyncio.to_thread(_resume_missed, worker_name, under_way, missed)
        except SQLAlchemyError:
            logger.warning("the database is away; whether jobs were lost with it is looked at later")


def _resume_missed(worker_name: str, under_way: dict[str, Job], before: set[str]) -> set[str]:
    """Queue jobs again that are missed now and were `before`; returns the others that are missed."""
    pending = DBOS.list_workflows(status="PENDING", executor_id=worker_name, load_input=False, load_output=False)
    missed = {job.workflow_id: job.name for job in pending if job.workflow_id not in under_way}
    for job_id in missed.keys() & before:
        logger.warning("the job %s was not begun and is queued again", job_id)
        DBOS.resume_workflow(job_id, queue_name=missed.pop(job_id))
    return set(missed)


def _launch(
    settings: Settings,
    jobs: dict[Job, tuple[int, RunJob]],
    loop: asyncio.AbstractEventLoop,
    under_way: dict[str, Job],
    waking: Waking,
) -> None:
    dbos = DBOS(
        config={
            "name": APPLICATION,
            "system_database_url": settings.database_url,
            "application_version": APPLICATION_VERSION,
            "executor_id": settings.worker_name,
            "log_level": "WARNING",
            "notification_listener_polling_interval_sec": 60.0,  # jobs send each other nothing
        }
    )
    for job, (_, run) in jobs.items():
        DBOS.workflow(name=job.value)(_on_loop(job, run, loop, under_way))
    DBOS.listen_queues([job.value for job in jobs if job is not Job.ANALYZE])
    DBOS.launch()
    begun = {
        Job.ANALYZE: True,
        Job.EXPLAIN: settings.explain_url is not None,
        Job.WATCH: settings.url_intake,
        Job.GATHER: settings.url_intake,
    }
    for job, (concurrency, _) in jobs.items():
        pick_up_s = PICK_UP_S[job] if begun[job] else SELDOM_S
        if job is Job.ANALYZE and waking.wakes:
            pick_up_s = WOKEN_S
        DBOS.register_queue(job.value, worker_concurrency=concurrency, polling_interval_sec=pick_up_s)
    waking.take(dbos, Job.ANALYZE)


def _on_loop(
    kind: Job, run: RunJob, loop: asyncio.AbstractEventLoop, under_way: dict[str, Job]
) -> Callable[[str], None]:
    """DBOS runs a job in a thread of its own; all that is asynchronous stays in this one loop."""

    def job(job_id: str) -> None:
        under_way[job_id] = kind
        try:
            asyncio.run_coroutine_threadsafe(run(job_id), loop).result()
        finally:
            under_way.pop(job_id, None)

    return job


def main() -> None:
    """Run a worker with the settings of the environment."""
    end_with_parent()
    try:
        settings = Settings.of()
        set_up_logs(settings.log_format, settings.log_level)
        set_up_traces("worker")
        asyncio.run(work(settings))
    except DeepfakeError as exc:  # whoever started this process starts another
        raise SystemExit(f"the worker cannot start: {exc}") from None


if __name__ == "__main__":
    main()
