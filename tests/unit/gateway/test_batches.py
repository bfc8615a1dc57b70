"""Many files in one request."""

import csv
from contextlib import contextmanager

import sqlalchemy as sa

from deepfake_gateway.api.documents import BatchDocument
from deepfake_gateway.store.media import MediaAwayError
from deepfake_gateway.store.schema import BATCH_ITEMS, BATCHES

WAIT = {"Prefer": "wait=60"}


def send(gateway, *files, **fields):
    return gateway.post("/v1/batches", files=[("file", file) for file in files], data=fields)


def test_each_file_has_an_analysis_or_a_reason(gateway, clip):
    answer = send(gateway, ("a.mp4", clip), ("=1+1.mp4", b"no video"), ("@c.mp4", b""), num_frames=3, name="two")
    assert answer.status_code == 202
    for item in answer.json()["items"]:
        if item["analysis"]:
            gateway.get(item["analysis"]["links"]["events"])  # until it is over
    batch = gateway.get(answer.headers["location"]).json()
    BatchDocument.model_validate(batch)
    assert (batch["name"], batch["is_over"]) == ("two", True)
    label = gateway.get(batch["items"][0]["analysis"]["links"]["self"]).json()["verdict"]["label"]
    assert batch["counts"] == {label: 1, "failed": 1, "refused": 1}
    assert batch["items"][2]["refusal"] == "the file is empty; copy or download it again"
    lines = list(csv.DictReader(gateway.get(batch["links"]["report"]).text.splitlines()))
    assert [line["file_name"] for line in lines] == ["a.mp4", "'=1+1.mp4", "'@c.mp4"]
    assert [line["label"] for line in lines] == [label, "", ""]


def stored(gateway):
    """Return all that the tables of batches hold, as text."""
    with gateway.desk.store.engine.connect() as connection:
        return str([connection.execute(sa.select(table)).all() for table in (BATCHES, BATCH_ITEMS)])


def test_of_an_analysis_that_was_deleted_its_batch_keeps_the_count_and_not_the_name(gateway, clip):
    files = [("secret.mp4", clip), ("other.mp4", clip + b" ")]
    batches = [send(gateway, *files, num_frames=3).json()]
    links = [item["analysis"]["links"] for item in batches[0]["items"]]
    for one in links:
        gateway.get(one["events"])  # until it is over
    batches.append(send(gateway, *files, num_frames=3).json())
    in_both = [item["analysis"]["links"]["self"] for item in batches[1]["items"]]
    assert in_both == [one["self"] for one in links], "earlier results answer"
    gateway.delete(links[0]["self"])
    assert "secret" not in stored(gateway)
    for batch in batches:
        now = gateway.get(batch["links"]["self"]).json()
        assert now["counts"]["deleted"] == 1
        deleted, other = now["items"]
        assert deleted == {"file_name": "", "is_awaited": False, "analysis": None, "refusal": None}
        assert other["file_name"] == other["analysis"]["file"]["name"] == "other.mp4"
        lines = list(csv.DictReader(gateway.get(batch["links"]["report"]).text.splitlines()))
        assert [(line["file_name"], line["problem"]) for line in lines] == [("", "deleted"), ("other.mp4", "")]
        page = gateway.get(batch["links"]["page"]).text
        assert ("1 deleted" in page, "other.mp4" in page, "secret" in page) == (True, True, False)


def test_a_batch_is_deleted_with_its_analyses_and_nothing_else(gateway, clip):
    stays = gateway.post("/v1/analyses", content=clip, headers=WAIT).json()
    done = send(gateway, ("a.mp4", clip), num_frames=3).json()["items"][0]["analysis"]
    gateway.get(done["links"]["events"])
    gateway.queue.working.clear()
    gateway.queue.slow = True
    batch = send(gateway, ("a.mp4", clip), ("b.mp4", clip + b" "), ("c.mp4", b""), num_frames=3).json()
    assert gateway.queue.working.wait(60)
    running = batch["items"][1]["analysis"]
    assert gateway.delete(batch["links"]["self"]).status_code == 204
    assert gateway.queue.canceled.wait(60), "what runs is ended"
    for path in (batch["links"]["self"], batch["links"]["page"], done["links"]["self"], running["links"]["self"]):
        assert gateway.get(path).status_code == 404
    assert gateway.delete(batch["links"]["self"]).status_code == 404
    assert gateway.desk.media.kept() == [stays["id"]]
    assert [item["id"] for item in gateway.get("/v1/analyses").json()["items"]] == [stays["id"]]
    assert not any(name in stored(gateway) for name in ("b.mp4", "c.mp4"))


def test_a_batch_that_was_deleted_by_half_can_be_deleted_again(gateway, clip, monkeypatch):
    def away(analysis_id):
        delete(analysis_id)
        raise MediaAwayError("the bucket gives no answer")

    delete = gateway.desk.media.delete
    batch = send(gateway, ("a.mp4", clip), ("b.mp4", clip + b" ")).json()
    for item in batch["items"]:
        gateway.get(item["analysis"]["links"]["events"])
    with monkeypatch.context() as patch:
        patch.setattr(gateway.desk.media, "delete", away)
        assert gateway.delete(batch["links"]["self"]).status_code == 503
        assert gateway.delete(batch["items"][0]["analysis"]["links"]["self"]).status_code == 503
    assert len(gateway.desk.media.kept()) == 1
    assert "deleted" not in gateway.get(batch["links"]["self"]).json()["counts"]
    assert gateway.delete(batch["links"]["self"]).status_code == 204
    assert gateway.get("/v1/analyses").json()["items"] == []
    assert gateway.desk.media.kept() == []


def test_a_large_batch_is_deleted_in_no_more_transactions_than_a_small_one(gateway, clip):
    def commits_of(num_files):
        files, commits = [(f"{number}.mp4", b"%d" % number) for number in range(num_files)], []
        batch = send(gateway, *files, ("none.mp4", b"")).json()
        for item in batch["items"][:-1]:
            gateway.get(item["analysis"]["links"]["events"])  # until it is over
        with listening_to(gateway.desk.store.engine, "commit", commits.append):
            gateway.desk.batches.delete(batch["id"])
        return len(commits)

    assert commits_of(1) == commits_of(7)
    assert gateway.get("/v1/analyses").json()["items"] == []


@contextmanager
def listening_to(engine, name, hear):
    sa.event.listen(engine, name, hear)
    try:
        yield
    finally:
        sa.event.remove(engine, name, hear)


def test_a_batch_is_refused_as_a_whole_for_what_holds_for_all(gateway, clip, tmp_path):
    assert send(gateway, ("a.mp4", clip), num_frames=0).status_code == 422
    assert gateway.post("/v1/batches", json={"urls": ["http://example.com/a.mp4"]}).status_code == 403
    assert gateway.post("/v1/batches", content=b"x").status_code == 415
    assert gateway.post("/v1/batches", json={"urls": []}).status_code == 422
    assert gateway.get("/v1/batches/none").status_code == 404
    assert list((tmp_path / "data" / "incoming").iterdir()) == []
