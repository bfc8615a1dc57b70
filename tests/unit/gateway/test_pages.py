"""The pages without a browser: forms work, names are escaped, and nothing is inline or from elsewhere."""

import html
import re
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import gateways
import http_files
import pytest
import verdicts

from deepfake_gateway.store.schema import ANALYSES
from deepfake_gateway.web import lanes, moments, pages, words
from deepfake_gateway.web.language import language

NAME = '"><script>alert(1)</script>.mp4'
BROWSER = {"Accept": "text/html"}


def send(gateway, clip, **fields):
    """Send a clip by the page's form, and return the address of its result once it is there."""
    sent = gateway.post("/", files={"file": (NAME, clip)}, data=fields)
    assert sent.status_code == 303
    gateway.get(f"/v1{sent.headers['location']}/events")  # until it is over
    return sent.headers["location"]


def test_what_was_known_when_it_was_sent_again_is_a_row_and_what_ends_is_none(gateway, clip):
    result = send(gateway, clip)
    assert gateway.get(f"{result}/row").text == ""
    row = gateway.get(f"{result}/row", params={"known": "1"})
    assert f'<a href="{result}">' in row.text
    assert "hx-get" not in row.text
    assert 'class="tag' in row.text


def test_pages_hold_to_their_policy(gateway, clip):
    result = send(gateway, clip, threshold="0.9")
    for path in ("/", result, "/history", "/docs", "/no", f"{result}/row", f"{result}/moments", "/?lang=de"):
        page = gateway.get(path, headers=BROWSER)
        assert page.status_code == (404 if path == "/no" else 200), page.text
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert "alert(1)</script>" not in page.text
        assert not re.search(r"<script(?![^>]*src=\"/static/)", page.text)
        assert " style=" not in page.text
        assert not re.search(r"(?:src|href|action)=\"(?:https?:)?//", page.text)


def test_the_result_shows_verdict_scale_and_lanes(gateway, clip):
    page = gateway.get(send(gateway, clip, threshold="0.9")).text
    assert re.search(r"The face does not look manipulated in any of the \d+ frames that show it well", page)
    assert "threshold 0.90" in page
    assert 'data-lane="0"' in page
    assert 'src="/v1/analyses/' in page
    assert "Show heatmaps" not in page  # there is no explain service


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        ([(0.2, 0.3)], "The face does not look manipulated in any of the 2 frames that show it well."),
        ([(0.2, 0.7)], "The face does not look manipulated overall, though it does in 1 of the 2 frames "
         "that show it well."),
        ([(0.4, 0.7), (0.1, 0.9)], "No face looks manipulated overall; the most suspicious one does in 1 of the 2 "
         "frames that show it well."),
        ([(0.3, 0.9), (0.1, 0.1)], "Face 1 looks manipulated in 1 of the 2 frames that show it well. Face 2 does "
         "not."),
        ([(0.8,)], "Face 1 looks manipulated."),
        ([(0.2,)], "The face does not look manipulated."),
    ],
)  # fmt: skip
def test_the_headline_says_what_was_found_of_which_face(scores, sentence):
    tracks = [
        {"track": track, "label": "FAKE" if sum(faces) / len(faces) >= 0.6 else "REAL", "counted": True,
         "background": False}
        for track, faces in enumerate(scores)
    ]  # fmt: skip
    frames = [
        {
            "faces": [
                {"track": track, "weight": 1.0, "fake_probability": score} for track, score in enumerate(together)
            ]
        }
        for together in zip(*scores, strict=True)
    ]
    verdict = {
        "label": tracks[0]["label"], "reason": None, "deciding_track": 0, "threshold": 0.6, "tracks": tracks,
        "frames": frames, "interval": {"low": 0.65, "high": 0.95},
    }  # fmt: skip
    assert words.headline(language("en"), verdict) == sentence
    close = {**verdict, "interval": {"low": 0.55, "high": 0.6}}
    said = words.headline(language("en"), close).removeprefix(f"{sentence} ")
    one = len(frames) == 1
    assert said.startswith("One picture does not show how far" if one else "It is a close call: the")
    assert words.headline(language("en"), {**verdict, "interval": {"low": 0.6, "high": 0.9}}) == sentence


def analysis_of(verdict_of, **changes):
    values = {"sha256": "ab" * 32, "size_bytes": 6929, "media_type": "video/mp4", "options": {}} | changes
    is_image = values["media_type"].startswith("image/")
    return SimpleNamespace(verdict=verdict_of.to_dict(), is_image=is_image, **values)


def test_what_was_looked_at_has_its_times_and_the_file_its_hash():
    analysis = analysis_of(verdicts.verdict())
    facts = dict(words.facts_of(language("en"), analysis, analysis.verdict))
    assert facts["Frames"] == (
        "4 looked at, from 0:00.0 to 0:00.6, one every 0.20 s on average, 3 more were not needed"
    )
    assert (facts["File's size"], facts["File's SHA-256"]) == ("7 kB, video/mp4", "ab" * 32)
    assert "Score" not in facts
    long = verdicts.verdict()
    frames = tuple(replace(frame, pts_seconds=1200.0 * number) for number, frame in enumerate(long.frames))
    analysis = analysis_of(replace(long, frames=frames, fake_probability=0.85, frames_saved=0))
    facts = dict(words.facts_of(language("en"), analysis, analysis.verdict))
    assert facts["Frames"] == "4 looked at, from 0:00.0 to 1:00:00.0, one every 20 min 0 s on average"
    assert facts["Score"] == (
        "0.85: the 0.90 of face 1, less what the highest of several faces' scores exceeds by chance"
    )
    picture = analysis_of(verdicts.verdict(num_frames=1), media_type="image/png")
    assert "Frames" not in dict(words.facts_of(language("en"), picture, picture.verdict))


@pytest.mark.parametrize(
    ("chosen", "own", "said"),
    [
        (None, 0.5, ""),
        (0.5, 0.5, ""),
        (0.95, 0.5, "The threshold was chosen by hand; the model's own is 0.50. The score reaches that one."),
        (0.3, 0.93, "The threshold was chosen by hand; the model's own is 0.93. The score does not reach that one."),
        (0.3, None, "The threshold was chosen by hand."),
    ],
)
def test_a_threshold_that_was_chosen_by_hand_is_said(chosen, own, said):
    verdict = verdicts.verdict().to_dict()
    assert words.threshold_by_hand(language("en"), {"threshold": chosen}, verdict, own) == said


def test_a_picture_s_face_stands_in_the_middle_of_its_lane_without_a_time():
    verdict = verdicts.verdict(num_frames=1).to_dict()
    lane = lanes.lanes_of(language("en"), verdict)[0]
    assert ([point.x for point in lane.points], lane.small) == ([50.0], "decides")


def test_moments_of_faces_that_did_not_decide_come_last_and_have_no_color_of_a_verdict():
    shown = verdicts.verdict()
    fake, real = shown.tracks
    shown = replace(shown, tracks=(replace(fake, background=True), replace(real, counted=True)), deciding_track=1)
    found = moments.moments_of(language("en"), shown.to_dict(), "x", [])
    kinds = [(moment["face"], moment["kind"]) for moment in found]
    assert kinds == sorted(kinds, reverse=True)
    assert set(kinds) == {(2, "real"), (1, "inc")}


def test_days_of_the_history_are_those_of_the_place(gateway, clip):
    result = send(gateway, clip)
    begun = datetime(2026, 3, 28, 23, 30, tzinfo=UTC).timestamp()
    with gateway.app.state.whole_desk.store.engine.begin() as connection:
        connection.execute(
            ANALYSES.update().where(ANALYSES.c.id == result.rpartition("/")[2]).values(created_at=begun)
        )

    def is_found(**asked):
        return result in gateway.get("/history", params=asked).text

    assert is_found(since="2026-03-28", until="2026-03-28")
    assert not is_found(since="2026-03-29")
    berlin = {"zone": "Europe/Berlin"}
    assert is_found(since="2026-03-29", until="2026-03-29", **berlin)
    assert not is_found(until="2026-03-28", **berlin)
    assert gateway.get("/history", params={"since": "2026-03-28", "zone": "../x"}).status_code == 422
    assert gateway.get("/history", params={"since": "2026-03-28", "zone": "Nowhere"}).status_code == 422
    assert "1 result<" in gateway.get("/history").text


def test_several_files_are_one_batch_with_a_page(gateway, clip):
    files = [("file", ("one.mp4", clip)), ("file", ("none.mp4", b"")), ("file", ("two.mp4", clip + b" "))]
    sent = gateway.post("/", files=files, data={"threshold": "0.9"})
    page = sent.headers["location"]
    for item in gateway.get(f"/v1{page}").json()["items"]:
        if item["analysis"]:
            gateway.get(item["analysis"]["links"]["events"])
    text = gateway.get(page).text
    assert "3 files sent together" in text
    assert "2 REAL" in text
    assert "1 not accepted" in text
    assert "The file is empty" in text
    assert "hx-trigger" not in text
    assert f'href="{page}"' in gateway.get("/").text
    assert gateway.get(f"{page}/part").status_code == 200
    assert gateway.get("/batches/none", headers=BROWSER).status_code == 404
    assert f'action="{page}/delete"' in text
    assert gateway.post(f"{page}/delete").headers["location"] == "/"
    assert (gateway.get(page, headers=BROWSER).status_code, page in gateway.get("/").text) == (404, False)
    assert gateway.get("/v1/analyses").json()["items"] == []
    assert gateway.post(f"{page}/delete", headers=BROWSER).status_code == 404


def test_an_unfinished_batch_is_loaded_again_without_javascript_but_not_while_it_asks(gateway, clip):
    gateway.queue.hold.clear()
    files = [("file", ("one.mp4", clip)), ("file", ("two.mp4", clip + b" "))]
    page = gateway.post("/", files=files).headers["location"]
    again, link, asks = 'http-equiv="refresh"', 'class="no-js" href="?delete#remove"', '<details id="remove" open>'

    def shown(address):
        text = gateway.get(address).text
        return [words in text for words in (again, link, asks)]

    assert shown(page) == [True, True, False]
    assert shown(f"{page}?delete") == [False, False, True]
    gateway.queue.hold.set()
    for item in gateway.get(f"/v1{page}").json()["items"]:
        gateway.get(item["analysis"]["links"]["events"])
    assert shown(page) == [False, False, False], "it opens by itself"


def test_a_file_is_named_by_its_address_where_that_is_allowed(tmp_path, gateway, clip):
    assert "/addresses" not in gateway.get("/").text
    refused = gateway.post("/addresses", data={"url": "https://example.org/clip.mp4"}, headers=BROWSER)
    assert refused.status_code == 403
    settings = {"url_intake": True, "allowed_networks": ("127.0.0.0/8",)}
    with http_files.serving() as site, gateways.gateway(tmp_path / "other", **settings) as client:
        site.files["/clip.mp4"] = clip
        assert 'action="/addresses"' in client.get("/").text
        sent = client.post("/addresses", data={"url": f"{site.url}/clip.mp4"})
        assert "clip.mp4" in client.get(sent.headers["location"]).text


def main_button(page):
    return re.search(r'class="[^"]*primary"[^>]*>([^<]*)', page)[1]


def test_two_results_of_one_file_are_compared(gateway, clip):
    first = send(gateway, clip, threshold="0.9")
    again = gateway.post(f"{first}/again", data={"threshold": "0.01", "num_frames": ""})
    gateway.get(f"/v1{again.headers['location']}/events")
    one, two = (path.rpartition("/")[2] for path in (first, again.headers["location"]))
    assert f"/compare?one={one}&amp;two={two}" in gateway.get(f"/analyses/{two}").text
    page = gateway.get("/compare", params={"one": one, "two": two}).text
    assert "The verdicts differ." in page
    assert page.count('class="plot ') == 2
    assert re.search(r"Threshold</th><td[^>]*>0.9000</td><td[^>]*>0.0100", page)

    other = send(gateway, clip + b" ")
    refused = gateway.get("/compare", params={"one": one, "two": other.rpartition("/")[2]}, headers=BROWSER)
    assert refused.status_code == 409
    assert "results of different files" in refused.text


def test_a_file_that_is_gone_cannot_be_analyzed_again(gateway, clip):
    result = send(gateway, clip)
    assert f'href="/v1{result}/report"' in gateway.get(result).text
    gateway.desk.media.path(result.rpartition("/")[2]).unlink()
    page = gateway.get(result).text
    assert "The file was removed" in page
    # What shows the file cannot be made any more; what is in the verdict can.
    offered = re.findall(rf'href="(/v1{result}/report[^"]*)"', page)
    assert [path.rpartition("=")[2] for path in offered] == ["json", "csv"]
    assert {gateway.get(path).status_code for path in offered} == {200}
    assert gateway.post(f"{result}/again").status_code == 404


def test_heatmaps_are_asked_for_by_a_form(tmp_path, clip):
    with gateways.gateway(tmp_path / "data", explain_url="http://127.0.0.1:9") as gateway:
        result = send(gateway, clip)
        assert "Show heatmaps" in gateway.get(result).text
        asked = gateway.post(f"{result}/moments", data={"method": "layer-cam"})
        assert asked.headers["location"] == f"{result}#moments"
        gateway.post(f"/v1{result}/explanations", json={"method": "layer-cam"}, headers={"Prefer": "wait=60"})
        for thread in gateway.queue.threads:
            thread.join()
        page = gateway.get(f"{result}/moments").text
        assert 'class="heat"' in page
        assert "The scores behind the heatmaps agree with those of the verdict" in page
        assert gateway.post(f"{result}/moments", data={"method": "x"}, headers=BROWSER).status_code == 422


def test_what_waits_says_behind_how_many_and_what_failed_what_would_help(gateway, clip):
    gateway.queue.hold.clear()
    paths = [gateway.post("/", files={"file": ("x.mp4", clip + bytes(n))}).headers["location"] for n in range(2)]
    assert "waits behind 1" in gateway.get(paths[1]).text
    assert "hx-refresh" not in gateway.get(f"{paths[1]}/progress").headers
    gateway.queue.hold.set()
    gateway.get(f"/v1{paths[1]}/events")
    assert gateway.get(f"{paths[1]}/progress").headers["hx-refresh"] == "true"

    failed = gateway.post("/", files={"file": ("x.mp4", clip[:300])}).headers["location"]
    gateway.get(f"/v1{failed}/events")
    page = gateway.get(failed).text
    assert "cannot be read as a video or picture" in gateway.get("/history").text
    assert "NO RESULT" in page
    assert "If the file is damaged, download it or convert it again" in page
    assert main_button(page) == "Send another file"
    assert "Analyze again" in page


def test_the_main_button_of_what_has_no_result_is_what_may_help(gateway, clip):
    gateway.queue.hold.clear()
    result = gateway.post("/", files={"file": ("x.mp4", clip)}).headers["location"]
    gateway.post(f"{result}/cancel")
    assert main_button(gateway.get(result).text) == "Analyze again"
    gateway.desk.media.path(result.rpartition("/")[2]).unlink()
    assert main_button(gateway.get(result).text) == "Send another file"
    assert "Analyze again" not in gateway.get(result).text


def test_the_history_is_searched_by_name_verdict_state_model_and_day(gateway, clip):
    send(gateway, clip, threshold="0.9")

    def rows(**asked):
        return gateway.get("/history", params=asked).text.count('<td class="name">')

    assert [rows(), rows(name="SCRIPT"), rows(label="REAL"), rows(status="done")] == [1, 1, 1, 1]
    assert [rows(name="other"), rows(label="FAKE"), rows(status="failed"), rows(until="2000-01-01")] == [0, 0, 0, 0]
    assert [rows(model="fake_model"), rows(model="other"), rows(since="2000-01-01")] == [1, 0, 1]
    assert gateway.get("/history", params={"since": "2000-99-99"}, headers=BROWSER).status_code == 422
    assert gateway.get("/history", params={"after": "x"}, headers=BROWSER).status_code == 422


def test_older_results_follow_also_where_the_last_one_of_the_page_was_deleted(gateway, clip, monkeypatch):
    monkeypatch.setattr(pages, "PAGE", 1)
    first, second = [send(gateway, clip, num_frames=number) for number in ("2", "3")]
    page = gateway.get("/history").text
    assert (second in page, first in page) == (True, False)
    (older,) = re.findall(r'href="(/history[?][^"]+)"', page)
    gateway.post(f"{second}/delete")
    assert first in gateway.get(html.unescape(older)).text


@pytest.mark.parametrize(
    "name", ["style.css", "app.js", "player.js", "timeline.js", "uploads.js", "vendor/htmx.min.js", "icon.svg"]
)
def test_static_files(gateway, name):
    assert gateway.get(f"/static/{name}").status_code == 200
