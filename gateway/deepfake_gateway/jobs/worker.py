"""The worker: a process that takes analyses off the queue until it is stopped.

Started as ``python -m deepfake_gateway.jobs.worker``, with its settings in the environment. What it was working on
when it was killed, it takes up again when it is started under the same name.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from typing import Final

from dbos import DBOS

from deepfake_gateway.jobs.queue import APPLICATION, APPLICATION_VERSION, QUEUE, WORKFLOW
from deepfake_gateway.jobs.running import SandboxedWork, run_job
from deepfake_gateway.sandbox.limits import end_with_parent, limits_of
from deepfake_gateway.sandbox.process import SandboxPool
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.media import MediaFolder
from deepfake_gateway.store.records import Store

PICK_UP_S: Final = 0.1
"""How often the queue is looked at: somebody waits for an interactive job."""
SEEN_EVERY_S: Final = 2.0


async def work(settings: Settings) -> None:
    """Take jobs until SIGTERM or SIGINT; unfinished ones are taken up by the next start."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    store, media = Store(settings.database_url), MediaFolder(settings.data_dir)
    pool = SandboxPool(settings.concurrency, limits_of(settings), url=settings.url, model=settings.model)
    await pool.start()
    sandboxed = SandboxedWork(pool, media)

    # DBOS runs it in a thread of its own; all that is asynchronous stays in this one loop.
    def analyze(analysis_id: str) -> None:
        job = run_job(store, analysis_id, sandboxed, server_wait_s=settings.server_wait_s)
        asyncio.run_coroutine_threadsafe(job, loop).result()

    await asyncio.to_thread(_launch, settings, analyze)
    while not stop.is_set():
        await asyncio.to_thread(store.worker_seen, settings.worker_name)
        try:
            await asyncio.wait_for(stop.wait(), SEEN_EVERY_S)
        except TimeoutError:
            continue
    # Nothing is waited for, and above all not canceled: a canceled job would be over, an unfinished one is durable.
    # The sandboxes end with this process.
    logging.shutdown()
    os._exit(0)


def _launch(settings: Settings, analyze: Callable[[str], None]) -> None:
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
    DBOS.workflow(name=WORKFLOW)(analyze)
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=settings.concurrency, polling_interval_sec=PICK_UP_S)


def main() -> None:
    """Run a worker with the settings of the environment."""
    end_with_parent()
    asyncio.run(work(Settings.of()))


if __name__ == "__main__":
    main()
