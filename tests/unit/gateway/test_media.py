"""Where media are kept: a folder, and a bucket of a real server of the S3 protocol, which do the same."""

import gateways
import object_store
import obstore
import pytest

from deepfake_gateway.settings import Settings
from deepfake_gateway.store.bucket import media_of
from deepfake_gateway.store.media import MediaAwayError
from deepfake_preprocess.errors import OptionError


@pytest.fixture(scope="module")
def bucket():
    with pytest.MonkeyPatch.context() as patch, object_store.served_bucket(patch) as (address, store):
        yield address, store


@pytest.fixture(params=["folder", "bucket"])
def media(request, tmp_path):
    blobs = f"{request.getfixturevalue('bucket')[0]}/{tmp_path.name}" if request.param == "bucket" else None
    return media_of(Settings.of(data_dir=tmp_path, blobs=blobs))


def kept(media, analysis_id, content):
    upload = media.new_upload()
    upload.write_bytes(content)
    media.keep(upload, analysis_id)
    assert not upload.exists()


def test_a_medium_and_what_was_made_of_it_come_and_go(media, tmp_path):
    content = bytes(range(256)) * 9000  # several pieces
    kept(media, "one", content)
    kept(media, "two", b"second")
    assert (media.size("one"), media.size("none")) == (len(content), None)
    assert b"".join(media.pieces("one", 5, 2_000_000)) == content[5:2_000_000]
    with media.local("one") as path:
        assert path.read_bytes() == content
    again = media.new_upload()
    media.send_again("two", again)
    assert again.read_bytes() == b"second"
    again.unlink()
    assert media.put("one", "crops/0-1.png", b"picture")
    assert media.read("one", "crops/0-1.png") == b"picture"
    assert media.read("one", "crops/0-2.png") is None
    assert sorted(media.kept()) == ["one", "two"]
    assert media.kept_since("one") <= media.kept_since("none")
    media.delete("one")
    media.delete("none")
    assert media.kept() == ["two"]
    assert not media.put("one", "report.html", b"late")
    with pytest.raises(FileNotFoundError), media.local("one"):
        pass
    assert list((tmp_path / "incoming").iterdir()) == []


def test_the_service_keeps_all_of_it_in_a_bucket(bucket, tmp_path, clip):
    address, store = bucket
    with gateways.gateway(tmp_path / "data", blobs=f"{address}/press/videos") as gateway:
        answer = gateway.post("/v1/analyses?file_name=a.mp4", content=clip, headers={"Prefer": "wait=60"}).json()
        media = gateway.get(answer["links"]["media"], headers={"Range": "bytes=4-11"})
        assert (media.status_code, media.content) == (206, clip[4:12])
        assert b"<html" in gateway.get(answer["links"]["report"]).content
        again = gateway.post(f"/analyses/{answer['id']}/again", data={"num_frames": "3"})
        assert again.status_code == 303
        paths = {entry["path"] for entries in obstore.list(store, prefix="press") for entry in entries}
        assert {f"press/videos/media/{answer['id']}/{name}" for name in ("media", "report.html")} < paths
        for item in gateway.get("/v1/analyses").json()["items"]:
            gateway.get(item["links"]["events"])  # until it is over
            assert gateway.delete(item["links"]["self"]).status_code == 204
        assert gateway.get(answer["links"]["media"]).status_code == 404
    assert list(obstore.list(store, prefix="press")) == []
    assert not list((tmp_path / "data").glob("*/*"))


def test_a_bucket_that_is_away_is_told(bucket, tmp_path, clip, monkeypatch):
    address, _ = bucket
    with gateways.gateway(tmp_path / "data", blobs=f"{address}/away") as gateway:

        def away(*args, **kwargs):
            raise obstore.exceptions.GenericError("connection refused")

        assert gateway.get("/v1/health/ready").json()["checks"]["media"] == "ok"
        monkeypatch.setattr(obstore, "put", away)
        answer = gateway.post("/v1/analyses", content=clip)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "gives no answer (connection refused); try again later" in answer.json()["detail"]
        assert gateway.get("/v1/analyses").json()["items"] == []
        monkeypatch.setattr(obstore, "list", away)
        ready = gateway.get("/v1/health/ready")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert "where media are kept, gives no answer (connection refused)" in ready.json()["checks"]["media"]
    with pytest.raises(OptionError, match="`blobs` is s3://nowhere/x, which cannot be read"):
        media_of(Settings.of(data_dir=tmp_path, blobs="s3://nowhere/x"))
    assert issubclass(MediaAwayError, ConnectionError)
