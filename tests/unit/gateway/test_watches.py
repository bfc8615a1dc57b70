"""Live sources over the API: begun, followed, ended, bounded, and seen only by those whose they are."""

import json

import gateways
import pytest

from deepfake_client import Verdict
from deepfake_gateway.api.watches import ListedWatch, RollingDocument, WatchDocument
from deepfake_gateway.jobs.watching import MAX_RESTARTS
from deepfake_gateway.store.keys import Keys

CAMERA = "rtsp://user:secret@127.0.0.1/yard"
OPEN = {"url_intake": True, "allowed_networks": ("127.0.0.0/8",)}


@pytest.fixture
def gateway(tmp_path):
    with gateways.gateway(tmp_path / "data", **OPEN) as client:
        yield client


def begin(gateway, url=CAMERA, headers=None, **options):
    return gateway.post("/v1/watches", json={"url": url, **options}, headers=headers)


def events(gateway, watch, after=0):
    """Return number, kind and data of each event up to the end."""
    answer = gateway.get(watch["links"]["events"], headers={"Last-Event-ID": str(after)})
    found = [dict(line.split(": ", 1) for line in event.splitlines()) for event in answer.text.strip().split("\n\n")]
    return [(int(event["id"]), event["event"], json.loads(event["data"])) for event in found]


def test_a_source_is_followed_to_its_end(gateway):
    answer = begin(gateway, fps=25, step_s=0.4)
    watch = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, watch["links"]["self"])
    assert watch["source"] == "rtsp://127.0.0.1/yard"

    seen = events(gateway, watch)
    assert [number for number, _, _ in seen[:-1]] == list(range(1, len(seen)))
    states = [(data["status"], data.get("reason")) for _, kind, data in seen if kind == "status"]
    assert states == [("queued", None), ("running", None), ("done", "source_ended")]
    verdicts = [RollingDocument.model_validate(data) for _, kind, data in seen if kind == "verdict"]
    assert verdicts[-1].label == "FAKE"
    assert verdicts[-1].faces[0].size_wh == (80, 60)
    assert [verdict.at_s for verdict in verdicts] == sorted(verdict.at_s for verdict in verdicts)
    assert events(gateway, watch, after=3) == seen[3:]

    document = gateway.get(watch["links"]["self"]).json()
    assert seen[-1][1:] == ("end", document)
    WatchDocument.model_validate(document)
    assert Verdict.from_dict(document["verdict"]).source == "rtsp://127.0.0.1/yard"
    (listed,) = gateway.get("/v1/watches").json()["items"]
    for wrong in (watch["id"], "x"):
        assert gateway.get("/v1/watches", params={"cursor": wrong}).status_code == 422
    ListedWatch.model_validate(listed)
    assert "secret" not in json.dumps([seen, document, listed])
    assert gateway.desk.live.find(watch["id"]).url is None, "which is needed no more"

    assert gateway.post(f"{watch['links']['self']}/cancel").status_code == 409
    assert gateway.delete(watch["links"]["self"]).status_code == 204
    assert gateway.get(watch["links"]["self"]).status_code == 404


def test_it_is_ended_by_hand_and_by_its_time(gateway):
    gateway.queue.slow = True
    watch = begin(gateway).json()
    while gateway.get(watch["links"]["self"]).json()["verdict"] is None:
        gateway.queue.working.wait(0.05)
    assert gateway.post(f"{watch['links']['self']}/cancel").json()["status"] == "canceled"
    assert gateway.queue.canceled.wait(30)
    assert events(gateway, watch)[-1][2]["verdict"]["label"] == "FAKE", "what was seen last stays"
    watch = begin(gateway, duration_s=1).json()
    *_, (_, _, last) = events(gateway, watch)
    assert (last["status"], last["end_reason"]) == ("done", "time_is_up")
    metrics = gateway.get("/metrics").text
    for line in (
        'watches_ended_total{reason="",status="canceled"} 1.0',
        'watches_ended_total{reason="time_is_up",status="done"} 1.0',
        "watches 0.0",
    ):
        assert f"\ndeepfake_gateway_{line}\n" in metrics


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"url": "http://192.168.1.7/live.m3u8"}, 422, "is not a public address"),
        ({"url": "file:///etc/passwd"}, 422, "addresses begin with http, https, rtsp://"),
        ({"url": "rtsp://no.such.host.invalid/"}, 422, "there is no host"),
        ({"url": CAMERA, "duration_s": 7200}, 422, "watched for 3600 s at most"),
        ({"url": CAMERA, "window_s": 120, "fps": 60}, 422, "600 frames at most"),
        ({"url": CAMERA, "color": 1}, 422, "there is no `color`"),
        ({}, 422, "`url` is missing; give it"),
    ],
)
def test_what_cannot_be_watched_is_one_sentence(gateway, body, status, words):
    answer = gateway.post("/v1/watches", json=body)
    assert answer.status_code == status
    assert words in answer.json()["detail"]
    assert gateway.get("/v1/watches").json()["items"] == []


def test_it_is_off_where_addresses_are(tmp_path):
    with gateways.gateway(tmp_path / "data") as gateway:
        answer = begin(gateway)
    assert (answer.status_code, "url_intake" in answer.json()["detail"]) == (403, True)


def test_only_so_many_are_watched_at_once_and_each_tenant_sees_its_own(tmp_path):
    with gateways.gateway(tmp_path / "data", watches_of_key=1, watches_in_all=2, **OPEN) as gateway:
        gateway.queue.hold.clear()
        keys = Keys(gateway.queue.store.engine)
        headers = [{"Authorization": f"Bearer {keys.create(name, {'analyze'})[1]}"} for name in ("a", "b", "c")]
        first = begin(gateway, headers=headers[0])
        assert first.status_code == 202
        own = begin(gateway, headers=headers[0])
        assert (own.status_code, "end one of them" in own.json()["detail"]) == (429, True)
        assert begin(gateway, headers=headers[1]).status_code == 202
        full = begin(gateway, headers=headers[2])
        assert (full.status_code, full.headers["retry-after"]) == (503, "10")
        address = first.json()["links"]["self"]
        assert gateway.get(address, headers=headers[1]).status_code == 404
        assert len(gateway.get("/v1/watches", headers=headers[1]).json()["items"]) == 1
        assert gateway.post(f"{address}/cancel", headers=headers[0]).json()["status"] == "canceled"
        assert begin(gateway, headers=headers[0]).status_code == 202


def test_the_list_goes_on_where_it_ended_also_where_that_watch_was_deleted(gateway):
    first, second = [begin(gateway).json() for _ in range(2)]
    for watch in (first, second):
        events(gateway, watch)  # until it is over
    page = gateway.get("/v1/watches?limit=1").json()
    assert [item["id"] for item in page["items"]] == [second["id"]]
    assert gateway.delete(second["links"]["self"]).status_code == 204
    older = gateway.get("/v1/watches", params={"cursor": page["next_cursor"]}).json()
    assert [item["id"] for item in older["items"]] == [first["id"]]


def test_a_worker_that_died_goes_on_but_not_for_ever(gateway):
    gateway.queue.hold.clear()
    watch = begin(gateway, duration_s=3000).json()
    watches = gateway.desk.live.store
    started = watches.start(watch["id"])
    again = watches.start(watch["id"])
    assert (again.restarts, again.ends_at) == (1, started.ends_at)
    assert watches.events(watch["id"])[-1].data == {
        "status": "running", "reason": "worker_restarted", "restarts": 1,
    }  # fmt: skip
    for _ in range(MAX_RESTARTS):
        watches.start(watch["id"])
    gateway.queue.hold.set()
    *_, (_, _, last) = events(gateway, watch)
    assert (last["status"], last["error"]["type"]) == ("failed", "WorkerDiedError")
