"""A PDF says what the page says, whatever the input is called and whatever became of it."""

from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime
from pathlib import Path

import pypdfium2
import pytest
from media import make_clip
from verdicts import inconclusive, verdict

from deepfake_client import AnalyzeOptions
from deepfake_client.report import FileFacts, Pictures, ReportContext, pictures_of_source
from deepfake_client.report.pdf import pdf_of
from deepfake_client.result.verdict import Reason, Verdict
from deepfake_client.result.words import REASON_SENTENCES
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.media.sampling import Sampling

SPEC = ModelSpec("tiny", "timm:x", input_height_px=64, input_width_px=64, training_data="faces of <b>films</b>")
CONTEXT = ReportContext(SPEC, AnalyzeOptions(sampling=Sampling(num_frames=4)))


def read(shown: Verdict, context: ReportContext = CONTEXT, pictures: Pictures | None = None) -> tuple[str, int, int]:
    """Return the text of a PDF, in one line, and how many pages and pictures it has."""
    pictures = pictures_of_source(shown, context.spec) if pictures is None else pictures
    document = pypdfium2.PdfDocument(pdf_of(shown, context, pictures))
    text = " ".join(page.get_textpage().get_text_bounded() for page in document)
    shots = sum(item.type == pypdfium2.raw.FPDF_PAGEOBJ_IMAGE for page in document for item in page.get_objects())
    return " ".join(text.split()), len(document), shots


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "two faces.mp4", size_wh=(320, 240), duration_s=1)


def test_it_holds_the_verdict_and_everything_behind_it(clip: Path) -> None:
    text, pages, shots = read(verdict(str(clip)))
    for fact in (
        "two faces.mp4", "FAKE", "fake probability 0.900, 95% interval 0.800 to 1.000, threshold 0.5",
        "Face 1 looks fake: the fake probability of 0.900 reaches the threshold of 0.5.",
        "Caution: a score is a reason to look closer, and no proof. Not for decisions about people.",
        "2 damaged parts of the file, with what depends on it, were left out.", "3 not needed any more",
        "blurred (1), too small (1)", "1 left out", "seen too poorly, not always scored", "tiny version 1", "0" * 64,
        "faces of <b>films</b>", "4 frames, evenly spaced", "detect faces 0.40 s", "How to read this",
        "face 1 at 0.00 s",
    ):  # fmt: skip
        assert fact.replace(" ", "") in text.replace(" ", ""), fact
    assert pages <= 3
    assert shots == 6, "the plot, the faces, and a whole frame"
    assert "These scores mean nothing" not in text


def test_it_stands_alone() -> None:
    when = datetime(2026, 11, 30, 11, 16, tzinfo=UTC)
    context = dataclasses.replace(CONTEXT, file=FileFacts(401_197, "ab" * 32), analyzed_at=when)
    text, _, _ = read(verdict(threshold=0.95), context, Pictures())
    for fact in (
        "Analyzed on 30 November 2026, 11:16 UTC.", f"File: 401,197 bytes, SHA-256 {'ab' * 32}.",
        "4 looked at, from 0.00 to 0.60 s, one every 0.20 s on average", "100% below",
        "The threshold of 0.95 was chosen by hand; the model's own is 0.5, which the score reaches.",
        "Above or below: the share of a face's frames",
    ):  # fmt: skip
        assert fact.replace(" ", "") in text.replace(" ", ""), fact
    assert re.search(r"Made by deepfake-serving \S+ on \d+ \w+ 20\d\d, \d\d:\d\d UTC, page 1", text)


@pytest.mark.parametrize("reason", [Reason.NO_FACE, Reason.UNDECODABLE])
def test_an_inconclusive_input_has_one_too(reason: Reason) -> None:
    text, _, _ = read(inconclusive("gone.mp4", reason), pictures=Pictures())
    assert "INCONCLUSIVE" in text
    assert REASON_SENTENCES[reason] in text
    assert "A sentence." in text


def test_any_name_can_be_written_and_an_untrained_model_is_warned_of() -> None:
    name = "смена лиц – 顔 \udce9 " + "x" * 200 + ".mp4"
    context = dataclasses.replace(CONTEXT, spec=dataclasses.replace(SPEC, trained=False))
    text, _, _ = read(verdict(name), context, Pictures())
    assert "смена лиц" in text
    assert "These scores mean nothing" in text


def test_a_table_that_would_fill_a_book_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepfake_client.report.pdf.MAX_ROWS", 6)
    text, _, _ = read(verdict("long.mp4", num_frames=4), pictures=Pictures())
    assert "The first 6 of 8; the verdict as JSON or CSV has all." in text
