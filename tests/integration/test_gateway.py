"""`deepfake gateway` as people start it: with a worker, sandboxes and a real Triton, and what may be killed of it."""

import hashlib
import json
import re
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import object_store
import obstore
import otlp_receiver
import postgres
import pytest
from checkout import ROOT
from gateway_process import Running
from http_files import serving
from media import make_clip

from deepfake_client import AnalyzeOptions, DeepfakeClient, Sampling
from deepfake_gateway.intake.options import stored_options
from deepfake_gateway.jobs.queue import DurableQueue, Job
from deepfake_gateway.settings import DATABASE_NAME, Settings
from deepfake_gateway.store.analysis import Analysis, Status
from deepfake_gateway.store.bucket import media_of
from deepfake_gateway.store.records import Store


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", duration_s=1.0)


@pytest.fixture(scope="module")
def gateway(embedded_triton, tmp_path_factory):
    """One for the tests below; the last of them kills it."""
    running = Running(embedded_triton.grpc_url, tmp_path_factory.mktemp("gateway") / "data")
    yield running
    if running.process.poll() is None:
        running.stop()


def test_the_verdict_is_that_of_the_client(gateway, embedded_triton, clip, tmp_path):
    analysis = gateway.send(clip, wait_s=90, num_frames=8)
    with DeepfakeClient(embedded_triton.grpc_url) as client:
        own = client.analyze(clip, options=AnalyzeOptions(sampling=Sampling(num_frames=8))).to_dict()
    for verdict in (own, analysis["verdict"]):
        del verdict["timing_s"], verdict["source"]
    assert analysis["verdict"] == own
    page = httpx.get(f"{gateway.address}{analysis['links']['report']}", timeout=120).text
    assert hashlib.sha256(clip.read_bytes()).hexdigest() in page
    assert "Analyzed on" in page
    assert 'href="confidence_timeline.png"' not in page, "nothing lies beside it"

    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:300])
    failed = gateway.send(broken, wait_s=90)
    assert (failed["status"], failed["error"]["type"]) == ("failed", "MediaOpenError")
    assert "broken.mp4" in failed["error"]["message"]
    assert str(tmp_path) not in failed["error"]["message"]


def test_a_request_is_one_trace_and_its_id_is_on_each_line(embedded_triton, clip, tmp_path, monkeypatch):
    trace_id, caller = bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736"), bytes.fromhex("00f067aa0ba902b7")
    headers = {
        "traceparent": f"00-{trace_id.hex()}-{caller.hex()}-01", "X-Request-ID": "from-a-test", "Prefer": "wait=90",
    }  # fmt: skip
    with otlp_receiver.receiving() as (endpoint, received):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        running = Running(embedded_triton.grpc_url, tmp_path / "data", log_format="json", log_level="info")
        answer = httpx.post(f"{running.address}/v1/analyses", content=clip.read_bytes(), headers=headers, timeout=120)
        running.stop()
    assert answer.json()["status"] == "done"
    of_request = {(service, span.name): span for service, span in received if span.trace_id == trace_id}
    asked = of_request["deepfake-gateway-web", "POST /v1/analyses"]
    job, infer = (of_request["deepfake-gateway-worker", name] for name in ("analyze", "infer"))
    assert (asked.parent_span_id, job.parent_span_id, infer.parent_span_id) == (caller, asked.span_id, job.span_id)
    facts = {item.key: item.value for item in job.attributes}
    assert facts["deepfake.status"].string_value == "done"
    assert facts["deepfake.decode_s"].double_value == answer.json()["verdict"]["timing_s"]["decode"]
    assert not any("health" in span.name for _, span in received)

    lines = [json.loads(line) for line in running.log.read_text().splitlines() if line.startswith("{")]
    mine = {line["logger"] for line in lines if line["request_id"] == "from-a-test"}
    assert mine >= {"deepfake_gateway.api.guard", "deepfake_gateway.jobs.running"}


def test_a_killed_worker_s_job_goes_on_and_has_one_result(gateway, clip):
    analysis = gateway.send(clip, fps=25, threshold=0.41)
    kinds = []
    for kind, data in gateway.events(analysis):
        if kind == "status" and data["status"] == "running" and "running" not in kinds:
            gateway.worker().kill()
        kinds.append(data.get("status", kind))
    assert kinds.count("done") == 2  # the state, and the end with the verdict
    final = httpx.get(f"{gateway.address}{analysis['links']['self']}").json()
    assert len(final["verdict"]["frames"]) == 25


def test_a_killed_sandbox_s_job_is_tried_again_but_not_for_ever(gateway, clip):
    analysis = gateway.send(clip, fps=25, threshold=0.42)
    kinds = []
    for kind, data in gateway.events(analysis):
        if kind == "status" and data["status"] == "running":
            for process in gateway.worker().children():
                process.kill()
        kinds.append(data.get("status", kind))
    assert (kinds.count("running"), kinds[-1]) == (1, "done")


def test_a_job_that_was_taken_off_its_queue_and_never_begun_is_taken_up_again(gateway, clip):
    """As where the database dies before it tells the worker which job is its own."""
    settings = Settings.of(data_dir=gateway.log.parent)
    store, media, queue = Store(settings.database_url), media_of(settings), DurableQueue(settings.database_url)
    options = stored_options({"num_frames": "4"}, max_frames=100)
    lost = Analysis(
        id="a" * 32, created_at=time.time(), status=Status.QUEUED, priority=1, file_name="lost.mp4",
        media_type="video/mp4", size_bytes=1, sha256="0" * 64, options=options,
    )  # fmt: skip
    upload = media.new_upload()
    upload.write_bytes(clip.read_bytes())
    media.keep(upload, lost.id)

    def take(connection):
        queue.enqueue(connection, Job.ANALYZE, lost.id, 1)
        taken = f"UPDATE workflow_status SET status = 'PENDING', executor_id = '{settings.worker_name}'"
        connection.exec_driver_sql(f"{taken} WHERE workflow_uuid = '{lost.id}'")

    store.add(lost, take)
    events = gateway.events({"links": {"events": f"/v1/analyses/{lost.id}/events"}})
    assert [data["status"] for kind, data in events if kind == "end"] == ["done"]
    queue.close()
    store.close()


@pytest.mark.debian("sqlite3")
def test_what_was_backed_up_while_it_ran_goes_on_elsewhere(gateway, embedded_triton, clip, tmp_path):
    done, under_way = gateway.send(clip, wait_s=90), gateway.send(clip, fps=25, threshold=0.41)
    folder, backup = gateway.log.parent, tmp_path / "data"
    backup.mkdir()
    (command,) = re.findall(r"^(sqlite3 .*)$", (ROOT / "docs/gateway.md").read_text(encoding="utf-8"), re.MULTILINE)
    command = command.replace("/var/lib/gateway", str(folder)).replace("/backup", str(backup))
    subprocess.run(["sh", "-c", command], check=True)
    shutil.copytree(folder / "media", backup / "media")
    restored = Running(embedded_triton.grpc_url, backup)
    try:
        assert httpx.get(f"{restored.address}{done['links']['self']}").json()["verdict"] == done["verdict"]
        assert [data["status"] for kind, data in restored.events(under_way) if kind == "end"] == ["done"]
    finally:
        restored.stop()


def test_a_killed_gateway_leaves_nothing_and_goes_on_with_its_next_start_and_so_does_ctrl_c(
    gateway, embedded_triton, clip
):
    analysis = gateway.send(clip, fps=25, threshold=0.43)
    gateway.stop(signal.SIGKILL)
    again = Running(embedded_triton.grpc_url, gateway.log.parent)
    try:
        assert [data["status"] for kind, data in again.events(analysis) if kind == "end"] == ["done"]
    finally:
        assert again.stop() == 0


def held_back(clip):
    """An answer of a site that waits: the event that it was asked for, the one that lets it go on, and itself."""
    asked, go_on = threading.Event(), threading.Event()

    def answer(handler):
        asked.set()
        go_on.wait(60)
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(clip.read_bytes())

    return asked, go_on, answer


def test_the_files_of_a_batch_are_fetched_also_after_the_worker_was_killed(embedded_triton, clip, tmp_path):
    asked, go_on, late = held_back(clip)
    with serving() as site, ExitStack() as stack:
        site.files = {"/late.mp4": late, "/clip.mp4": clip.read_bytes()}
        switch = {"url_intake": "true", "allowed_networks": '["127.0.0.0/8"]'}
        running = Running(embedded_triton.grpc_url, tmp_path / "data", **switch)
        stack.callback(running.stop)
        urls = [f"{site.url}{path}" for path in site.files]
        links = httpx.post(f"{running.address}/v1/batches", json={"urls": urls, "num_frames": 2}).json()["links"]
        assert asked.wait(60)
        running.worker().kill()
        go_on.set()
        running.until(lambda: httpx.get(f"{running.address}{links['self']}").json()["is_over"])
        items = httpx.get(f"{running.address}{links['self']}").json()["items"]
        assert [(item["file_name"], item["analysis"]["status"]) for item in items] == [
            ("late.mp4", "done"), ("clip.mp4", "done"),
        ]  # fmt: skip
        assert len(httpx.get(f"{running.address}/v1/analyses").json()["items"]) == 2


def test_a_batch_that_is_deleted_under_its_worker_leaves_nothing(embedded_triton, clip, tmp_path):
    asked, go_on, late = held_back(clip)
    with serving() as site, ExitStack() as stack:
        site.files = {"/late.mp4": late, "/never.mp4": clip.read_bytes(), "/other.mp4": clip.read_bytes()}
        switch = {"url_intake": "true", "allowed_networks": '["127.0.0.0/8"]', "uploads_in_all": "1"}
        running = Running(embedded_triton.grpc_url, tmp_path / "data", **switch)
        stack.callback(running.stop)

        def send(*paths):
            body = {"urls": [f"{site.url}{path}" for path in paths], "num_frames": 2}
            return httpx.post(f"{running.address}/v1/batches", json=body).json()

        batch = send("/late.mp4", "/never.mp4")
        assert asked.wait(60)
        assert httpx.delete(f"{running.address}{batch['links']['self']}").status_code == 204
        go_on.set()
        other = f"{running.address}{send('/other.mp4')['links']['self']}"
        running.until(lambda: httpx.get(other).json()["is_over"])
        names = [item["file"]["name"] for item in httpx.get(f"{running.address}/v1/analyses").json()["items"]]
        assert (names, site.asked) == (["other.mp4"], ["/late.mp4", "/other.mp4"])
        database = sqlite3.connect(tmp_path / "data" / DATABASE_NAME)
        stack.callback(database.close)
        jobs = database.execute("SELECT count(*) FROM workflow_status WHERE workflow_uuid = ?", [batch["id"]])
        assert jobs.fetchone() == (0,)
        assert "Traceback" not in running.log.read_text()


def test_a_live_source_is_watched_also_after_the_worker_was_killed(embedded_triton, tmp_path):
    stream = make_clip(tmp_path / "live.ts", duration_s=1.0).read_bytes()
    switch = {"url_intake": "true", "allowed_networks": '["127.0.0.0/8"]'}

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        while not site.closing.wait(1):
            handler.wfile.write(stream)

    with serving() as site, ExitStack() as stack:
        site.files["/live.ts"] = endless
        running = Running(embedded_triton.grpc_url, tmp_path / "data", **switch)
        stack.callback(running.stop)
        address = f"{running.address}/v1/watches"
        watch = httpx.post(address, json={"url": f"{site.url}/live.ts", "fps": 10, "step_s": 0.5}).json()
        states, is_judged = [], False
        for kind, data in running.events(watch):
            if kind == "status":
                states.append((data["status"], data.get("reason")))
                is_judged = False
            elif kind == "verdict" and data["label"] != "INCONCLUSIVE" and not is_judged:
                is_judged = True
                if len(states) == 2:
                    running.worker().kill()
                else:
                    httpx.post(f"{running.address}{watch['links']['self']}/cancel")
        assert (kind, data["status"], data["restarts"]) == ("end", "canceled", 1)
        assert data["verdict"]["source"] == f"{site.url}/live.ts"
        assert states == [
            ("queued", None), ("running", None), ("running", "worker_restarted"), ("canceled", None),
        ]  # fmt: skip
        running.until(lambda: not running.running('"has_door": true'))


@pytest.mark.slow
@pytest.mark.debian("postgresql")
def test_two_gateways_and_two_workers_share_a_postgres(embedded_triton, clip, tmp_path):
    with postgres.postgres() as database, ExitStack() as stack:
        settings = {"database": database, "concurrency": "1"}
        with ThreadPoolExecutor(2) as both:  # they make the tables at the same moment
            starts = [
                both.submit(Running, embedded_triton.grpc_url, tmp_path / "data", worker_name=name, **settings)
                for name in ("left", "right")
            ]
        pair = [start.result() for start in starts]
        for running in pair:
            stack.callback(running.stop)
        sent = [pair[number % 2].send(clip, num_frames=4 + number) for number in range(6)]
        pair[0].worker().kill()
        for number, analysis in enumerate(sent):
            events = list(pair[1 - number % 2].events(analysis))  # asked of the one that did not take it in
            assert [data["status"] for kind, data in events if kind == "end"] == ["done"]
            assert len(events[-1][1]["verdict"]["frames"]) == 4 + number


@pytest.mark.slow
def test_gateways_share_a_bucket_and_no_folder(embedded_triton, clip, tmp_path, monkeypatch):
    with object_store.served_bucket(monkeypatch) as (address, store), ExitStack() as stack:
        shared = {"blobs": f"{address}/media", "database": f"sqlite:///{tmp_path}/shared.db"}
        pair = []
        for name in ("left", "right"):
            pair.append(Running(embedded_triton.grpc_url, tmp_path / name, worker_name=name, **shared))
            stack.callback(pair[-1].stop)
        left, right = pair
        for number in range(3):
            analysis = left.send(clip, wait_s=90, num_frames=4 + number)
            assert analysis["verdict"]["reason"] is None
            answer = httpx.get(right.address + analysis["links"]["media"], headers={"Range": "bytes=0-9"})
            assert answer.content == clip.read_bytes()[:10]
            report = f"{right.address}{analysis['links']['report']}?format=pdf"
            assert httpx.get(report, timeout=60).content[:4] == b"%PDF"
        assert len([entry for entries in obstore.list(store) for entry in entries]) == 6
        assert not [*tmp_path.glob("*/incoming/*"), *tmp_path.glob("*/media/*")]
