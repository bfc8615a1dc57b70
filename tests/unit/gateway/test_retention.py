"""What is removed once its time is over, and what stays."""

import os
import time
from datetime import datetime, timedelta

import gateways
import http_files
import sqlalchemy as sa

from deepfake_gateway.jobs.queue import DurableQueue, Job
from deepfake_gateway.jobs.retention import purge, remove
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.analysis import Analysis, Status
from deepfake_gateway.store.bucket import media_of
from deepfake_gateway.store.explanations import Explanations
from deepfake_gateway.store.records import Store
from deepfake_gateway.store.schema import ANALYSES, BATCH_ITEMS, BATCHES


def test_everybody_is_told_until_when_a_file_and_its_result_are_kept(clip, tmp_path):
    with gateways.gateway(tmp_path / "data", media_hours=6, results_days=2) as gateway:
        gateway.queue.hold.clear()
        waiting = gateway.post("/v1/analyses", content=clip).json()
        assert (waiting["expires_at"], waiting["file"]["expires_at"]) == (None, None)
        gateway.queue.hold.set()
        gateway.get(waiting["links"]["events"])  # until it is over
        analysis = gateway.get(waiting["links"]["self"]).json()
        finished = datetime.fromisoformat(analysis["finished_at"])
        file_until, until = (datetime.fromisoformat(one["expires_at"]) for one in (analysis["file"], analysis))
        assert (file_until - finished, until - finished) == (timedelta(hours=6), timedelta(days=2))
        listed = gateway.get("/v1/analyses").json()["items"][0]
        assert (listed["expires_at"], listed["file"]) == (analysis["expires_at"], analysis["file"])
        page = gateway.get(f"/analyses/{analysis['id']}").text
        for moment in (file_until, until):
            assert f'<time datetime="{moment.isoformat()}"' in page
        report = gateway.get(analysis["links"]["report"]).text
        assert f"keeps it until {file_until.day} {file_until:%B %Y, %H:%M} UTC." in report


def test_a_file_does_not_outlive_its_result():
    settings = Settings(media_hours=100, results_days=2)
    assert settings.media_until(0.0) == settings.result_until(0.0) == 2 * 86_400


def test_files_go_before_results_and_what_runs_stays(gateway, clip, tmp_path):
    desk = gateway.desk

    def sent(name, **fields):
        fields = {**fields, "num_frames": len(name)}
        files = {"file": (name, clip)}
        return gateway.post("/v1/analyses", files=files, data=fields, headers={"Prefer": "wait=60"}).json()["id"]

    def finished(analysis_id, hours_ago):
        with desk.store.engine.begin() as connection:
            at = time.time() - 3600 * hours_ago
            change = sa.update(ANALYSES).where(ANALYSES.c.id == analysis_id)
            connection.execute(change.values(finished_at=at))

    new, old, older = sent("new.mp4"), sent("old1.mp4"), sent("older1.mp4")
    assert gateway.get(f"/v1/analyses/{old}/report").status_code == 200
    gateway.queue.hold.clear()
    waiting = gateway.post("/v1/analyses?num_frames=20", content=clip).json()["id"]
    finished(new, 23)
    finished(old, 25)
    finished(older, 24 * 31)
    upload = desk.media.new_upload()
    upload.write_bytes(b"half")
    left_over = desk.media.new_upload()
    left_over.write_bytes(b"half")
    os.utime(left_over, (0, 0))
    purge(desk.store, desk.media, gateway.queue, Settings.of(data_dir=tmp_path))

    assert sorted(desk.media.kept()) == sorted([new, waiting])
    assert (upload.exists(), left_over.exists()) == (True, False)
    assert gateway.get(f"/v1/analyses/{new}/media").status_code == 200
    assert gateway.get(f"/v1/analyses/{old}").json()["verdict"]["label"]
    for path in (f"/v1/analyses/{old}/media", f"/v1/analyses/{old}/report", f"/v1/analyses/{older}"):
        assert gateway.get(path).status_code == 404
    assert "<video" not in gateway.get(f"/analyses/{old}").text
    purge(desk.store, desk.media, gateway.queue, Settings.of(data_dir=tmp_path, media_hours=0))
    assert desk.media.kept() == [waiting]
    gateway.queue.hold.set()


def test_a_file_that_is_sent_again_once_its_time_is_over_is_there_again(gateway, clip, tmp_path):
    def sent(name="clip.mp4"):
        files, wait = {"file": (name, clip)}, {"Prefer": "wait=60"}
        return gateway.post("/v1/analyses", files=files, headers=wait).json()

    first = sent()
    assert sent() == first
    with gateway.desk.store.engine.begin() as connection:
        connection.execute(sa.update(ANALYSES).values(finished_at=time.time() - 3600 * 25))
    purge(gateway.desk.store, gateway.desk.media, gateway.queue, Settings.of(data_dir=tmp_path))
    over = gateway.get(first["links"]["self"]).json()
    assert over["links"].keys() == {"self", "page", "events", "explanations"}, "what went with the file is not named"
    assert gateway.get("/v1/analyses").json()["items"][0]["links"] == over["links"]

    again = sent()
    assert (again["id"] != first["id"], again["verdict"], again["links"].keys()) == (
        True, first["verdict"], first["links"].keys(),
    )  # fmt: skip
    assert gateway.get(again["links"]["media"]).content == clip
    assert sent() == again
    assert gateway.queue.runs == 1, "the verdict was there already"
    assert gateway.post(f"/analyses/{again['id']}/again", data={"num_frames": "3"}).status_code == 303


def test_jobs_go_with_their_analysis_also_those_of_its_explanations(tmp_path):
    settings = Settings.of(data_dir=tmp_path)
    store, media, queue = Store(settings.database_url), media_of(settings), DurableQueue(settings.database_url)

    def jobs_of(analysis_id):
        """Begin an analysis with an explanation, and return the jobs of both."""
        analysis = Analysis(
            id=analysis_id, created_at=time.time(), status=Status.QUEUED, priority=1, file_name="clip.mp4",
            media_type="video/mp4", size_bytes=1, sha256="0" * 64, options={},
        )  # fmt: skip
        store.add(analysis, lambda connection: queue.enqueue(connection, Job.ANALYZE, analysis_id, 1))
        explanation = Explanations(store.engine).begin(
            analysis_id, {}, lambda connection, job_id: queue.enqueue(connection, Job.EXPLAIN, job_id, 1)
        )
        return {analysis_id, explanation.id}

    def known():
        with store.engine.connect() as connection:
            return set(connection.exec_driver_sql("SELECT workflow_uuid FROM workflow_status").scalars())

    deleted, over, stays = jobs_of("a" * 32), jobs_of("b" * 32), jobs_of("c" * 32)
    assert known() == deleted | over | stays
    remove(store, media, queue, "a" * 32)
    assert known() == over | stays
    store.fail("b" * 32, "InternalError", "")
    with store.engine.begin() as connection:
        connection.execute(sa.update(ANALYSES).where(ANALYSES.c.id == "b" * 32).values(finished_at=0))
    purge(store, media, queue, settings)
    assert known() == stays
    queue.close()
    store.close()


def test_a_batch_goes_after_the_last_of_its_analyses_with_all_names(clip, tmp_path):
    with (
        http_files.serving() as site,
        gateways.gateway(
            tmp_path / "data", url_intake=True, allowed_networks=["127.0.0.1/32"], results_days=2
        ) as gateway,
    ):
        site.files["/late.mp4"] = b"no video"
        desk, forgotten = gateway.desk, []
        gateway.queue.forget = lambda *ids: forgotten.extend(ids)

        def sent(*files, days_ago):
            batch = gateway.post(
                "/v1/batches", files=[("file", file) for file in files], data={"num_frames": 3}
            ).json()
            for item in batch["items"]:
                if item["analysis"]:
                    gateway.get(item["analysis"]["links"]["events"])  # until it is over
            begun_ago(batch, days_ago)
            return batch

        def begun_ago(batch, days):
            change = (
                sa.update(BATCHES).where(BATCHES.c.id == batch["id"]).values(created_at=time.time() - 86_400 * days)
            )
            with desk.store.engine.begin() as connection:
                connection.execute(change)

        def left():
            purge(desk.store, desk.media, gateway.queue, gateway.queue.settings)
            return [one for one in batches if gateway.get(one["links"]["self"]).status_code == 200]

        half = sent(("one.mp4", clip), ("two.mp4", clip + b" "), days_ago=3)
        new, refused = sent(("new.mp4", b""), days_ago=1), sent(("none.mp4", b""), days_ago=3)
        gateway.queue.hold.clear()
        awaited = gateway.post("/v1/batches", json={"urls": [f"{site.url}/late.mp4"]}).json()
        begun_ago(awaited, 3)
        assert gateway.get(awaited["links"]["self"]).json()["expires_at"] is None
        batches = [half, new, refused, awaited]
        assert left() == [half, new, awaited]
        gateway.delete(half["items"][0]["analysis"]["links"]["self"])
        assert left() == [half, new, awaited], "one of its analyses is there"
        now = gateway.get(half["links"]["self"]).json()
        assert now["expires_at"] == now["items"][1]["analysis"]["expires_at"], "and it goes with that one"
        with desk.store.engine.begin() as connection:
            connection.execute(sa.update(ANALYSES).values(finished_at=time.time() - 86_400 * 3))
        assert left() == [new, awaited]
        gateway.queue.hold.set()
        gateway.queue.threads[-1].join()
        gateway.get(gateway.get(awaited["links"]["self"]).json()["items"][0]["analysis"]["links"]["events"])
        with desk.store.engine.begin() as connection:
            connection.execute(sa.update(ANALYSES).values(finished_at=time.time() - 86_400 * 3))
        assert left() == [new], "nothing of the other is awaited any more"
        assert {batch["id"] for batch in (half, refused, awaited)} <= set(forgotten)
        with desk.store.engine.connect() as connection:
            assert connection.execute(sa.select(BATCH_ITEMS.c.file_name)).scalars().all() == ["new.mp4"]
