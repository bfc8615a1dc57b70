"""``/metrics``: what the database counts of jobs, the same from every gateway, and what a gateway refused."""

import gateways
from prometheus_client.parser import text_string_to_metric_families

from deepfake_gateway.store.keys import Keys


def read(client, headers=None):
    """Return the samples as (name, labels) -> value."""
    answer = client.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    return {
        (sample.name.removeprefix("deepfake_gateway_"), *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def send(client, content, **options):
    return client.post("/v1/analyses", params=options, content=content, headers={"Prefer": "wait=60"})


def test_jobs_are_counted_once_and_by_all_gateways_alike(tmp_path, gateway, clip):
    verdict = send(gateway, clip, num_frames=4).json()["verdict"]
    assert send(gateway, clip, num_frames=4).json()["verdict"] == verdict  # the earlier result, which is no job
    send(gateway, b"no medium at all")
    found = read(gateway)
    assert found["analyses", ("status", "done")] == found["analyses", ("status", "failed")] == 1
    assert found["analyses", ("status", "queued")] == found["oldest_queued_seconds",] == 0
    assert found["sent_total",] == 2
    assert found["sent_bytes_total",] == len(clip) + 16
    assert found["ended_total", ("label", verdict["label"]), ("status", "done")] == 1
    assert found["ended_total", ("label", ""), ("status", "failed")] == 1
    assert found["failures_total", ("error_type", "MediaOpenError")] == 1
    assert found["frames_total",] == 4
    assert found["faces_total",] == sum(len(frame["faces"]) for frame in verdict["frames"]) > 0
    assert found["video_seconds_total",] == 1
    assert found["stage_seconds_total", ("stage", "decode")] == verdict["timing_s"]["decode"]
    assert found["queue_wait_seconds_bucket", ("le", "+Inf")] == found["queue_wait_seconds_count",] == 2
    assert found["analysis_seconds_count",] == 1
    score, checkpoint = verdict["fake_probability"], ("checkpoint_sha256", gateways.SPEC.checkpoint_sha256)
    assert found["score_sum", checkpoint] == score
    for bound in ("0.1", "0.5", "1.0"):
        assert found["score_bucket", checkpoint, ("le", bound)] == (score <= float(bound))
    with gateways.gateway(tmp_path / "data") as other:
        again = read(other)
    assert again["ended_total", ("label", ""), ("status", "failed")] == 1
    assert ("requests_total", ("method", "POST"), ("status", "200")) not in again  # that one counts by itself


def test_what_has_no_answer_is_counted_by_its_reason_and_deleting_takes_nothing_back(gateway, clip):
    analysis = send(gateway, clip, min_face_px=5000).json()
    reason = analysis["verdict"]["reason"]
    gateway.delete(f"/v1/analyses/{analysis['id']}")
    found = read(gateway)
    assert found["inconclusive_total", ("reason", reason)] == 1
    assert found["ended_total", ("label", "INCONCLUSIVE"), ("status", "done")] == 1
    assert found["analyses", ("status", "done")] == 0


def test_refusals_are_counted_by_the_setting_that_bounds_them(tmp_path, clip):
    with gateways.gateway(tmp_path / "data", max_upload_bytes=100, seconds_per_day=0.5) as client:
        assert send(client, clip).status_code == 413
        assert client.get("/v1/analyses/unknown").status_code == 404
        keys = Keys(client.desk.store.engine)
        key, reader = ({"X-Api-Key": keys.create("a", scopes)[1]} for scopes in (["analyze"], ["metrics"]))
        assert client.get("/v1/analyses").status_code == 401
        assert client.get("/metrics", headers=key).status_code == 403
        assert client.get("/v1/analyses", headers=reader).status_code == 403
        found = read(client, reader)
    for status, reason in (("413", "max_upload_bytes"), ("404", "not_found"), ("401", "unauthorized")):
        assert found["refused_total", ("reason", reason), ("status", status)] == 1
    assert found["refused_total", ("reason", "forbidden"), ("status", "403")] == 2
    assert found["requests_total", ("method", "GET"), ("status", "403")] == 2
    assert found["received_bytes_total",] > 0
