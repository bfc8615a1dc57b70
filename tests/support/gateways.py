"""A verdict service in this process: the real application, store and jobs, with a model that a function stands for.

Import it as ``gateways`` (see conftest.py).
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from fastapi.testclient import TestClient
from fixed_detector import LEFT, FixedDetector

from deepfake_client import AsyncDeepfakeClient, DeepfakeClient, ModelSpec, WatchOptions
from deepfake_client.explain.types import Explanation
from deepfake_client.transport.testing import FakeTransport
from deepfake_gateway.app import build_app
from deepfake_gateway.intake.connections import server_of
from deepfake_gateway.intake.gathering import Gathering
from deepfake_gateway.jobs.evidence import Evidence
from deepfake_gateway.jobs.explaining import patient, run_explanation
from deepfake_gateway.jobs.queue import Job
from deepfake_gateway.jobs.running import WithinQuota, run_job
from deepfake_gateway.jobs.watching import run_watch
from deepfake_gateway.sandbox.child import options_of, result_of
from deepfake_gateway.sandbox.limits import limits_of
from deepfake_gateway.sandbox.process import TaskError
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.explanations import Explanations
from deepfake_gateway.store.records import Store
from deepfake_gateway.store.usage import Quotas
from deepfake_gateway.store.watches import Watches
from deepfake_preprocess.errors import DeepfakeError, ExplainDisagreementError, ServerUnavailableError
from deepfake_preprocess.support.sockets import listening

SPEC = ModelSpec("fake_model", "timm:efficientnet_b0", checkpoint_sha256="ab" * 32, threshold=0.3)
LIMITS = limits_of(Settings())
BEGUN = {"frames_done": 0, "frames_expected": 4, "faces_scored": 0, "label": None, "fake_probability": None}


class ThreadQueue:
    """Runs each job in a thread; `hold` keeps jobs from being started, `started` and `canceled` count."""

    def __init__(self, store, media):
        self.store, self.media = store, media
        self.threads = []
        self.runs = 0
        self.hold = threading.Event()
        self.hold.set()
        self.slow = self.disagrees = False
        self.num_away = 0  # times that the explain service is not there
        self.working, self.canceled = threading.Event(), threading.Event()

    def enqueue(self, connection, job, job_id, priority):
        run = {Job.ANALYZE: self._run, Job.EXPLAIN: self._explain, Job.WATCH: self._watch, Job.GATHER: self._gather}[
            job
        ]
        thread = threading.Thread(target=run, args=(job_id,))
        self.threads.append(thread)
        thread.start()

    def forget(self, *job_ids):
        pass

    def close(self):
        self.hold.set()
        for thread in self.threads:
            thread.join()

    def _run(self, analysis_id):
        self.hold.wait()
        while self.store.get(analysis_id) is None:  # until the transaction that queued it is through
            time.sleep(0.005)
        quotas = Quotas(self.store.engine, self.settings.seconds_per_day)
        asyncio.run(run_job(self.store, analysis_id, WithinQuota(self.work, quotas), server_wait_s=0))

    def _explain(self, explanation_id):
        self.hold.wait()
        explanations = Explanations(self.store.engine)
        while explanations.get(explanation_id) is None:
            time.sleep(0.005)
        evidence = Evidence(self.media, InThread().run)
        asyncio.run(run_explanation(self.store, self.media, evidence, explanation_id, patient(self.explain, 60)))

    def _watch(self, watch_id):
        self.hold.wait()
        watches = Watches(self.store.engine)
        while watches.get(watch_id) is None:
            time.sleep(0.005)
        asyncio.run(run_watch(watches, watch_id, self.follow, server_wait_s=0))

    def _gather(self, batch_id):
        self.hold.wait()
        while self.desk.batches.store.get(batch_id) is None:
            time.sleep(0.005)
        asyncio.run(Gathering(self.desk, self.settings).run(batch_id))

    async def follow(self, watch, on_progress):
        """Watch a face for some seconds, and with `slow` wait for more."""
        frames = [np.full((60, 80, 3), 200, np.uint8)] * 50
        options = WatchOptions(**watch.options)
        async with AsyncDeepfakeClient(FakeTransport(spec=SPEC), detector=FixedDetector(LEFT)) as client:
            async for verdict in client.watch(frames, options=options):
                on_progress(replace(verdict, source=watch.name).to_dict())
        self.working.set()
        if self.slow:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.canceled.set()
                raise

    async def explain(self, verdict, crops, options):
        """Give each crop a heatmap of its own brightness."""
        if self.num_away:
            self.num_away -= 1
            raise ServerUnavailableError("no explain service answers")
        if self.disagrees:
            raise ExplainDisagreementError("PyTorch gives 0.1 and the server 0.9")
        return [
            Explanation(
                crop.rgb()[..., 0] / np.float32(255), crop.rgb(), 0.5, 0.5, 1e-4, options.method,
                options.layer or "bn2", SPEC.checkpoint_sha256,
            )
            for crop in crops
        ]  # fmt: skip

    async def work(self, analysis, on_progress):
        self.runs += 1
        self.working.set()
        if self.slow:
            on_progress(BEGUN)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.canceled.set()
                raise
        async with AsyncDeepfakeClient(FakeTransport(spec=SPEC), detector=FixedDetector(LEFT)) as client:
            try:
                with self.media.local(analysis.id) as path:
                    verdict = await client.analyze(path, options=options_of(analysis.options))
            except DeepfakeError as exc:
                raise TaskError(type(exc).__name__, str(exc)) from exc
        return replace(verdict, source=analysis.file_name).to_dict()


class InThread:
    """Does a sandbox's tasks in a thread of this process."""

    def __init__(self):
        self.tasks = []

    async def run(self, task, on_progress=None):
        self.tasks.append(task["kind"])

        def do():
            with (
                DeepfakeClient(FakeTransport(spec=SPEC), detector=FixedDetector(LEFT)) as client,
                Path(task["path"]).open("rb") as medium,
            ):
                return result_of(client, medium, task, LIMITS, print)

        result = await asyncio.to_thread(do)
        if "error" in result:
            raise TaskError(result["error"], result["detail"])
        return result

    async def close(self):
        pass


async def ask_models():
    async with AsyncDeepfakeClient(FakeTransport(spec=SPEC)) as client:
        return [await client.model()]


def _parts(data_dir, settings):
    data_dir.mkdir(exist_ok=True)
    settings = Settings.of(data_dir=data_dir, **settings)
    store = Store(settings.database_url)
    queue = ThreadQueue(store, None)
    sandboxes = InThread()
    app = build_app(settings, store, queue, ask_models, sandboxes)
    queue.desk, queue.settings = app.state.whole_desk, settings
    queue.media = queue.desk.media
    return app, queue, sandboxes


@contextmanager
def gateway(data_dir, **settings):
    """Yield a client of a service whose data lie in `data_dir`; its queue is ``client.queue``."""
    app, queue, sandboxes = _parts(data_dir, settings)
    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as client:
        client.queue, client.desk, client.sandboxes = queue, app.state.whole_desk, sandboxes
        yield client


@contextmanager
def listening_gateway(data_dir, **settings):
    """Yield address and queue of a service that listens on a free port."""
    app, queue, _ = _parts(data_dir, settings)
    server = server_of(app)
    with listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", queue
        finally:
            server.should_exit = True
            thread.join()
