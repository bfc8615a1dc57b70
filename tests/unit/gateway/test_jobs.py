"""Jobs: one result whatever comes twice, and patience while the server is away."""

import asyncio
import threading
import time
from dataclasses import replace

import pytest
from sqlalchemy.exc import OperationalError

from deepfake_gateway.jobs.running import SandboxedWork, run_job
from deepfake_gateway.jobs.waking import Waking
from deepfake_gateway.sandbox.process import SandboxError, TaskError
from deepfake_gateway.store.analysis import Analysis, Status
from deepfake_gateway.store.media import MediaFolder
from deepfake_gateway.store.records import Store

VERDICT = {
    "frames": [],
    "label": "REAL", "fake_probability": 0.1, "reason": None,
    "model": {"name": "m", "version": 1, "checkpoint_sha256": None},
    "timing_s": {"decode": 0.1, "detect": 0.2, "crop": 0.3, "infer": 0.4, "aggregate": 0.5, "total": 0.6},
}  # fmt: skip


@pytest.fixture
def store(tmp_path):
    store = Store(f"sqlite:///{tmp_path / 'a.db'}")
    analysis = Analysis(
        id="a", created_at=time.time(), status=Status.QUEUED, priority=1, file_name="a.mp4", media_type="video/mp4",
        size_bytes=1, sha256="00", options={},
    )  # fmt: skip
    store.add(analysis, lambda connection: None)
    yield store
    store.close()


def run(store, *answers, server_wait_s=60.0, first=None):
    left = list(answers)

    async def work(analysis, on_progress):
        if first is not None:
            await first()
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    asyncio.run(run_job(store, "a", work, server_wait_s=server_wait_s))
    return store.get("a")


def test_a_job_that_comes_twice_has_one_result(store):
    assert run(store, VERDICT).verdict == VERDICT
    assert run(store, {**VERDICT, "label": "FAKE"}).label == "REAL"
    assert [event.data["status"] for event in store.events("a")] == ["queued", "running", "done"]


def test_a_job_of_a_dead_worker_is_taken_up(store):
    store.start("a")
    assert run(store, VERDICT).status is Status.DONE


def test_a_server_that_is_away_is_waited_for(store):
    assert run(store, TaskError("ServerUnavailableError", "gone"), VERDICT).status is Status.DONE


def test_what_was_killed_from_outside_is_tried_again_but_not_for_ever(store):
    killed = SandboxError("killed", was_killed=True)
    assert run(store, killed, killed, VERDICT).status is Status.DONE


def test_what_is_killed_again_and_again_fails(store):
    killed = SandboxError("killed", was_killed=True)
    found = run(store, killed, killed, killed, VERDICT)
    assert (found.status, found.error_type) == (Status.FAILED, "SandboxError")


@pytest.mark.parametrize("change", ["start", "get", "finish", "fail"])
def test_a_database_that_is_away_is_waited_for(store, monkeypatch, change):
    real, refused = getattr(store, change), iter([OperationalError("select", {}, OSError("gone"))] * 2)
    answered = threading.Event()

    def away_at_first(*args, **kwargs):
        for error in refused:
            raise error
        answered.set()
        return real(*args, **kwargs)

    async def until_looked_for():
        await asyncio.to_thread(answered.wait, 10)

    monkeypatch.setattr("deepfake_preprocess.support.pauses.FIRST_S", 0.01)
    monkeypatch.setattr("deepfake_gateway.jobs.running.LOOK_S", 0.01)
    monkeypatch.setattr(store, change, away_at_first)
    answer = SandboxError("it died") if change == "fail" else VERDICT
    found = run(store, answer, first=until_looked_for if change == "get" else None)
    assert answered.is_set()
    assert found.status is (Status.FAILED if change == "fail" else Status.DONE)


def test_not_for_longer_than_is_set(store):
    found = run(store, TaskError("ServerUnavailableError", "gone"), server_wait_s=0)
    assert (found.status, found.error_type, found.error_detail) == (Status.FAILED, "ServerUnavailableError", "gone")


@pytest.mark.parametrize("error", [SandboxError("it died"), ValueError("a defect")])
def test_whatever_fails_a_job_is_said(store, error):
    found = run(store, error)
    assert found.status is Status.FAILED
    assert found.error_detail


def test_a_canceled_job_has_no_result(store):
    store.cancel("a")
    assert run(store).status is Status.CANCELED
    assert not store.finish("a", VERDICT)


def test_a_worker_that_is_free_is_woken_by_an_analysis_that_waits(store):
    store.cancel("a")
    looks, is_free, over = threading.Semaphore(0), threading.Event(), threading.Event()

    def look_for_room():
        if over.is_set():
            raise EOFError  # `follow` else lives as long as its process
        return is_free.is_set()

    waking = Waking(store, look_for_room)
    assert waking.wakes

    def follow():
        with pytest.raises(EOFError):
            waking.follow()

    def look():
        waking.wait()
        looks.release()

    following = threading.Thread(target=follow, daemon=True)
    following.start()
    threading.Thread(target=look, daemon=True).start()
    is_free.set()
    assert not looks.acquire(timeout=0.2)  # nothing waits
    is_free.clear()
    waiting = replace(store.get("a"), id="b", status=Status.QUEUED, finished_at=None)
    store.add(waiting, lambda connection: None)
    assert not looks.acquire(timeout=0.2)  # nobody could begin it
    is_free.set()
    assert looks.acquire(timeout=30)
    over.set()
    following.join(timeout=30)
    assert not following.is_alive()


def test_a_worker_with_another_folder_than_the_gateway_says_so(store, tmp_path):
    work = SandboxedWork(None, MediaFolder(tmp_path / "another"))
    asyncio.run(run_job(store, "a", work, server_wait_s=0))
    failed = store.get("a")
    assert (failed.status, failed.error_type) == (Status.FAILED, "MediaNotFoundError")
    assert "a.mp4 is not where this worker looks for it" in failed.error_detail
    assert "share `data_dir`" in failed.error_detail
