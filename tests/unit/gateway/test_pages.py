"""The pages without a browser: forms work, names are escaped, and nothing is inline or from elsewhere."""

import re

import pytest

NAME = '"><script>alert(1)</script>.mp4'


def pages(gateway, clip):
    sent = gateway.post("/", files={"file": (NAME, clip)}, data={"num_frames": "", "threshold": "0.9"})
    assert sent.status_code == 303
    result = sent.headers["location"]
    analysis_id = result.rpartition("/")[2]
    gateway.get(f"/v1/analyses/{analysis_id}/events")  # until it is over
    return {
        path: gateway.get(path, headers={"Accept": "text/html"}) for path in ("/", result, "/history", "/docs", "/no")
    }


def test_pages_hold_to_their_policy(gateway, clip):
    for path, page in pages(gateway, clip).items():
        assert page.status_code == (404 if path == "/no" else 200), page.text
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert "alert(1)</script>" not in page.text
        assert not re.search(r"<script(?![^>]*src=\"/static/)", page.text)
        assert " style=" not in page.text
        assert not re.search(r"(?:src|href|action)=\"(?:https?:)?//", page.text)


def test_the_result_shows_verdict_scale_and_lanes(gateway, clip):
    page = next(page for path, page in pages(gateway, clip).items() if path.startswith("/analyses/")).text
    assert re.search(r"The face does not look manipulated in any of \d+ readable frames", page)
    assert "threshold 0.90" in page
    assert 'data-lane="0"' in page


@pytest.mark.parametrize("name", ["style.css", "app.js", "player.js", "uploads.js", "follow.js", "icon.svg"])
def test_static_files(gateway, name):
    assert gateway.get(f"/static/{name}").status_code == 200
