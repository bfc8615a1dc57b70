"""A verdict service in this process: the real application, store and jobs, with a model that a function stands for.

Import it as ``gateways`` (see conftest.py).
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

from fastapi.testclient import TestClient
from fixed_detector import LEFT, FixedDetector

from deepfake_client import AsyncDeepfakeClient, ModelSpec
from deepfake_client.transport.testing import FakeTransport
from deepfake_gateway.app import build_app
from deepfake_gateway.jobs.running import run_job
from deepfake_gateway.sandbox.child import options_of
from deepfake_gateway.sandbox.process import TaskError
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.records import Store
from deepfake_preprocess.errors import DeepfakeError

SPEC = ModelSpec("fake_model", "timm:efficientnet_b0", checkpoint_sha256="ab" * 32, threshold=0.3)


class ThreadQueue:
    """Runs each job in a thread; `hold` keeps jobs from being started, `started` and `canceled` count."""

    def __init__(self, store, media):
        self.store, self.media = store, media
        self.threads = []
        self.runs = 0
        self.hold = threading.Event()
        self.hold.set()
        self.slow = False
        self.working, self.canceled = threading.Event(), threading.Event()

    def enqueue(self, connection, analysis_id, priority):
        thread = threading.Thread(target=self._run, args=(analysis_id,))
        self.threads.append(thread)
        thread.start()

    def forget(self, analysis_id):
        pass

    def close(self):
        self.hold.set()
        for thread in self.threads:
            thread.join()

    def _run(self, analysis_id):
        self.hold.wait()
        while self.store.get(analysis_id) is None:  # until the transaction that queued it is through
            time.sleep(0.005)
        asyncio.run(run_job(self.store, analysis_id, self.work, server_wait_s=0))

    async def work(self, analysis, on_progress):
        self.runs += 1
        self.working.set()
        if self.slow:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.canceled.set()
                raise
        async with AsyncDeepfakeClient(FakeTransport(spec=SPEC), detector=FixedDetector(LEFT)) as client:
            path = self.media.path(analysis.id)
            try:
                verdict = await client.analyze(path, options=options_of(analysis.options))
            except DeepfakeError as exc:
                raise TaskError(type(exc).__name__, str(exc)) from exc
        return replace(verdict, source=analysis.file_name).to_dict()


async def ask_models():
    async with AsyncDeepfakeClient(FakeTransport(spec=SPEC)) as client:
        return [await client.model()]


@contextmanager
def gateway(data_dir, **settings):
    """Yield a client of a service whose data lie in `data_dir`; its queue is ``client.queue``."""
    data_dir.mkdir(exist_ok=True)
    settings = Settings.of(data_dir=data_dir, **settings)
    store = Store(settings.database_url)
    queue = ThreadQueue(store, None)
    app = build_app(settings, store, queue, ask_models)
    queue.media = app.state.desk.media
    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as client:
        client.queue, client.desk = queue, app.state.desk
        yield client
