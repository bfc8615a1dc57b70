"""Batches of addresses: answered at once, and fetched by a worker."""

import csv
import logging
import threading
import time
from contextlib import contextmanager
from copy import copy

import gateways
import http_files
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from deepfake_gateway.api.documents import BatchDocument
from deepfake_gateway.intake.fetching import Fetcher
from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.store.batches import Batches
from deepfake_gateway.store.keys import Keys
from deepfake_gateway.store.media import MediaAwayError
from deepfake_gateway.store.schema import BATCH_ITEMS

SETTINGS = {"url_intake": True, "allowed_networks": ["127.0.0.1/32"]}


class Gate:
    """Answers with a file once it is opened, and counts who waits at once."""

    def __init__(self, data):
        self.opened, self._data, self._lock = threading.Event(), data, threading.Lock()
        self.waiting = self.most = 0

    def __call__(self, handler):
        with self._lock:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
        assert self.opened.wait(60)
        with self._lock:
            self.waiting -= 1
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(self._data)


@pytest.fixture
def site():
    with http_files.serving() as site:
        yield site


@contextmanager
def service(tmp_path, **settings):
    with gateways.gateway(tmp_path / "data", **SETTINGS, **settings) as gateway:
        yield gateway


def settled(gateway, batch):
    """Return a batch once all of its files are there or refused, and analyzed."""
    give_up_at = time.monotonic() + 60
    while not (now := gateway.get(batch["links"]["self"]).json())["is_over"]:
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
    return now


def send(gateway, site, *paths, **fields):
    return gateway.post("/v1/batches", json={"urls": [f"{site.url}{path}" for path in paths], **fields})


def test_the_answer_is_there_before_the_files_and_each_says_what_became_of_it(tmp_path, clip, site):
    site.files = {"/films/one.mp4": clip, "/other.mp4": clip + b" "}
    with service(tmp_path) as gateway:
        gateway.queue.hold.clear()
        answer = send(gateway, site, "/films/one.mp4", "/other.mp4", "/gone.mp4", "x:/", num_frames=3, name="four")
        batch = answer.json()
        BatchDocument.model_validate(batch)
        assert (answer.status_code, batch["name"], batch["is_over"]) == (202, "four", False)
        assert batch["counts"] == {"awaited": 3, "refused": 1}, "what is no address is known at once"
        page = gateway.get(batch["links"]["page"]).text
        assert ("3 to be fetched" in page, "1 not accepted" in page, 'max="3"' in page) == (True, True, True)
        awaited = csv.DictReader(gateway.get(batch["links"]["report"]).text.splitlines())
        assert [line["status"] for line in awaited] == ["awaited", "awaited", "awaited", ""]
        assert "deepfake_gateway_awaited 3.0\n" in gateway.get("/metrics").text
        assert site.asked == []
        gateway.queue.hold.set()
        batch = settled(gateway, batch)
        first, second, gone, _ = batch["items"]
        assert [first["file_name"], second["file_name"]] == ["one.mp4", "other.mp4"]
        assert gone == {
            "file_name": f"{site.url}/gone.mp4", "is_awaited": False, "analysis": None,
            "refusal": "the server at the address answers 404; check the address",
        }  # fmt: skip
        analysis = gateway.get(first["analysis"]["links"]["self"]).json()
        assert analysis["options"]["sampling"]["num_frames"] == 3
        assert analysis["request_id"] == answer.headers["x-request-id"]
        assert "to be fetched" not in gateway.get(batch["links"]["page"]).text


def test_only_so_many_are_fetched_at_once_as_uploads_of_a_key_may_be_on_their_way(tmp_path, clip, site):
    gate = Gate(clip)
    paths = [f"/{number}.mp4" for number in range(6)]
    site.files = dict.fromkeys(paths, gate)
    with service(tmp_path, uploads_at_once=2) as gateway:
        batch = send(gateway, site, *paths, num_frames=1).json()
        while gate.waiting < 2:
            time.sleep(0.01)
        gate.opened.set()
        batch = settled(gateway, batch)
    assert gate.most == 2
    assert sum(batch["counts"].values()) == len([item for item in batch["items"] if item["analysis"]]) == 6


def test_a_worker_that_died_goes_on_and_begins_nothing_twice(tmp_path, clip, site):
    site.files = {"/a.mp4": clip, "/b.mp4": clip}
    with service(tmp_path) as gateway:
        key = {"X-Api-Key": Keys(gateway.desk.store.engine).create("test", ["analyze"])[1]}
        gateway.headers.update(key)
        before = settled(gateway, send(gateway, site, "/a.mp4", "/b.mp4", num_frames=1).json())
        with gateway.desk.store.engine.begin() as connection:  # as before what became of the files was recorded
            connection.execute(sa.update(BATCH_ITEMS).values(url=f"{site.url}/a.mp4", analysis_id=None))
        gateway.queue._gather(before["id"])
        assert settled(gateway, before) == before
    assert sorted(site.asked) == ["/a.mp4", "/b.mp4"]


def test_what_nobody_foresaw_is_said_of_the_file_and_stops_no_other(tmp_path, clip, site, monkeypatch):
    site.files = {"/a.mp4": clip, "/b.mp4": b"no video"}
    fails = [OSError("surprise"), OperationalError("", {}, Exception("away"))]

    async def fetch(fetcher, url, sink):
        if fails and url.endswith("b.mp4"):
            raise fails.pop()
        await properly(fetcher, url, sink)

    properly = Fetcher.fetch
    monkeypatch.setattr(Fetcher, "fetch", fetch)
    with service(tmp_path) as gateway:
        batch = settled(gateway, send(gateway, site, "/a.mp4", "/b.mp4", num_frames=1).json())
    assert batch["items"][1]["refusal"].startswith("the gateway failed (OSError)"), (
        "away is waited for, OSError is not"
    )
    assert batch["items"][0]["analysis"]["status"] == "done"


def test_files_that_are_yet_to_be_fetched_wait_as_well(tmp_path, clip, site):
    site.files = {f"/{number}.mp4": clip for number in range(3)}
    with service(tmp_path, max_queued=3) as gateway:
        gateway.queue.hold.clear()
        batch = send(gateway, site, *site.files, num_frames=1).json()
        for refused in (send(gateway, site, "/0.mp4"), gateway.post("/v1/analyses", content=clip)):
            assert (refused.status_code, "3 analyses are waiting" in refused.json()["detail"]) == (429, True)
        gateway.queue.hold.set()
        assert "refused" not in settled(gateway, batch)["counts"], "each had its place"


def test_a_batch_that_is_deleted_while_its_files_come_leaves_nothing(tmp_path, clip, site, caplog):
    gate = Gate(clip)
    site.files = {"/0.mp4": gate, "/1.mp4": gate, "/2.mp4": clip, "/3.mp4": clip}
    with service(tmp_path, uploads_at_once=2) as gateway:
        batch = send(gateway, site, *site.files, num_frames=1).json()
        while gate.waiting < 2:
            time.sleep(0.01)
        assert gateway.delete(batch["links"]["self"]).status_code == 204
        assert "deepfake_gateway_awaited 0.0\n" in gateway.get("/metrics").text
        gate.opened.set()
        gateway.queue.close()  # its job ends
        assert gateway.get("/v1/analyses").json()["items"] == []
        assert gateway.desk.media.kept() == []
        assert gateway.queue.runs == 0
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
    assert sorted(site.asked) == ["/0.mp4", "/1.mp4"], "what nobody waits for is not asked for"
    assert list((tmp_path / "data" / "incoming").iterdir()) == []


def test_a_file_that_is_handed_in_as_its_batch_is_deleted_goes_with_it(tmp_path, clip, site, monkeypatch):
    fails = [MediaAwayError("the bucket gives no answer")]

    def delete(analysis_id):
        if fails:
            raise fails.pop()
        media.delete(analysis_id)

    async def submit(desk, *args, **options):
        gateway.desk.batches.delete(batch["id"])
        return await properly(desk, *args, **options)

    properly = Desk.submit
    site.files = {"/a.mp4": clip}
    with service(tmp_path) as gateway:
        gateway.queue.hold.clear()
        batch = send(gateway, site, "/a.mp4", num_frames=1).json()
        monkeypatch.setattr(Desk, "submit", submit)
        media = copy(gateway.desk.media)
        monkeypatch.setattr(gateway.desk.media, "delete", delete)
        gateway.queue.hold.set()
        gateway.queue.threads[0].join()
        assert gateway.get("/v1/analyses").json()["items"] == []
        assert gateway.desk.media.kept() == []


def test_a_batch_is_deleted_with_an_analysis_that_a_worker_began_and_died_before_it_said_so(tmp_path, clip, site):
    site.files = {"/a.mp4": clip}
    with service(tmp_path) as gateway:
        key = {"X-Api-Key": Keys(gateway.desk.store.engine).create("test", ["analyze"])[1]}
        gateway.headers.update(key)
        batch = settled(gateway, send(gateway, site, "/a.mp4", num_frames=1).json())
        with gateway.desk.store.engine.begin() as connection:
            connection.execute(sa.update(BATCH_ITEMS).values(url=f"{site.url}/a.mp4", analysis_id=None))
        assert gateway.delete(batch["links"]["self"]).status_code == 204
        assert gateway.get("/v1/analyses").json()["items"] == []


def test_an_analysis_stays_where_it_was_recorded_and_the_database_did_not_say_so(tmp_path, clip, site, monkeypatch):
    fails = [OperationalError("", {}, Exception("away"))]

    def settle(batches, *args):
        result = properly(batches, *args)
        if fails:
            raise fails.pop()
        return result

    properly = Batches.settle
    monkeypatch.setattr(Batches, "settle", settle)
    site.files = {"/a.mp4": clip}
    with service(tmp_path) as gateway:
        batch = send(gateway, site, "/a.mp4", num_frames=1).json()
        gateway.queue.threads[0].join()
        assert settled(gateway, batch)["items"][0]["analysis"]["status"] == "done"
    assert fails == []


def test_a_service_that_takes_no_addresses_any_more_says_so_of_each(tmp_path, clip, site):
    site.files = {"/a.mp4": clip}
    with service(tmp_path) as gateway:
        gateway.queue.hold.clear()
        batch = send(gateway, site, "/a.mp4").json()
        gateway.queue.settings = gateway.queue.settings.model_copy(update={"url_intake": False})
        gateway.queue.hold.set()
        assert "url_intake" in settled(gateway, batch)["items"][0]["refusal"]
    assert site.asked == []
