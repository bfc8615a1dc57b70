"""`pdf_of`: the report of one verdict as a PDF, to print and to pass on: what its page says, on A4.

Needs the extra ``pdf`` (fpdf2) beside ``report``. Letters are those of DejaVu, which Matplotlib brings; one that it
lacks is an empty box.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
import numpy as np
from fpdf import FPDF
from fpdf.enums import XPos, YPos
from fpdf.fonts import FontFace, TTFFont
from numpy.typing import NDArray

from deepfake_client.report.facts import (
    READING,
    ReportContext,
    frames_text,
    headline,
    origin,
    stages,
    track_rows,
    warnings,
)
from deepfake_client.report.pictures import Pictures, jpeg, moments, ranked, with_box
from deepfake_client.report.plots import timeline_png, track_styles
from deepfake_client.result.times import clock, day_and_time
from deepfake_client.result.verdict import FrameResult, Label, Verdict
from deepfake_client.result.words import concern_words, in_plain_words
from deepfake_preprocess.support.text import visible

if TYPE_CHECKING:
    from deepfake_client.explain.evidence import Evidence

MAX_ROWS: Final = 200
"""Rows of the table of frames, some five pages, each row 15 ms; more are for the reports made for programs."""
_MARGIN_MM: Final = 16
_INK: Final = (31, 35, 40)
_SOFT: Final = (89, 96, 105)
_LINE: Final = (208, 212, 217)
_COLORS: Final = {Label.FAKE: (198, 47, 60), Label.REAL: (47, 125, 79), Label.INCONCLUSIVE: (138, 103, 0)}
_WHITE: Final = (255, 255, 255)
_NO_LETTER: Final = "□"
_FACES_IN_ROW, _PLACES_IN_ROW = 6, 3


def pdf_of(verdict: Verdict, context: ReportContext, pictures: Pictures) -> bytes:
    """Return the report of a verdict as a PDF file.

    Args:
        verdict: what is reported.
        context: the contract of the model, and how the input was analyzed.
        pictures: what `take_pictures` returned while the input was open.
    """
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # tells of each font that is cut down
    name = visible(Path(verdict.source).name or verdict.source)
    paper = _Paper(f"{verdict.label.value}: {name}")
    paper.paragraph(name, size=15, bold=True)
    if verdict.source != Path(verdict.source).name:
        paper.paragraph(visible(verdict.source), soft=True)
    for sentence in origin(context):
        paper.paragraph(sentence, size=8, soft=True)
    _verdict_box(paper, verdict)
    if not context.spec.trained:
        paper.paragraph(f"These scores mean nothing. {context.spec.training_data or ''}", bold=True)
    for warning in warnings(verdict, context.spec):
        paper.paragraph(visible(warning))
    paper.heading("Scores over time")
    paper.picture(timeline_png(verdict), paper.epw, "Fake probability of each face over time")
    _faces(paper, verdict, pictures)
    _tracks(paper, verdict)
    _about(paper, verdict, context)
    _frames(paper, verdict)
    return bytes(paper.output())


class _Paper(FPDF):
    """An A4 document in one font, with a heading on top of what follows it and a number on each page."""

    def __init__(self, title: str) -> None:
        super().__init__(format="A4")
        folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
        self.add_font("body", "", folder / "DejaVuSans.ttf")
        self.add_font("body", "B", folder / "DejaVuSans-Bold.ttf")
        font = self.fonts["body"]
        assert isinstance(font, TTFFont)
        self._letters = {*font.cmap, ord("\n")}
        self.set_margin(_MARGIN_MM)
        self.c_margin = 0
        self.set_auto_page_break(auto=True, margin=_MARGIN_MM)
        self.set_title(title)
        self.set_lang("en")
        self.set_creator(f"deepfake-serving {metadata.version('deepfake-serving')}")
        self._made_at = day_and_time(datetime.now(UTC))
        self.set_draw_color(*_LINE)
        self.set_font("body", size=9)
        self.add_page()

    def footer(self) -> None:
        """Number the page; FPDF calls it."""
        self.set_y(-_MARGIN_MM + 4)
        self.set_font("body", size=7)
        self.set_text_color(*_SOFT)
        self.cell(0, 4, f"Made by {self.creator} on {self._made_at}, page {self.page_no()}", align="R")

    def paragraph(
        self, text: str, *, size: float = 9, bold: bool = False, soft: bool = False, width: float = 0
    ) -> None:
        """Write a paragraph from here on; the next one begins below it."""
        self.set_font("body", "B" if bold else "", size)
        self.set_text_color(*(_SOFT if soft else _INK))
        self.multi_cell(width, size * 0.5, self._written(text), align="L", new_x=XPos.LEFT, new_y=YPos.NEXT)
        self.ln(0.8)

    def heading(self, text: str, room_mm: float = 40) -> None:
        """Begin a section, on the next page where less than `room_mm` is left."""
        if self.will_page_break(room_mm):
            self.add_page()
        self.ln(3)
        self.paragraph(text, size=11.5, bold=True)

    def _written(self, text: str) -> str:
        return "".join(letter if ord(letter) in self._letters else _NO_LETTER for letter in text)

    def picture(self, data: bytes, width_mm: float, words: str) -> None:
        """Put a picture in the line; `words` say what it shows."""
        self.image(data, w=width_mm, alt_text=words)

    def rows(self, heads: Sequence[str], rows: Iterator[Sequence[str]], widths: Sequence[int]) -> None:
        """Write a table whose heads, if it has any, are repeated on each page."""
        self.set_font("body", size=7.5)
        self.set_text_color(*_INK)
        self.set_fill_color(*_WHITE)
        with self.table(
            col_widths=tuple(widths), headings_style=FontFace(emphasis="BOLD", color=_SOFT, fill_color=_WHITE),
            line_height=4.2, text_align="LEFT", borders_layout="HORIZONTAL_LINES", padding=0.6,
            first_row_as_headings=bool(heads),
        ) as table:  # fmt: skip
            for row in (*([heads] if heads else []), *rows):
                table.row([self._written(text) for text in row])
        self.ln(1.5)


def _verdict_box(paper: _Paper, verdict: Verdict) -> None:
    """Label, score, interval, threshold and caution, beside a bar of the label's color."""
    color, left = _COLORS[verdict.label], paper.l_margin
    paper.ln(1)
    top = paper.get_y()
    paper.set_left_margin(left + 5)
    paper.set_x(left + 5)
    paper.set_font("body", "B", 17)
    paper.set_text_color(*color)
    paper.cell(0, 9, verdict.label.value, new_x=XPos.LMARGIN, new_y=YPos.NEXT)
    if verdict.fake_probability is None:
        paper.paragraph("no fake probability", soft=True)
    else:
        interval = verdict.interval
        paper.paragraph(
            f"fake probability {verdict.fake_probability:.3f}"
            + ("" if interval is None else f", 95% interval {interval.low:.3f} to {interval.high:.3f}")
            + f", threshold {verdict.threshold:g}",
            size=10.5,
        )
        _meter(paper, verdict, color)
    paper.paragraph(visible(headline(verdict)))
    paper.paragraph(
        visible(f"Caution: a score is a reason to look closer, and no proof. {verdict.model.caution}"), bold=True
    )
    paper.set_left_margin(left)
    paper.set_x(left)
    paper.set_fill_color(*color)
    paper.rect(left, top, 1.6, paper.get_y() - top, style="F")
    paper.ln(2)


def _meter(paper: _Paper, verdict: Verdict, color: tuple[int, int, int]) -> None:
    """Draw the score, its interval and the threshold between 0 and 1."""
    left, top, width = paper.get_x(), paper.get_y() + 1, paper.epw
    paper.set_fill_color(*_LINE)
    paper.rect(left, top, width, 3, style="F")
    paper.set_fill_color(*color)
    paper.rect(left, top, width * (verdict.fake_probability or 0.0), 3, style="F")
    paper.set_draw_color(*_INK)
    paper.set_fill_color(*_INK)
    if verdict.interval is not None:
        low, high = (left + width * side for side in (verdict.interval.low, verdict.interval.high))
        paper.rect(low, top + 3.6, max(0.6, high - low), 0.9, style="F")
    mark = left + width * verdict.threshold
    paper.line(mark, top - 1, mark, top + 4)
    paper.set_draw_color(*_LINE)
    paper.ln(7)


def _faces(paper: _Paper, verdict: Verdict, pictures: Pictures) -> None:
    paper.heading("Most suspicious faces", room_mm=60)
    if not pictures.faces:
        paper.paragraph(visible(in_plain_words(pictures.problem) or "No face was scored."))
        return
    paper.paragraph("As the model saw them: the faces that were judged first, highest score first.", soft=True)
    crops = [(item.crop, _face_words(item, takes_part)) for item, takes_part in ranked(pictures, verdict)]
    _grid(paper, crops, _FACES_IN_ROW)
    styles = track_styles(verdict)
    shown = []
    for track, item in moments(pictures):
        red, green, blue = bytes.fromhex(styles[track][0].removeprefix("#"))
        words = f"face {track + 1} at {clock(item.pick.frame.pts_seconds)}"
        shown.append((with_box(item, (red, green, blue)), words))
    _grid(paper, shown, _PLACES_IN_ROW, "Where they are")


def _face_words(item: Evidence, takes_part: bool) -> str:
    face = item.pick.face
    score = "–" if face.fake_probability is None else f"{face.fake_probability:.3f}"
    words = f"{score}, face {face.track + 1}\nat {clock(item.pick.frame.pts_seconds)}"
    if not takes_part:
        words += "\ndid not decide"
    if face.weight < 1:
        words += f"\nweight {face.weight:.2f}: {concern_words(face.concerns)}"
    return words


def _grid(paper: _Paper, items: Sequence[tuple[NDArray[np.uint8], str]], columns: int, title: str = "") -> None:
    """Put RGB pictures with words below them side by side, under a title that stays with them."""
    gap = 3.0
    width = (paper.epw - gap * (columns - 1)) / columns
    for start in range(0, len(items), columns):
        row = items[start : start + columns]
        heights = [width * image.shape[0] / image.shape[1] for image, _ in row]
        if paper.will_page_break(max(heights) + 12 + (8 if title else 0)):
            paper.add_page()
        if title:
            paper.paragraph(title, bold=True)
            title = ""
        top, bottom = paper.get_y(), paper.get_y()
        for number, ((image, words), height) in enumerate(zip(row, heights, strict=True)):
            left = paper.l_margin + number * (width + gap)
            paper.image(jpeg(image), x=left, y=top, w=width, h=height, alt_text=words)
            paper.set_xy(left, top + height + 0.8)
            paper.paragraph(words, size=7, width=width)
            bottom = max(bottom, paper.get_y())
        paper.set_xy(paper.l_margin, bottom + 1.5)


def _tracks(paper: _Paper, verdict: Verdict) -> None:
    paper.heading("Face by face")
    rows = track_rows(verdict)
    if not rows:
        paper.paragraph("None.")
        return
    paper.paragraph(
        "One row for each face, those that were judged first, the most suspicious on top. A face that was seen too "
        "rarely or too poorly is left out; a picture on the wall is background.",
        soft=True,
    )
    heads = ("Face", "Verdict", "Probability, 95% interval", "Frames", "Seen", "Above or below", "Variance",
             "Longest fake run", "Concerns (frames)")  # fmt: skip
    paper.rows(heads, (_track_row(row) for row in rows), (9, 22, 24, 20, 24, 17, 18, 15, 29))


def _track_row(row: dict[str, Any]) -> tuple[str, ...]:
    track = row["track"]
    label = track.label.value if track.counted else f"left out: {row['reason']}"
    frames = [str(track.num_frames)]
    frames += [f"{row[kind]} {kind.replace('_', ' ')}" for kind in ("left_out", "unscored") if row[kind]]
    return (
        str(track.track + 1),
        "background: does not decide" if track.background else label,
        f"{track.fake_probability:.3f}\n{track.interval.low:.3f} to {track.interval.high:.3f}",
        "\n".join(frames),
        row["seen"],
        row["side"],
        f"{track.consistency.score_variance:.4f}",
        str(track.consistency.longest_run),
        row["concerns"],
    )


def _about(paper: _Paper, verdict: Verdict, context: ReportContext) -> None:
    paper.heading("How this was made")
    model, spec = verdict.model, context.spec
    threshold = f"{verdict.threshold:g}"
    if verdict.threshold != spec.threshold:
        threshold += f" (the model's own: {spec.threshold:g})"
    took = "; ".join(f"{stage} {seconds:.2f} s" for stage, seconds, _ in stages(verdict))
    facts = {
        "Model": f"{model.name} version {model.version}",
        "Checkpoint": f"SHA-256 {model.checkpoint_sha256}" if model.checkpoint_sha256 else "hash unknown",
        "Trained on": spec.training_data or "not stated; nobody can say what the scores are worth",
        "Architecture": f"{spec.architecture}, crops of {spec.input_width_px} × {spec.input_height_px} pixels",
        "Threshold": threshold,
        "Frames": frames_text(verdict, context.options.sampling),
        "Score of a face": f"{context.options.aggregation.replace('_', ' ')} over a face's frames; the most "
        "suspicious face that is not background decides",
        "Time": f"{verdict.timing_s.total:.2f} s in all. Stages overlap: {took}",
    }
    paper.rows((), (tuple(map(visible, item)) for item in facts.items()), (30, 148))
    paper.heading("How to read this")
    for sentence in READING:
        paper.paragraph(sentence)


def _frames(paper: _Paper, verdict: Verdict) -> None:
    paper.heading("Every frame that was looked at")
    rows = [row for frame in verdict.frames for row in _frame_rows(frame)]
    if not rows:
        paper.paragraph("None could be decoded.")
        return
    words = "One row for each face in each frame; times from the start, boxes in pixels."
    if len(rows) > MAX_ROWS:
        words += f" The first {MAX_ROWS} of {len(rows)}; the verdict as JSON or CSV has all."
    paper.paragraph(words, soft=True)
    heads = ("Frame", "Time", "Face", "Probability", "Weight", "Concerns", "Detector", "Left, top, right, bottom")
    paper.rows(heads, iter(rows[:MAX_ROWS]), (16, 18, 12, 22, 16, 40, 18, 36))


def _frame_rows(frame: FrameResult) -> Iterator[tuple[str, ...]]:
    moment = str(frame.index), clock(frame.pts_seconds)
    if not frame.faces:
        yield (*moment, "no face", "", "", "", "", "")
    for face in frame.faces:
        yield (
            *moment,
            str(face.track + 1),
            "–" if face.fake_probability is None else f"{face.fake_probability:.3f}",
            f"{face.weight:.2f}",
            concern_words(face.concerns),
            f"{face.detection_confidence:.3f}",
            ", ".join(f"{side:.0f}" for side in face.box_xyxy),
        )
