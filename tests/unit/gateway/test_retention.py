"""What is removed once its time is over, and what stays."""

import os
import time

import sqlalchemy as sa

from deepfake_gateway.jobs.retention import purge
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.schema import ANALYSES


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
