"""Writes the files of a report: a folder per input with its page and plots, and the index of them all.

A page needs nothing but itself: styles and pictures are inside, no script is needed, nothing is fetched. Whatever
comes from an input (its name above all) passes through Jinja's escaping.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

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
from deepfake_client.report.pictures import (
    Pictures,
    data_uri,
    jpeg_uri,
    moments,
    pictures_of_source,
    ranked,
    with_box,
)
from deepfake_client.report.plots import timeline_svg, track_styles, write_frame_analysis, write_timeline
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.times import clock, day_and_time, stretch
from deepfake_client.result.verdict import Label, Verdict
from deepfake_client.result.words import REASON_WORDS, concern_words, in_plain_words
from deepfake_preprocess.support.extras import require_extra
from deepfake_preprocess.support.files import write_whole
from deepfake_preprocess.support.text import visible

PAGE_NAME = "report.html"
PDF_NAME = "report.pdf"
INDEX_NAME = "index.html"
HEATMAPS_NAME = "heatmaps.json"
"""How the heatmaps on a page were made; written only for pages that have some."""
_MAX_STEM = 60

_templates = jinja2.Environment(
    loader=jinja2.PackageLoader("deepfake_client.report"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_templates.filters["score"] = lambda value: "–" if value is None else f"{value:.3f}"
_templates.filters["percent"] = lambda value: f"{100 * value:.2f}%"
_templates.filters["seconds"] = lambda value: f"{value:.2f} s"
_templates.filters["clock"] = clock
_templates.filters["reason"] = REASON_WORDS.__getitem__
_templates.filters["concerns"] = concern_words
_templates.filters["plain"] = visible
_templates.filters["told"] = lambda text: visible(in_plain_words(str(text)))


@dataclass(frozen=True, slots=True)
class Heatmaps:
    """Heatmaps for the faces on a page, PNG files of crops by (frame index, track), or why there are none."""

    overlays: Mapping[tuple[int, int], bytes] = field(default_factory=dict)
    method: str = ""
    problem: str = ""


def folder_name(source: str) -> str:
    """Return the name of the folder for `source`: readable, safe on any file system, another one for any source."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(source).name)[:_MAX_STEM].strip("._-") or "input"
    return f"{stem}-{hashlib.sha256(os.fsencode(source)).hexdigest()[:8]}"


def page_path(source: str, directory: Path) -> Path:
    """Return where the page of `source` is, or will be."""
    return directory / folder_name(source) / PAGE_NAME


def has_page(source: str, directory: Path, *, heatmaps: bool, pdf: bool = False) -> bool:
    """Return whether the page of `source` is there, and where asked for, with heatmaps, and as PDF."""
    path = page_path(source, directory)
    beside = [name for name, wanted in ((HEATMAPS_NAME, heatmaps), (PDF_NAME, pdf)) if wanted]
    return path.exists() and all(path.with_name(name).exists() for name in beside)


def write_page(
    verdict: Verdict,
    directory: Path,
    context: ReportContext,
    heatmaps: Heatmaps | None = None,
    *,
    pictures: Pictures | None = None,
    pdf: bool = False,
) -> Path:
    """Write page, plots and JSON of one verdict into a folder of its own in `directory`; returns the page's path.

    The page is written last: where it is, the rest is complete. `heatmaps` are None where nobody asked for them.
    `pictures` are what `take_pictures` returned while the input was open; with None the source is opened once more.
    With `pdf` the same is there on paper, too (extra ``pdf``).
    """
    path = page_path(verdict.source, directory)
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    pictures = pictures or pictures_of_source(verdict, context.spec)
    write_timeline(verdict, folder / "confidence_timeline.png")
    write_frame_analysis(verdict, pictures.shots, folder / "frame_analysis.png")
    (folder / "verdict.json").write_text(json.dumps(verdict.to_dict(), indent=2) + "\n", encoding="utf-8")
    if heatmaps is not None and heatmaps.overlays:
        write_whole(folder / HEATMAPS_NAME, json.dumps({"method": heatmaps.method}) + "\n")
    else:
        (folder / HEATMAPS_NAME).unlink(missing_ok=True)
    if pdf:
        make = require_extra("deepfake_client.report.pdf", extra="pdf").pdf_of
        write_whole(folder / PDF_NAME, make(verdict, context, pictures))
    write_whole(path, page_of(verdict, context, pictures, heatmaps, has_files=True))
    return path


def page_of(
    verdict: Verdict,
    context: ReportContext,
    pictures: Pictures,
    heatmaps: Heatmaps | None = None,
    *,
    has_files: bool = False,
) -> str:
    """Return the page of one verdict as HTML; with `has_files` it leads to the plots and the JSON beside it."""
    return _templates.get_template("page.html.j2").render(
        verdict=verdict,
        name=Path(verdict.source).name or verdict.source,
        headline=headline(verdict),
        timeline=Markup(timeline_svg(verdict)),
        timeline_narrow=Markup(timeline_svg(verdict, narrow=True)),
        timeline_text=_timeline_text(verdict),
        faces=_face_cards(pictures, verdict, heatmaps),
        places=_places(pictures, verdict),
        heatmaps=heatmaps,
        pictures=pictures,
        tracks=track_rows(verdict),
        context=context,
        origin=origin(context),
        frames=frames_text(verdict, context.options.sampling),
        warnings=warnings(verdict, context.spec),
        stages=stages(verdict),
        reading=READING,
        has_files=has_files,
        made_at=day_and_time(datetime.now(UTC)),
        version=metadata.version("deepfake-serving"),
    )


def write_index(outcomes: Sequence[Outcome], directory: Path) -> Path:
    """Write the index of all inputs, most suspicious first, with a link to each page that is in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    verdicts = [outcome.verdict for outcome in outcomes if outcome.verdict is not None]
    verdicts.sort(key=_suspicion, reverse=True)
    rows = [(verdict, _link(directory, verdict.source)) for verdict in verdicts]
    counts = [(label, sum(verdict.label is label for verdict in verdicts)) for label in (*Label,)]
    count = len(outcomes)
    page = _templates.get_template("index.html.j2").render(
        heading=f"{count} file" if count == 1 else f"{count} files",
        made_at=day_and_time(datetime.now(UTC)),
        rows=rows,
        failures=[outcome for outcome in outcomes if outcome.error is not None],
        counts=counts,
        models=list(dict.fromkeys(verdict.model for verdict in verdicts)),
        version=metadata.version("deepfake-serving"),
    )
    index = directory / INDEX_NAME
    write_whole(index, page)
    return index


def _link(directory: Path, source: str) -> str | None:
    path = page_path(source, directory)
    return path.relative_to(directory).as_posix() if path.exists() else None


def _suspicion(verdict: Verdict) -> tuple[bool, float]:
    return verdict.label is Label.FAKE, -1.0 if verdict.fake_probability is None else verdict.fake_probability


def _timeline_text(verdict: Verdict) -> str:
    """Say in words what the plot shows."""
    lines = [
        f"face {track.track + 1}: {track.fake_probability:.3f} over {track.num_frames} frames from "
        f"{stretch(track.first_pts_seconds, track.last_pts_seconds)}"
        for track in verdict.tracks
    ]
    return f"Fake probability of each face over time, threshold {verdict.threshold:g}. " + (
        "; ".join(lines) if lines else "No face was scored"
    )


def _face_cards(pictures: Pictures, verdict: Verdict, heatmaps: Heatmaps | None) -> list[dict[str, Any]]:
    overlays = {} if heatmaps is None else heatmaps.overlays
    cards = []
    for item, takes_part in ranked(pictures, verdict):
        frame, face = item.pick.frame, item.pick.face
        png = overlays.get((frame.index, face.track))
        cards.append(
            {
                "uri": jpeg_uri(item.crop),
                "overlay": None if png is None else data_uri("image/png", png),
                "face": face,
                "takes_part": takes_part,
                "pts_seconds": frame.pts_seconds,
            }
        )
    return cards


def _places(pictures: Pictures, verdict: Verdict) -> list[dict[str, Any]]:
    """Return one whole frame for each face, that in which it is most suspicious."""
    styles = track_styles(verdict)
    cards = []
    for track, item in moments(pictures):
        red, green, blue = bytes.fromhex(styles[track][0].removeprefix("#"))
        uri = jpeg_uri(with_box(item, (red, green, blue)))
        cards.append({"uri": uri, "track": track, "pts_seconds": item.pick.frame.pts_seconds})
    return cards
