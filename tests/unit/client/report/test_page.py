"""A report is one self-contained page per input, whatever the input is called and whatever became of it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
import shutil
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import pytest
from debian import browse
from media import astronaut, make_clip
from verdicts import face, inconclusive, verdict

from deepfake_client import AnalyzeOptions, report
from deepfake_client.analysis.judging.aggregation import STRATEGIES, score_tracks
from deepfake_client.explain.evidence import MAX_SHOWN, SHOWN_PER_TRACK, suspicious_faces
from deepfake_client.report.page import folder_name
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.verdict import Concern, Reason, Verdict
from deepfake_client.result.words import REASON_SENTENCES
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import MediaOpenError
from deepfake_preprocess.media.sampling import Sampling

CONTEXT = report.ReportContext(
    ModelSpec(
        name="tiny",
        architecture="timm:x",
        input_height_px=64,
        input_width_px=64,
        training_data="<b>random</b>",
    ),
    AnalyzeOptions(sampling=Sampling(num_frames=4)),
)
VOID = {"meta", "link", "img", "br", "path", "use"}
URL_ATTRIBUTES = {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}
EVIL = "\"><img src=x onerror=alert(1)><script>alert(2)<_script>&'{{7*7}}.mp4"


class Page(HTMLParser):
    """Reads a page: text, links, pictures; fails on tags that are not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.tags: list[str] = []
        self.urls: list[str] = []
        self.alts: list[str | None] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.urls += [value or "" for name, value in attributes if name in URL_ATTRIBUTES]
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag == "img":
            self.alts.append(dict(attributes).get("alt"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.urls += [value or "" for name, value in attributes if name in URL_ATTRIBUTES]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def assert_self_contained(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    for url in page.urls:
        assert url.startswith(("data:", "#")) or (path.parent / url).is_file(), url
    assert "url(" not in re.sub(r"url\(#\w+\)", "", text)
    assert "@import" not in text
    assert all(page.alts)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "two faces.mp4", size_wh=(320, 240), duration_s=1)


@pytest.fixture
def shown(clip: Path) -> Verdict:
    return verdict(str(clip))


def test_a_page_holds_the_verdict_and_everything_behind_it(shown: Verdict, tmp_path: Path) -> None:
    path = report.write_page(shown, tmp_path, CONTEXT)
    assert_self_contained(path)
    page = read(path)
    for fact in (
        "FAKE", "0.900", "0.800 to 1.000", "threshold of 0.5", "two faces.mp4", "tiny version 1", "0" * 64,
        "<b>random</b>", "2 damaged parts of the file, with what depends on it, were left out.",
        "3 not needed any more", "1 frame was left out",
        "Caution: a score is a reason to look closer, and no proof. Not for decisions about people.",
        "blurred (1), too small (1)", "1 left out", "1 not scored", "detect faces", "4 frames, evenly spaced",
        "seen too poorly, not always scored",
    ):  # fmt: skip
        assert fact in page.text, fact
    assert page.tags.count("h1") == 1
    assert page.tags.count("img") == 5, "those of the face that counts, and a whole frame"
    assert "The whole frame at 0.00 s with a box around face 1" in page.alts
    assert "Face 1 at 0.20 s, fake probability 0.900" in page.alts
    assert "svg" in page.tags
    assert "These scores mean nothing" not in page.text
    for name in ("confidence_timeline.png", "frame_analysis.png"):
        image = cv2.imread(str(path.parent / name))
        assert image is not None
        assert min(image.shape[:2]) > 300


def test_a_page_s_sections_are_named_by_their_headings(shown: Verdict, tmp_path: Path) -> None:
    text = report.write_page(shown, tmp_path, CONTEXT).read_text(encoding="utf-8")
    named = re.findall(r'<section aria-labelledby="(\w+)">\n<h2 id="(\w+)">', text)
    assert len(named) == text.count("<section") == 6
    assert all(section == heading for section, heading in named)


def test_a_page_shows_the_heatmaps_it_is_given(shown: Verdict, tmp_path: Path) -> None:
    picks = suspicious_faces(shown, per_track=SHOWN_PER_TRACK, at_most=MAX_SHOWN)
    png = b"\x89PNG of a heatmap"
    overlays = {(pick.frame.index, pick.face.track): png for pick in picks[1:]}
    path = report.write_page(shown, tmp_path, CONTEXT, report.Heatmaps(overlays, "grad-cam on bn2"))
    assert_self_contained(path)
    page = read(path)
    assert page.alts.count("The same face with a heatmap of what raised its score") == len(picks) - 1 == 3
    assert page.urls.count("data:image/png;base64," + base64.b64encode(png).decode()) == 3
    assert "grad-cam on bn2" in page.text
    assert "a face with a low score may have red areas, too" in page.text
    assert "A heatmap is coarse, may lie beside the face, and proves no manipulation" in page.text
    assert "There are no heatmaps" not in page.text


def test_a_page_says_why_it_has_no_heatmaps(shown: Verdict, tmp_path: Path) -> None:
    path = report.write_page(shown, tmp_path, CONTEXT, report.Heatmaps(problem="no <service> answers"))
    assert "There are no heatmaps: no <service> answers" in read(path).text
    path = report.write_page(shown, tmp_path, CONTEXT)
    assert "heatmap" not in path.read_text(encoding="utf-8").lower()


def test_a_page_with_heatmaps_can_be_told_from_one_without(shown: Verdict, tmp_path: Path) -> None:
    def found() -> list[bool]:
        return [report.has_page(shown.source, tmp_path, heatmaps=heatmaps) for heatmaps in (False, True)]

    assert found() == [False, False]
    report.write_page(shown, tmp_path, CONTEXT, report.Heatmaps(problem="the service was away"))
    assert found() == [True, False]
    picks = suspicious_faces(shown, per_track=SHOWN_PER_TRACK, at_most=MAX_SHOWN)
    overlays = {(pick.frame.index, pick.face.track): b"png" for pick in picks}
    report.write_page(shown, tmp_path, CONTEXT, report.Heatmaps(overlays, "grad-cam on bn2"))
    assert found() == [True, True]
    report.write_page(shown, tmp_path, CONTEXT)
    assert found() == [True, False]


def test_an_untrained_model_is_warned_of(shown: Verdict, tmp_path: Path) -> None:
    spec = dataclasses.replace(CONTEXT.spec, trained=False, training_data="Random weights.")
    path = report.write_page(shown, tmp_path, dataclasses.replace(CONTEXT, spec=spec))
    assert "These scores mean nothing" in read(path).text


@pytest.mark.parametrize("reason", [Reason.NO_FACE, Reason.UNDECODABLE, Reason.SERVER_UNAVAILABLE])
def test_an_inconclusive_input_has_a_page_too(clip: Path, tmp_path: Path, reason: Reason) -> None:
    path = report.write_page(inconclusive(str(clip), reason), tmp_path, CONTEXT)
    assert_self_contained(path)
    text = read(path).text
    assert "INCONCLUSIVE" in text
    assert REASON_SENTENCES[reason] in text
    assert "A sentence." in text
    assert "no fake probability" in text


def test_a_page_that_is_passed_on_says_when_which_file_was_analyzed_and_leads_nowhere(shown: Verdict) -> None:
    when = datetime(2026, 11, 30, 12, 16, tzinfo=timezone(timedelta(hours=1)))
    context = dataclasses.replace(CONTEXT, file=report.FileFacts(401_197, "ab" * 32), analyzed_at=when)
    page = Page(report.page_of(shown, context, report.Pictures()))
    assert all(url.startswith(("data:", "#")) for url in page.urls)
    for fact in (
        "Analyzed on 30 November 2026, 11:16 UTC.", f"File: 401,197 bytes, SHA-256 {'ab' * 32}.",
        "4 looked at, from 0.00 to 0.60 s, one every 0.20 s on average", "100% above",
    ):  # fmt: skip
        assert fact in page.text, fact
    assert re.search(r"Made by deepfake-serving \S+ on \d+ \w+ 20\d\d, \d\d:\d\d UTC\.", page.text)


def test_what_is_analyzed_is_known_by_its_bytes(clip: Path, tmp_path: Path) -> None:
    expected = report.FileFacts(clip.stat().st_size, hashlib.sha256(clip.read_bytes()).hexdigest())
    assert report.file_facts(str(clip)) == expected
    for no_file in (str(tmp_path), "https://example.org/clip.mp4", "-", "no\0file"):
        assert report.file_facts(no_file) is None, no_file


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"threshold": 0.95}, "The threshold of 0.95 was chosen by hand; the model's own is 0.5, which the score"),
        ({"threshold": 0.95}, "which the score reaches."),
        ({"threshold": 0.4, "score": 0.45}, "the model's own is 0.5, which the score does not reach."),
        ({"score": 0.55}, "It is a close call: the score may as well lie on the other side."),
        ({"score": 0.55, "num_frames": 1}, "One picture does not show how far this score may lie elsewhere."),
        ({"score": 0.45}, "is below the threshold of 0.5. It is a close call"),
    ],
)  # fmt: skip
def test_what_a_label_hides_is_said(changes: dict[str, Any], fact: str) -> None:
    text = Page(report.page_of(verdict(**changes), CONTEXT, report.Pictures())).text
    assert fact in text
    assert "close call:" not in Page(report.page_of(verdict(), CONTEXT, report.Pictures())).text


def test_the_score_of_one_of_several_faces_says_why_it_is_not_the_video_s(shown: Verdict) -> None:
    lower = dataclasses.replace(shown, fake_probability=0.85)
    text = Page(report.page_of(lower, CONTEXT, report.Pictures())).text
    assert "The score of 0.850 is the 0.900 of face 1, less what the highest of several faces' scores exceeds" in text
    assert "less what the highest" not in Page(report.page_of(shown, CONTEXT, report.Pictures())).text


def test_faces_that_do_not_decide_stand_last_and_say_so(shown: Verdict, tmp_path: Path) -> None:
    fake, real = shown.tracks
    poster = dataclasses.replace(fake, background=True)
    person = dataclasses.replace(real, counted=True)
    text = report.write_page(
        dataclasses.replace(shown, tracks=(poster, person), deciding_track=1), tmp_path, CONTEXT
    ).read_text(encoding="utf-8")
    cards = re.findall(r'<li class="(\w+)">\n<img src="[^"]*" alt="Face (\d)', text)
    assert cards == [("REAL", "2")] * 2 + [("INCONCLUSIVE", "1")] * (len(cards) - 2)
    assert text.count("did not decide") == len(cards) - 2 > 0
    rows = re.findall(r'<th scope="row" data-name="Face">.*?</span>(\d)</th>', text)
    assert rows == ["2", "1"]


def test_the_axis_of_a_long_video_has_minutes(shown: Verdict, tmp_path: Path) -> None:
    def timeline(last_s: float) -> str:
        frames = (*shown.frames[:-1], dataclasses.replace(shown.frames[-1], pts_seconds=last_s))
        longer = dataclasses.replace(shown, frames=frames)
        return Page(report.page_of(longer, CONTEXT, report.Pictures())).text

    assert "time in seconds" in timeline(100.0)
    hour = timeline(3600.0)
    assert "time from the start, in hours, minutes and seconds" in hour
    assert "30:00" in hour
    assert "1:00:00" in hour
    assert "time from the start, in minutes and seconds" in timeline(200.0)
    one = report.page_of(verdict(num_frames=1), CONTEXT, report.Pictures())
    assert "time of the one picture" in one
    assert "time in seconds" not in one


def test_an_image_has_a_page_too(tmp_path: Path) -> None:
    source = tmp_path / "face.png"
    cv2.imwrite(str(source), astronaut()[..., ::-1])
    path = report.write_page(verdict(str(source), score=0.1, num_frames=1), tmp_path / "out", CONTEXT)
    assert_self_contained(path)
    assert "REAL" in read(path).text


def test_an_input_that_is_gone_still_has_a_page(tmp_path: Path) -> None:
    path = report.write_page(verdict(str(tmp_path / "deleted.mp4")), tmp_path, CONTEXT)
    assert_self_contained(path)
    assert "could not be opened again" in read(path).text


def test_a_name_cannot_inject_anything(clip: Path, tmp_path: Path) -> None:
    source = tmp_path / EVIL
    shutil.copy(clip, source)
    path = report.write_page(verdict(str(source)), tmp_path / "out", CONTEXT)
    index = report.write_index(
        [Outcome(str(source), verdict=verdict(str(source))), Outcome(EVIL, error=MediaOpenError(f"{EVIL} is empty"))],
        tmp_path / "out",
    )
    for written, scripts in ((path, 0), (index, 1)):
        assert_self_contained(written)
        page = read(written)
        assert EVIL in page.text, "shown as it is"
        assert page.tags.count("script") == scripts


def test_folders_differ_where_sources_differ_and_are_safe_names() -> None:
    sources = [
        "a/clip.mp4",
        "b/clip.mp4",
        "clip.mp4",
        EVIL,
        "..",
        "/",
        "ü" * 300 + ".mp4",
        "clip*.mp4",
        "caf\udce9.mp4",
    ]
    names = [folder_name(source) for source in sources]
    assert len(set(names)) == len(sources)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}", name) for name in names), names
    assert folder_name("a/clip.mp4") == folder_name("a/clip.mp4")


def test_a_name_that_is_not_utf8_is_shown_with_escapes(tmp_path: Path) -> None:
    path = report.write_page(verdict("caf\udce9.mp4"), tmp_path, CONTEXT)
    assert r"caf\udce9.mp4" in read(path).text


def test_the_index_leads_to_the_pages_most_suspicious_first(clip: Path, tmp_path: Path) -> None:
    low, high = verdict(str(clip), score=0.2), verdict("gone.mp4", score=0.95)
    report.write_page(low, tmp_path, CONTEXT)
    outcomes = [Outcome(item.source, verdict=item) for item in (inconclusive("none.mp4"), low, high)]
    outcomes.append(Outcome("broken.mp4", error=MediaOpenError("broken.mp4 is empty")))
    path = report.write_index(outcomes, tmp_path)
    assert_self_contained(path)
    page = read(path)
    assert page.text.count("Not for decisions about people.") == 1, "the model's caution"
    order = [page.text.index(name) for name in ("gone.mp4", str(clip), "none.mp4", "broken.mp4 is empty")]
    assert order == sorted(order)
    assert [url for url in page.urls if not url.startswith("data:")] == [
        report.page_path(str(clip), tmp_path).relative_to(tmp_path).as_posix()
    ]
    assert "1 REAL · 1 FAKE · 1 INCONCLUSIVE · 1 not analyzed" in " ".join(page.text.split())


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ([1.0, 1.0], "seen too rarely"),
        ([1.0, 1.0, 0.0, 0.0], "seen too poorly"),
        ([0.0], "seen too rarely and too poorly"),
    ],
)
def test_a_face_that_is_left_out_says_why(clip: Path, tmp_path: Path, weights: list[float], reason: str) -> None:
    """A face needs three good frames beside one that has six."""
    base = verdict(str(clip), num_frames=6)
    frames = [
        dataclasses.replace(
            frame, faces=(face(0.9), *(face(0.2, track=1, weight=weight) for weight in weights[at:][:1]))
        )
        for at, frame in enumerate(base.frames)
    ]
    tracks = score_tracks(tuple(frames), strategy=STRATEGIES["mean"], threshold=0.5)
    assert [track.counted for track in tracks] == [True, False]
    shown = dataclasses.replace(base, frames=tuple(frames), tracks=tracks)
    page = read(report.write_page(shown, tmp_path, CONTEXT))
    assert f"left out:{reason}" in page.text.replace("\n", "")
    assert page.text.count("left out:") == 1


def test_many_faces_and_concerns_fit(clip: Path, tmp_path: Path) -> None:
    base = verdict(str(clip))
    crowd = tuple(dataclasses.replace(base.tracks[0], track=track) for track in range(12))
    faces = tuple(
        dataclasses.replace(base.frames[0].faces[0], track=track, weight=0.5, concerns=tuple(Concern))
        for track in range(12)
    )
    frames = tuple(dataclasses.replace(frame, faces=faces) for frame in base.frames)
    path = report.write_page(dataclasses.replace(base, tracks=crowd, frames=frames), tmp_path, CONTEXT)
    assert_self_contained(path)
    assert read(path).tags.count("img") == 24, "each face once, and a whole frame of each"


@pytest.mark.debian("chromium")
def test_a_browser_opens_the_pages_without_a_complaint(shown: Verdict, tmp_path: Path) -> None:
    page = report.write_page(shown, tmp_path / "out", CONTEXT)
    index = report.write_index([Outcome(shown.source, verdict=shown)], tmp_path / "out")
    for number, path in enumerate((page, index)):
        done = browse(path, tmp_path / f"profile{number}")
        assert done.returncode == 0, done.stderr
        assert "CONSOLE" not in done.stderr, done.stderr
        assert "two faces.mp4" in done.stdout
    assert "<button>Probability</button>" in done.stdout, "the table's headings sort it"


@pytest.mark.debian("chromium")
def test_the_pages_fit_a_telephone(shown: Verdict, tmp_path: Path) -> None:
    """Neither the page nor a table within it is scrolled sideways at 375 px."""
    long = dataclasses.replace(shown, source=str(tmp_path / ("a name with words " * 5 + "w" * 90)))
    pages = [
        report.write_page(shown, tmp_path / "out", CONTEXT),
        report.write_index(
            [Outcome(item.source, verdict=item) for item in (shown, long, inconclusive("none.mp4"))], tmp_path / "out"
        ),
    ]
    frames = "".join(f'<iframe src="{page.as_uri()}" width="375" height="800"></iframe>' for page in pages)
    script = """addEventListener("load", () => { document.body.dataset.widths = [0, 1].map((number) => {
      const frame = frames[number];
      return Math.max(...[frame.document.documentElement, ...frame.document.querySelectorAll(".scroll")]
        .map((item) => item.scrollWidth - item.clientWidth)); }).join(" "); });"""
    both = tmp_path / "both.html"
    both.write_text(f"<!doctype html><body>{frames}<script>{script}</script></body>", encoding="utf-8")
    done = browse(both, tmp_path / "profile", "--allow-file-access-from-files")
    assert re.findall(r'data-widths="(.*?)"', done.stdout) == ["0 0"], done.stdout + done.stderr
