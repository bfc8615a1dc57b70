"""Many files in one request."""

import csv

from deepfake_gateway.api.documents import BatchDocument

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

    gateway.delete(batch["items"][0]["analysis"]["links"]["self"])
    assert gateway.get(batch["links"]["self"]).json()["counts"]["deleted"] == 1


def test_a_batch_is_refused_as_a_whole_for_what_holds_for_all(gateway, clip, tmp_path):
    assert send(gateway, ("a.mp4", clip), num_frames=0).status_code == 422
    assert gateway.post("/v1/batches", json={"urls": ["http://example.com/a.mp4"]}).status_code == 403
    assert gateway.post("/v1/batches", content=b"x").status_code == 415
    assert gateway.post("/v1/batches", json={"urls": []}).status_code == 422
    assert gateway.get("/v1/batches/none").status_code == 404
    assert list((tmp_path / "data" / "incoming").iterdir()) == []
