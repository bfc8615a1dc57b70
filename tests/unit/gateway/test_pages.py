"""The pages without a browser: forms work, names are escaped, and nothing is inline or from elsewhere."""

import html
import re

import gateways
import http_files
import pytest

from deepfake_gateway.web import pages, words
from deepfake_gateway.web.language import language

NAME = '"><script>alert(1)</script>.mp4'
BROWSER = {"Accept": "text/html"}


def send(gateway, clip, **fields):
    """Send a clip by the page's form, and return the address of its result once it is there."""
    sent = gateway.post("/", files={"file": (NAME, clip)}, data=fields)
    assert sent.status_code == 303
    gateway.get(f"/v1{sent.headers['location']}/events")  # until it is over
    return sent.headers["location"]


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
        ([(0.8,)], "Face 1 looks manipulated in 1 of 1 frame that shows it well."),
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
        "frames": frames,
    }  # fmt: skip
    assert words.headline(language("en"), verdict) == sentence


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
