"""API v1 from outside: begin, wait, follow, list, cancel and delete analyses."""

import gzip
import json
import time
from pathlib import Path

import gateways
import pytest
from jsonschema import validate

from deepfake_gateway.api.documents import AnalysisDocument

ROOT = Path(__file__).parents[3]
SCHEMA = json.loads((ROOT / "docs" / "verdict.schema.json").read_text())
WAIT = {"Prefer": "wait=60"}


def send(gateway, clip, name="clip.mp4", headers=WAIT, **fields):
    return gateway.post("/v1/analyses", files={"file": (name, clip)}, data=fields, headers=headers)


def test_a_file_is_answered_with_the_verdict(gateway, clip):
    answer = send(gateway, clip, num_frames=4)
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=60"
    body = answer.json()
    AnalysisDocument.model_validate(body)
    validate(body["verdict"], SCHEMA)
    assert body["verdict"]["source"] == "clip.mp4"
    assert body["file"]["media_type"] == "video/mp4"
    assert body["file"]["size_bytes"] == len(clip)
    assert len(body["verdict"]["frames"]) == 4
    assert gateway.get(body["links"]["self"]).json() == body


def test_a_file_may_be_the_body_itself(gateway, clip):
    answer = gateway.post("/v1/analyses?num_frames=2&file_name=a/b/talk.mp4", content=clip, headers=WAIT)
    assert answer.json()["file"]["name"] == "talk.mp4"
    assert len(answer.json()["verdict"]["frames"]) == 2


@pytest.mark.parametrize("path", ["/v1/analyses?name=a%00", "/history?model=%00", "/v1/usage?%00=1"])
def test_a_query_with_a_nul_is_refused(gateway, path):
    answer = gateway.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert "leave it out" in answer.json()["detail"]
    assert gateway.get("/v1/analyses/%00").status_code == 404


def test_what_is_said_twice_is_refused_wherever_it_is_said(tmp_path, clip):
    with gateways.gateway(tmp_path, url_intake=True) as gateway:
        form = [("file", ("a.mp4", clip)), ("num_frames", (None, "2")), ("num_frames", (None, "3"))]
        as_json = {"Content-Type": "application/json"}
        refusals = {
            "form": gateway.post("/v1/analyses", files=form),
            "batch": gateway.post("/v1/batches", files=form),
            "page": gateway.post("/", files=form),
            "both": gateway.post("/v1/analyses?num_frames=4", files=form[:2]),
            "query": gateway.post("/v1/analyses?num_frames=2&num_frames=3", content=clip),
            "JSON": gateway.post("/v1/analyses", content='{"num_frames": 2, "num_frames": 3}', headers=as_json),
        }
        for where, answer in refusals.items():
            assert (answer.status_code, "`num_frames` more than" in answer.json()["detail"]) == (422, True), where
        addresses = '{"url": "https://a.org", "url": "https://b.org"}'
        for path in ("/v1/analyses", "/v1/watches", "/v1/webhooks"):
            answer = gateway.post(path, content=addresses, headers=as_json)
            assert (answer.status_code, "`url` more than once" in answer.json()["detail"]) == (422, True), path
        assert gateway.get("/v1/analyses?status=done&status=failed").status_code == 422
        assert gateway.queue.runs == 0


def test_what_curl_calls_a_form_is_a_file_unless_it_is_one(gateway, clip):
    form = {"Content-Type": "application/x-www-form-urlencoded", **WAIT}
    assert gateway.post("/v1/analyses?file_name=a.mp4", content=clip, headers=form).status_code == 200
    refused = gateway.post("/v1/analyses", content=b"url=http%3A%2F%2Fexample.org&num_frames=2", headers=form)
    assert (refused.status_code, "multipart" in refused.json()["detail"]) == (415, True)


def test_without_waiting_there_is_an_address(gateway, clip):
    answer = send(gateway, clip, headers={})
    assert answer.status_code == 202
    assert answer.json()["verdict"] is None
    assert gateway.get(answer.headers["location"]).status_code == 200


def test_the_same_bytes_and_options_are_analyzed_once(gateway, clip):
    first, again = send(gateway, clip).json(), send(gateway, clip).json()
    assert again == first
    assert send(gateway, clip, threshold=0.9).json()["id"] != first["id"]
    assert gateway.queue.runs == 2


def test_the_same_bytes_under_another_name_have_their_own_analysis_with_the_same_verdict(gateway, clip):
    first, other = send(gateway, clip).json(), send(gateway, clip, "other.mp4", {"Idempotency-Key": "k"})
    assert other.status_code == 200
    answer = other.json()
    assert gateway.queue.runs == 1
    assert (answer["file"]["name"], answer["verdict"]["source"]) == ("other.mp4", "other.mp4")
    assert answer["verdict"] == {**first["verdict"], "source": "other.mp4"}
    assert gateway.get(other.headers["location"]).json() == answer
    assert send(gateway, clip, "other.mp4", {"Idempotency-Key": "k"}).json() == answer
    assert send(gateway, clip, "other.mp4").json() == answer
    assert send(gateway, clip).json() == first
    assert [item["file"]["name"] for item in gateway.get("/v1/analyses").json()["items"]] == ["other.mp4", "clip.mp4"]
    assert [kind for _, kind, _ in events_of(gateway.get(answer["links"]["events"]).text)] == ["status", "end"]
    assert gateway.delete(first["links"]["self"]).status_code == 204
    assert gateway.get(answer["links"]["media"]).content == clip


def test_an_answer_by_an_earlier_result_leaves_no_file_where_none_is_kept(tmp_path, clip):
    with gateways.gateway(tmp_path, media_hours=0) as gateway:
        first = send(gateway, clip).json()
        answer = send(gateway, clip, "other.mp4").json()
        assert answer["verdict"]["label"] == first["verdict"]["label"]
        assert gateway.get(f"{answer['links']['self']}/media").status_code == 404
        assert send(gateway, clip).json() == first, "a file that is never kept is not missed"
        assert not list((tmp_path / "incoming").iterdir())


def test_an_idempotency_key_stands_for_one_request(gateway, clip):
    headers = {"Idempotency-Key": "k1"}
    gateway.queue.hold.clear()
    first = send(gateway, clip, headers=headers).json()
    assert send(gateway, clip, headers=headers).json()["id"] == first["id"]
    for other in (
        send(gateway, clip, headers=headers, num_frames=3),
        send(gateway, clip, "other.mp4", headers),
        send(gateway, clip + b" ", headers=headers),
    ):
        assert (other.status_code, "new key" in other.json()["detail"]) == (409, True)


def events_of(text):
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
    return [(block["id"], block["event"], json.loads(block["data"])) for block in blocks]


def test_events_tell_the_states_and_go_on_where_they_broke_off(gateway, clip):
    analysis = send(gateway, clip).json()
    events = events_of(gateway.get(analysis["links"]["events"]).text)
    states = [data["status"] for _, kind, data in events if kind == "status"]
    assert states == ["queued", "running", "done"]
    assert events[-1][1] == "end"
    assert events[-1][2]["verdict"] == analysis["verdict"]
    rest = events_of(gateway.get(analysis["links"]["events"], headers={"Last-Event-ID": events[1][0]}).text)
    assert [data.get("status") for _, _, data in rest] == ["done", "done"]


def test_a_canceled_analysis_ends_its_work(gateway, clip):
    gateway.queue.slow = True
    analysis = send(gateway, clip, headers={}).json()
    assert gateway.queue.working.wait(30)
    answer = gateway.post(f"{analysis['links']['self']}/cancel")
    assert answer.json()["status"] == "canceled"
    assert gateway.queue.canceled.wait(30)
    assert gateway.post(f"{analysis['links']['self']}/cancel").status_code == 409


def test_deleting_leaves_nothing_on_disk(gateway, clip, tmp_path):
    analysis = send(gateway, clip).json()
    folder = gateway.desk.media.path(analysis["id"]).parent
    assert folder.exists()
    assert gateway.delete(analysis["links"]["self"]).status_code == 204
    assert gateway.get(analysis["links"]["self"]).status_code == 404
    assert not folder.exists()
    assert list((tmp_path / "data" / "incoming").iterdir()) == []


def test_the_list_is_paged_and_filtered(gateway, clip):
    ids = [send(gateway, clip, f"{number}.mp4", num_frames=number).json()["id"] for number in (1, 2, 3)]
    first = gateway.get("/v1/analyses?limit=2").json()
    assert [item["id"] for item in first["items"]] == [ids[2], ids[1]]
    assert [item["id"] for item in gateway.get("/v1/analyses?name=2.mp").json()["items"]] == [ids[1]]
    assert gateway.get("/v1/analyses?status=failed").json()["items"] == []
    for item in first["items"]:  # who empties the list page by page comes to its end
        assert gateway.delete(item["links"]["self"]).status_code == 204
    second = gateway.get("/v1/analyses", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [item["id"] for item in second["items"]] == [ids[0]]
    assert second["next_cursor"] is None
    for wrong in (ids[0], "x", first["next_cursor"] + "0"):
        answer = gateway.get("/v1/analyses", params={"cursor": wrong})
        assert (answer.status_code, "`cursor` is" in answer.json()["detail"]) == (422, True)


@pytest.mark.parametrize("path", ["/v1/analyses/", "/v1/batches/", "/predict/video/", "/history/", "/health/"])
def test_no_address_ends_with_a_slash_and_none_leads_elsewhere(gateway, clip, path):
    for method in ("GET", "POST"):
        answer = gateway.request(method, path, content=clip)
        assert answer.status_code == 404
        assert answer.json()["detail"] == f"there is nothing at {path}; leave out the slash at its end"
    assert gateway.get("/v1/analyses").json()["items"] == []


def test_reports(gateway, clip, monkeypatch):
    analysis = send(gateway, clip, num_frames=3).json()

    def report(kind):
        return gateway.get(analysis["links"]["report"], params={"format": kind})

    assert report("json").json() == analysis["verdict"]
    lines = report("csv").text.splitlines()
    assert len(lines) == 1 + sum(len(frame["faces"]) for frame in analysis["verdict"]["frames"])
    pdf = report("pdf")
    assert (pdf.headers["content-type"], pdf.content[:5]) == ("application/pdf", b"%PDF-")
    assert pdf.headers["content-disposition"].startswith("attachment")
    assert "format=pdf" in gateway.get(f"/analyses/{analysis['id']}").text
    monkeypatch.setattr("deepfake_gateway.jobs.evidence.find_spec", lambda name: None)
    assert report("pdf").status_code == 422
    assert "format=pdf" not in gateway.get(f"/analyses/{analysis['id']}").text


def test_the_medium_is_sent_in_ranges(gateway, clip):
    analysis = send(gateway, clip).json()
    size = len(clip)
    whole = gateway.get(analysis["links"]["media"])
    assert (whole.status_code, whole.content, whole.headers["accept-ranges"]) == (200, clip, "bytes")
    for asked, start, stop in (("4-11", 4, 12), (f"{size - 5}-", size - 5, size), ("-3", size - 3, size),
                               (f"10-{2 * size}", 10, size), (f"10-{10**30}", 10, size)):  # fmt: skip
        answer = gateway.get(analysis["links"]["media"], headers={"Range": f"Bytes={asked}"})
        assert (answer.status_code, answer.content) == (206, clip[start:stop])
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
        assert answer.headers["content-type"] == "video/mp4"
    other = {"If-Range": '"another"', "Range": "bytes=4-11"}
    for headers in ({"Range": "bytes=4-11,20-21"}, {"Range": "bytes=9-4"}, {"Range": "frames=1-2"}, other):
        assert gateway.get(analysis["links"]["media"], headers=headers).content == clip
    for start in (size, 10**30):
        behind = gateway.get(analysis["links"]["media"], headers={"Range": f"bytes={start}-"})
        assert (behind.status_code, behind.headers["content-range"]) == (416, f"bytes */{size}")


@pytest.mark.parametrize(
    "path",
    ["/", "/history", "/analyses/{id}", "/static/app.js", "/health", "/v1/health/ready", "/metrics", "/openapi.json",
     "/v1/analyses", "/v1/analyses/{id}", "/v1/analyses/{id}/media", "/v1/analyses/{id}/report", "/v1/nothing"],
)  # fmt: skip
def test_head_is_get_without_a_body(gateway, clip, path):
    path = path.format(id=send(gateway, clip).json()["id"])
    head, get = gateway.head(path), gateway.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    if path != "/metrics":  # which counts both
        assert head.headers.get("content-length") == get.headers.get("content-length")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/analyses", "GET, HEAD, POST"),
        ("POST", "/v1/analyses/0", "DELETE, GET, HEAD"),
        ("GET", "/v1/analyses/0/cancel", "POST"),
        ("HEAD", "/v1/analyses/0/cancel", "POST"),
        ("DELETE", "/", "GET, HEAD, POST"),
        ("POST", "/static/app.js", "GET, HEAD"),
        ("PUT", "/openapi.json", "GET, HEAD"),
    ],
)
def test_a_refused_method_is_told_all_that_the_address_takes(gateway, method, path, allowed):
    answer = gateway.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_head_of_events_does_not_wait_for_them(gateway, clip):
    gateway.queue.hold.clear()
    analysis = gateway.post("/v1/analyses", content=clip).json()
    head = gateway.head(analysis["links"]["events"])
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"].startswith("text/event-stream")
    assert gateway.get(analysis["links"]["self"]).json()["status"] == "queued"
    assert gateway.head(f"{analysis['links']['self']}/cancel").status_code == 405


PAGE = b"<html><script>alert(1)</script></html>"


@pytest.mark.parametrize(
    ("content", "kind", "disposition"),
    [
        (PAGE, "application/octet-stream", "attachment"),
        (b"<svg xmlns='x' onload='alert(1)'/>", "application/octet-stream", "attachment"),
        (b"GIF89a" + PAGE, "image/gif", "inline"),
        (b"BM" + PAGE, "image/bmp", "inline"),
        (b"\0\0\0\x08ftypisom" + PAGE, "video/mp4", "inline"),
    ],
)
def test_a_page_that_is_uploaded_is_never_a_page(gateway, content, kind, disposition):
    analysis = send(gateway, content, "<img src=x onerror=alert(1)>.html").json()
    assert analysis["status"] == "failed"
    assert analysis["error"]["type"] == "MediaOpenError"
    answer = gateway.get(analysis["links"]["media"], headers={"Accept": "text/html"})
    assert answer.headers["content-type"] == kind
    assert answer.headers["content-disposition"].startswith(disposition)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "onerror=alert(1)>" not in gateway.get(f"/analyses/{analysis['id']}").text


def test_nothing_of_a_clip_is_served_as_what_a_browser_runs(gateway, clip):
    analysis = send(gateway, clip, "a.html").json()
    crops = gateway.get(analysis["links"]["crops"]).json()["items"]
    for address in (analysis["links"]["media"], crops[0]["href"], analysis["links"]["report"]):
        answer = gateway.get(address, headers={"Accept": "text/html"})
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")


def test_refusals_say_what_to_do(gateway, clip):
    cases = [
        (404, gateway.get("/v1/analyses/nothing")),
        (404, gateway.get("/v1/nothing")),
        (422, send(gateway, clip, threshold=2)),
        (422, send(gateway, clip, wrong="x")),
        (422, send(gateway, clip, num_frames=3, fps=1)),
        (422, gateway.post("/v1/analyses", files={"other": ("a.mp4", clip)})),
        (422, gateway.get("/v1/analyses?limit=0")),
        (422, gateway.post("/v1/analyses", files=[("file", ("a", b"1")), ("file", ("b", b"2"))])),
        (422, gateway.post("/v1/analyses", data={str(n): "" for n in range(33)}, files={"file": ("a", b"1")})),
        (422, gateway.post("/v1/analyses", data={"mode": "x" * 4097}, files={"file": ("a", b"1")})),
        (
            400,
            gateway.post("/v1/analyses", content=b"--x", headers={"Content-Type": "multipart/form-data; boundary=x"}),
        ),
        (415, gateway.post("/v1/analyses", data={"file": "x"})),
        (400, gateway.post("/v1/analyses", content=b"[" * 100_000, headers={"Content-Type": "application/json"})),
        (403, send(gateway, clip, headers={"Origin": "https://elsewhere.example"})),
        (403, gateway.get("/v1/analyses", headers={"Host": "bound.example"})),
    ]
    for status, answer in cases:
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == status
        assert len(answer.json()["detail"]) > 20


@pytest.mark.parametrize("number", ["9" * 19, "9" * 5000, "-1", "1.5", "x"])
def test_an_event_id_that_is_none_begins_from_the_beginning(gateway, clip, number):
    events = send(gateway, clip, num_frames=2).json()["links"]["events"]
    assert gateway.get(events, headers={"Last-Event-ID": number}).text == gateway.get(events).text


# What a browser sends of a form in which no file was chosen.
UNCHOSEN = (
    b'--x\r\nContent-Disposition: form-data; name="file"; filename=""\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n\r\n--x--\r\n"
)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"files": {"file": ("a.mp4", b"")}}, "the file is empty; copy or download it again"),
        ({"params": {"file_name": "a.mp4"}}, "the file is empty; copy or download it again"),
        ({}, "there is no file; send it as file of multipart/form-data, or as the body"),
        (
            {"content": UNCHOSEN, "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
            "there is no file; send it as file of multipart/form-data, or as the body",
        ),
        (
            {"files": {"file": (None, "clip.mp4")}},
            "the field 'file' holds text and not a file; with curl, write file=@clip.mp4",
        ),
        (
            {"content": b"x", "params": {"frames": "3"}},
            "there is no option `frames`; there are num_frames, fps, mode",
        ),
        ({"content": b"x", "params": {"num_frames": "20000"}}, "`num_frames` is 20000, and at most 10000 frames"),
        ({"content": b"x", "params": {"num_frames": "9" * 99}}, "999, and at most 10000 frames"),
        (
            {"files": {"file": ("a.mp4", b"x")}, "params": {"file_name": "b.mp4"}},
            "`file_name` is of a file that is the body itself; a form names its own",
        ),
        ({"json": []}, "the JSON is not an object; send one with addresses and options"),
    ],
)
def test_what_a_newcomer_gets_wrong_is_named(gateway, body, words):
    answer = gateway.post("/v1/analyses", **body)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]


def test_what_is_made_of_a_verdict_says_why_there_is_none(gateway):
    failed = send(gateway, b"no video").json()
    answer = gateway.get(f"{failed['links']['self']}/report")
    assert (answer.status_code, answer.json()["detail"]) == (
        409,
        "the analysis failed and has no verdict; its `error` says why",
    )
    gateway.queue.slow = True
    begun = send(gateway, b"no video either", headers={}).json()
    report = f"{begun['links']['self']}/report"
    assert gateway.get(report).json()["detail"].endswith("and has no verdict; ask again once it is done")
    gateway.post(f"{begun['links']['self']}/cancel")
    assert gateway.get(report).json()["detail"] == (
        "the analysis was canceled and has no verdict; send the file again"
    )


def test_moments_without_a_zone_are_of_utc(gateway, clip, monkeypatch):
    begun = send(gateway, clip, num_frames=2).json()["created_at"]
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        listed = [
            len(gateway.get("/v1/analyses", params={name: moment}).json()["items"])
            for name, moment in (("since", begun[:19]), ("until", begun[:19]), ("since", "0001-01-01"))
        ]
    time.tzset()
    assert listed == [1, 0, 1]


def test_a_day_that_ends_a_list_is_in_it(gateway, clip):
    begun = send(gateway, clip, num_frames=2).json()["created_at"]
    day = begun[:10]

    def listed(path="/v1/analyses", **asked):
        answer = gateway.get(path, params=asked)
        return answer.text.count("clip.mp4") > 0 if answer.is_success else answer.json()["detail"]

    for path in ("/v1/analyses", "/history"):
        assert listed(path, since=day, until=day) is True, path
        assert listed(path, until="9998-12-31") is True, path
        assert listed(path, until="2020-01-01") is False, path
        assert listed(path, since=day, until="2020-01-01").startswith("`since` is later than `until`"), path
    assert listed(until="9999-12-31") is True
    assert listed(until=f"{day}T00:00:00") is False, "a moment is one"
    assert "`until` is '2026-02-30'" in listed(until="2026-02-30")


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ("attachment; filename*=utf-8''a%F0; filename*0*=x'y'%ff", "query.mp4"),  # parts that do not go together
        (f"attachment; filename*{'9' * 5000}*=a", "query.mp4"),
        ('attachment; filename=".."', "upload"),
        ('attachment; filename="a%0d.mp4"', "a%0d.mp4"),
        ('attachment; filename="Übung.mp4"'.encode(), "Übung.mp4"),
        ('attachment; filename="Übung.mp4"'.encode("latin-1"), "Übung.mp4"),
        ("attachment; filename=\"Ubung.mp4\"; filename*=UTF-8''%C3%9Cbung.mp4", "Übung.mp4"),
        ("attachment; filename*=utf-8'de'%C3%9Cbung.mp4; filename=Ubung.mp4", "Übung.mp4"),
        ("attachment; filename*=utf-8''U%CC%88bung.mp4", "Übung.mp4"),  # as macOS writes it
    ],
)
def test_a_name_is_read_as_it_was_meant_or_replaced(gateway, disposition, name):
    headers = {"Content-Disposition": disposition}
    answer = gateway.post("/v1/analyses?file_name=query.mp4", content=b"junk", headers=headers)
    assert (answer.status_code, answer.json()["file"]["name"]) == (202, name)


@pytest.mark.parametrize(
    "given",
    [
        "name=file; filename=\"=?utf-8?B?w5xidW5nLm1wNA==?=\"; filename*=utf-8''%C3%9Cbung.mp4",  # .NET
        "name=\"file\"; filename*=utf-8''%C3%9Cbung.mp4",  # programs that hold to RFC 5987
        'name="file"; filename="Übung.mp4"',  # browsers and curl
    ],
)
def test_a_name_in_a_form_is_read_whatever_program_sends_it(gateway, given):
    body = f"--b\r\nContent-Disposition: form-data; {given}\r\n\r\njunk\r\n--b--\r\n".encode()
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = gateway.post("/v1/analyses", content=body, headers=headers)
    assert (answer.status_code, answer.json()["file"]["name"]) == (202, "Übung.mp4")


def test_a_form_whose_boundary_was_left_out_is_told_what_is_missing(gateway):
    answer = gateway.post("/v1/analyses", content=b"--b", headers={"Content-Type": "multipart/form-data"})
    assert (answer.status_code, "has no boundary" in answer.json()["detail"]) == (400, True)


def test_a_body_that_is_compressed_on_the_way_is_not_taken_for_the_file(gateway, clip):
    gzipped = {"Content-Encoding": "gzip"}
    for path in ("/v1/analyses", "/v1/batches", "/v1/webhooks"):
        answer = gateway.post(path, content=gzip.compress(clip), headers=gzipped)
        assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
        assert "Content-Encoding: gzip" in answer.json()["detail"]
    for fine in ("identity", ""):
        answer = gateway.post("/v1/analyses", content=clip, headers={"Content-Encoding": fine, **WAIT})
        assert answer.status_code == 200


def test_an_empty_idempotency_key_is_none(gateway, clip):
    answer = gateway.post("/v1/analyses", content=clip, headers={"Idempotency-Key": ""})
    assert (answer.status_code, "at least 1 character" in answer.json()["detail"]) == (422, True)


def test_a_file_that_is_fetched_is_named_by_its_address_alone(tmp_path):
    with gateways.gateway(tmp_path, url_intake=True) as gateway:
        named = gateway.post("/v1/analyses?file_name=b.mp4", json={"url": "https://example.org/a.mp4"})
    assert (named.status_code, "`file_name` is of a file that is the body" in named.json()["detail"]) == (422, True)


def test_who_prefers_several_things_may_say_so_in_several_headers(gateway, clip):
    headers = [("Prefer", "respond-async"), ("Prefer", "wait=60")]
    answer = gateway.post("/v1/analyses", content=clip, headers=headers)
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=60")


def test_a_priority_in_the_form_is_told_where_it_belongs(gateway, clip):
    answer = gateway.post("/v1/analyses", files={"file": ("a.mp4", clip)}, data={"priority": "bulk"})
    assert (answer.status_code, "a parameter of the query" in answer.json()["detail"]) == (422, True)


def test_who_has_the_medium_already_does_not_get_it_again(gateway, clip):
    media = send(gateway, clip, num_frames=2).json()["links"]["media"]
    tag = gateway.get(media).headers["etag"]
    for known in (tag, f'"other", W/{tag}', "*"):
        answer = gateway.get(media, headers={"If-None-Match": known, "Range": "bytes=0-3"})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    assert gateway.get(media, headers={"If-None-Match": '"other"'}).content == clip


def test_a_long_name_is_cut(gateway):
    assert len(send(gateway, b"junk", "x" * 5000).json()["file"]["name"]) == 255
    answer = send(gateway, b"junk", "x" * 10_000)
    assert (answer.status_code, "shorter name" in answer.json()["detail"]) == (422, True)


@pytest.mark.parametrize(
    ("method", "path", "known"),
    [
        ("GET", "analyses?state=failed", "there are cursor, limit, label, status"),
        ("GET", "analyses/ID/report?kind=csv", "there are format"),
        ("GET", "watches?status=done", "there are cursor, limit"),
        ("GET", "usage?first=2026-01-01", "there are from, to"),
        ("POST", "batches?num_frames=16", "is in the body"),
        ("POST", "analyses/ID/explanations?method=hires-cam", "is in the body"),
        ("POST", "watches?step_s=2", "is in the body"),
        ("POST", "webhooks?url=x", "is in the body"),
    ],
)
def test_a_parameter_that_there_is_not_is_not_passed_over(gateway, clip, method, path, known):
    analysis = send(gateway, clip, num_frames=2).json()["id"]
    body = (
        {"files": {"file": ("a.mp4", clip)}} if path.startswith("batches") else {"json": {"url": "http://1.1.1.1/"}}
    )
    asked = {} if method == "GET" or "ID" in path else body
    answer = gateway.request(method, f"/v1/{path.replace('ID', analysis)}", **asked)
    name = path.partition("?")[2].partition("=")[0]
    assert answer.status_code == 422
    assert f"there is no parameter `{name}` in the address" in answer.json()["detail"]
    assert known in answer.json()["detail"]


def test_refusals_name_what_is_allowed_as_it_is_written(gateway):
    assert "'REAL', 'FAKE' or 'INCONCLUSIVE'" in gateway.get("/v1/analyses?label=fake").json()["detail"]
    for body in (b"{", b"[" * 100_000):
        answer = gateway.post("/v1/webhooks", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422)
        assert "what /docs shows for it" in answer.json()["detail"]
    assert gateway.get("/compare?one=x").json()["detail"] == "`two` is missing; give it"
    misspelled = gateway.post("/v1/webhooks", json={"uri": "https://example.org/hook"})
    assert (misspelled.status_code, misspelled.json()["detail"]) == (422, "`url` is missing; give it")
    assert gateway.post("/v1/webhooks").json()["detail"] == "`the body` is missing; give it"


@pytest.mark.parametrize("path", ["webhooks", "watches", "analyses/0/explanations"])
@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", None])
def test_json_that_is_not_said_to_be_json_is_told_so(gateway, path, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    answer = gateway.post(f"/v1/{path}", content=b'{"url": "https://example.org/hook"}', headers=headers)
    assert (answer.status_code, "send it with `Content-Type: application/json`" in answer.json()["detail"]) == (
        415, True,
    )  # fmt: skip


def test_a_fault_of_the_service_is_a_problem_with_the_id_of_its_log(gateway, monkeypatch, caplog):
    monkeypatch.setattr(gateway.desk.store, "page", lambda *_, **__: 1 / 0)
    gateway._transport.raise_server_exceptions = False
    answer = gateway.get("/v1/analyses", headers={"X-Request-Id": "mine"})
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "ZeroDivisionError" in answer.json()["detail"]
    assert "request id mine" in answer.json()["detail"]
    page = gateway.get("/history", headers={"Accept": "text/html"})
    assert (page.status_code, "request id" in page.text) == (500, True)
    assert page.headers["x-content-type-options"] == "nosniff"


def test_what_is_too_large_or_too_much_is_refused(tmp_path, clip):
    with gateways.gateway(tmp_path, max_upload_bytes=1000, max_queued=1) as gateway:
        assert send(gateway, clip).status_code == 413
        gateway.queue.hold.clear()
        assert send(gateway, b"one", headers={}).status_code == 202
        answer = send(gateway, b"two", headers={})
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "10"


def test_operations(gateway, clip):
    send(gateway, clip)
    assert gateway.get("/v1/models").json()["models"][0]["checkpoint_sha256"] == "ab" * 32
    assert gateway.get("/v1/health/live").json() == {"live": True}
    ready = gateway.get("/v1/health/ready")
    assert ready.status_code == 503
    checks = ready.json()["checks"]
    assert checks == {"server": "ok", "store": "ok", "worker": "no worker runs", "disk": "ok", "media": "ok"}
    assert 'deepfake_gateway_analyses{status="done"} 1.0' in gateway.get("/metrics").text
    assert gateway.get("/openapi.json").json()["openapi"].startswith("3.1")
