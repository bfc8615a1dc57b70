"""A database or a bucket that takes questions and answers none holds up nothing that asks for neither."""

import asyncio
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import gateways
import postgres
import psutil
import pytest

from deepfake_gateway.store.media import MediaFolder

CALLERS = 40
"""More than there are threads of any kind."""


@contextmanager
def stopped(process):
    """Stop a process and its children: their sockets take what comes, and nothing is answered."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        one.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for one in family:
            one.send_signal(signal.SIGCONT)


@pytest.mark.debian("postgresql")
def test_a_silent_database_is_503_and_uploads_and_health_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("deepfake_gateway.store.threads.ANSWER_S", 1.0)
    with (
        closing(postgres.Postgres()) as server,
        gateways.gateway(tmp_path / "data", database=server.url) as gateway,
        ThreadPoolExecutor(CALLERS) as pool,
    ):
        assert gateway.get("/v1/analyses").status_code == 200
        with stopped(server.process):
            asked = [pool.submit(gateway.get, path) for path in ("/v1/analyses", "/", "/metrics") * CALLERS]
            assert gateway.get("/v1/health/live").status_code == 200
            assert gateway.get("/docs").status_code == 200
            checks = gateway.get("/v1/health/ready").json()["checks"]
            assert checks["store"] == "the database gives no answer (TimeoutError)"
            assert (checks["server"], checks["media"]) == ("ok", "ok")
            # What an upload is written to disk by.
            assert gateway.portal.call(asyncio.to_thread, lambda: "written") == "written"
            assert {answer.result().status_code for answer in asked} == {503}
        give_up_at = time.monotonic() + 60
        while gateway.desk.store.engine.pool.checkedout():  # by threads that wait on in vain
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
        assert gateway.get("/v1/analyses").status_code == 200


def test_where_media_are_kept_may_hang_while_all_else_is_answered(tmp_path, monkeypatch, clip):
    go_on = threading.Event()

    def hangs(media, analysis_id):
        go_on.wait(60)
        return len(clip)

    with gateways.gateway(tmp_path / "data") as gateway, ThreadPoolExecutor(CALLERS) as pool:
        analysis = gateway.post("/v1/analyses", content=clip, headers={"Prefer": "wait=60"}).json()
        monkeypatch.setattr(MediaFolder, "size", hangs)
        asked = [pool.submit(gateway.get, analysis["links"]["media"]) for _ in range(CALLERS)]
        for path in ("/v1/analyses", "/", "/history", "/metrics", analysis["links"]["self"]):
            assert gateway.get(path).status_code == 200
        assert not any(answer.done() for answer in asked)
        go_on.set()
        assert {answer.result().content for answer in asked} == {clip}
