"""The plots of a report: scores over time, and the most suspicious frames with their boxes.

Figures are made without `matplotlib.pyplot`, so nothing is kept between reports and no display is needed.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MultipleLocator

from deepfake_client.report.pictures import Shot
from deepfake_client.result.times import clock
from deepfake_client.result.verdict import FaceScore, Verdict

COLORS = ("#0077bb", "#ee7733", "#009988", "#aa3377", "#33bbee", "#887700")
"""Colors of the tracks, most suspicious first; color-blind people can distinguish them (after Paul Tol's vibrant
scheme)."""
OTHER_COLOR = "#999999"
MARKERS = ("o", "s", "^", "D", "v", "P")
"""Markers of the tracks: color is never the only difference."""
_INK = "#1f2328"
_FAKE_COLOR, _REAL_COLOR = "#c62f3c", "#2f7d4f"
LONG_S = 120.0
"""From here on, times are named by minutes and seconds."""
MOST_TICKS, MOST_TICKS_NARROW = 8, 4
_TICKS_S = (30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
_DPI = 120
_CAUTION_CHARACTERS = 150
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
}


def timeline_svg(verdict: Verdict, *, narrow: bool = False) -> str:
    """Return the scores over time as an ``<svg>`` element whose ink is the text color of the page around it.

    With `narrow`, it can be read on a telephone; both kinds may stand on one page.
    """
    buffer = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": f"deepfake{narrow}"}):
        _timeline(verdict, narrow=narrow).savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_[0-9]+"', "", svg)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg, count=1)
    return svg.replace("xlink:href", "href").replace(_INK, "currentColor")


def timeline_png(verdict: Verdict) -> bytes:
    """Return the scores over time as a PNG file without a title, to stand on paper."""
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        _timeline(verdict).savefig(buffer, format="png", dpi=_DPI, facecolor="white")
    return buffer.getvalue()


def write_timeline(verdict: Verdict, path: Path) -> None:
    """Write the scores over time as a PNG."""
    with mpl.rc_context(_STYLE):
        figure = _timeline(verdict)
        figure.suptitle(_title(verdict), x=0.01, ha="left", fontweight="bold")
        figure.axes[0].set_title(_caution(verdict), loc="left", fontsize=8)
        figure.savefig(path, format="png", dpi=_DPI, facecolor="white")


def write_frame_analysis(verdict: Verdict, shots: Sequence[Shot], path: Path) -> None:
    """Write a PNG of whole frames with boxes and scores, above one bar for each sampled frame."""
    columns = min(4, max(1, len(shots)))
    rows = -(-len(shots) // columns)
    aspect = max((shot.image_rgb.shape[0] / shot.image_rgb.shape[1] for shot in shots), default=0.0)
    width = 11.0
    picture_height = min(width / max(columns, 3) * aspect + 0.3, 4.5)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, rows * picture_height + 3.0), layout="constrained")
        grid = figure.add_gridspec(rows + 1, columns, height_ratios=[picture_height] * rows + [2.4])
        for number in range(rows * columns):
            axes = figure.add_subplot(grid[number // columns, number % columns])
            axes.axis("off")
            if number < len(shots):
                _draw_shot(axes, shots[number], verdict.threshold)
        _draw_bars(figure.add_subplot(grid[rows, :]), verdict)
        figure.suptitle(_title(verdict), x=0.01, ha="left", fontweight="bold")
        figure.supxlabel(_caution(verdict), x=0.01, ha="left", fontsize=8)
        figure.savefig(path, format="png", dpi=_DPI, facecolor="white")


def track_styles(verdict: Verdict) -> dict[int, tuple[str, str]]:
    """Return color and marker of each track; the most suspicious ones have styles of their own."""
    ranked = sorted(verdict.tracks, key=lambda track: (not track.counted, -track.fake_probability))
    styles = dict(zip((track.track for track in ranked), zip(COLORS, MARKERS, strict=True), strict=False))
    return {track.track: styles.get(track.track, (OTHER_COLOR, ".")) for track in verdict.tracks}


def _title(verdict: Verdict) -> str:
    if verdict.fake_probability is None:
        return f"{verdict.label.value}: {verdict.reason}"
    return f"{verdict.label.value}: fake probability {verdict.fake_probability:.3f}, threshold {verdict.threshold:g}"


def _caution(verdict: Verdict) -> str:
    """Pictures are passed on without the page around them."""
    text = f"A score is a reason to look closer, and no proof. {verdict.model.caution}"
    return "\n".join(wrap(text, _CAUTION_CHARACTERS))


def _timeline(verdict: Verdict, *, narrow: bool = False) -> Figure:
    figure = Figure(figsize=(4.4, 4.0) if narrow else (9.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.axhspan(verdict.threshold, 1.04, color=_FAKE_COLOR, alpha=0.06, linewidth=0)
    axes.axhline(
        verdict.threshold, color=_FAKE_COLOR, linestyle="--", linewidth=1.2,
        label=f"threshold {verdict.threshold:g}: FAKE at or above",
    )  # fmt: skip
    styles = track_styles(verdict)
    _draw_interval(axes, verdict, styles)
    _draw_tracks(axes, verdict, styles)
    axes.set_ylim(-0.04, 1.04)
    _name_times(axes, verdict, MOST_TICKS_NARROW if narrow else MOST_TICKS)
    axes.set_ylabel("fake probability")
    axes.grid(axis="y", color=OTHER_COLOR, alpha=0.25, linewidth=0.6)
    _widen_single_moment(axes, verdict)
    figure.legend(loc="outside lower left", ncols=2 if narrow else 5, frameon=False, fontsize=9)
    return figure


def _draw_interval(axes: Axes, verdict: Verdict, styles: dict[int, tuple[str, str]]) -> None:
    deciding = verdict.deciding
    if deciding is None or verdict.interval is None:
        return
    axes.fill_between(
        [deciding.first_pts_seconds, deciding.last_pts_seconds],
        verdict.interval.low,
        verdict.interval.high,
        color=styles[deciding.track][0],
        alpha=0.14,
        linewidth=0,
        label=f"95% interval of face {deciding.track + 1}",
    )


def _draw_tracks(axes: Axes, verdict: Verdict, styles: dict[int, tuple[str, str]]) -> None:
    points: dict[int, list[tuple[float, FaceScore]]] = {}
    for frame in verdict.frames:
        for face in frame.faces:
            points.setdefault(face.track, []).append((frame.pts_seconds, face))
    left_out: list[tuple[float, float]] = []
    for track, seen in sorted(points.items()):
        color, marker = styles.get(track, (OTHER_COLOR, "."))
        used = [(time, face.fake_probability or 0.0) for time, face in seen if face.takes_part]
        left_out += [
            (time, face.fake_probability)
            for time, face in seen
            if face.fake_probability is not None and not face.takes_part
        ]
        if used:
            style: dict[str, Any] = {"color": color, "marker": marker, "markersize": 5, "linewidth": 1.4}
            named = color != OTHER_COLOR
            axes.plot(*zip(*used, strict=True), label=f"face {track + 1}" if named else None, **style)
    if left_out:
        axes.plot(
            *zip(*left_out, strict=True), "x", color=OTHER_COLOR, markersize=6, markeredgewidth=1.4,
            label="left out",
        )  # fmt: skip
    bare = [frame.pts_seconds for frame in verdict.frames if not frame.faces]
    if bare:
        axes.plot(bare, [-0.02] * len(bare), "|", color=OTHER_COLOR, markersize=7, label="no face")


def _name_times(axes: Axes, verdict: Verdict, most: int) -> None:
    """Name the times of the lower axis: seconds, or minutes where there are several."""
    last = verdict.frames[-1].pts_seconds if verdict.frames else 0.0
    if last < LONG_S:
        axes.set_xlabel("time in seconds")
        return
    step = next((step for step in _TICKS_S if last <= step * most), last / most)
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: clock(seconds, 0)))
    axes.set_xlabel(f"time from the start, in {'hours, ' if last + step > 3600 else ''}minutes and seconds")


def _widen_single_moment(axes: Axes, verdict: Verdict) -> None:
    times = {frame.pts_seconds for frame in verdict.frames}
    if len(times) < 2:
        center = next(iter(times), 0.0)
        axes.set_xlim(center - 0.5, center + 0.5)
        axes.set_xticks([center], [clock(center)])
        axes.set_xlabel("time of the one picture")


def _draw_shot(axes: Axes, shot: Shot, threshold: float) -> None:
    axes.imshow(shot.image_rgb)
    axes.set_title(f"{clock(shot.result.pts_seconds)} (face: score)", fontsize=9, loc="left")
    for face in shot.result.faces:
        color = _color_of(face, threshold)
        left, top, right, bottom = (value * shot.scale for value in face.box_xyxy)
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=1.8))
        score = "not scored" if face.fake_probability is None else f"{face.fake_probability:.2f}"
        axes.text(
            left, top - 3, f"{face.track + 1}: {score}", color="white", fontsize=7.5, va="bottom", clip_on=True,
            bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip


def _draw_bars(axes: Axes, verdict: Verdict) -> None:
    for position, frame in enumerate(verdict.frames):
        scored = [face for face in frame.faces if face.fake_probability is not None]
        if not scored:
            axes.plot(position, 0.01, "|", color=OTHER_COLOR, markersize=6)
            continue
        highest = max(scored, key=lambda face: (face.takes_part, face.fake_probability))
        axes.bar(position, highest.fake_probability or 0.0, width=0.8, color=_color_of(highest, verdict.threshold))
    axes.axhline(verdict.threshold, color=_INK, linestyle="--", linewidth=1)
    ticks = range(0, len(verdict.frames), max(1, len(verdict.frames) // 12))
    axes.set_xticks(list(ticks), [clock(verdict.frames[tick].pts_seconds, 1) for tick in ticks])
    axes.set_ylim(0, 1.02)
    axes.set_xlim(-0.7, max(1, len(verdict.frames)) - 0.3)
    axes.set_xlabel("frames that were looked at, by time from the start")
    axes.set_ylabel("highest fake probability")


def _color_of(face: FaceScore, threshold: float) -> str:
    if face.fake_probability is None or not face.takes_part:
        return "#777777"
    return _FAKE_COLOR if face.fake_probability >= threshold else _REAL_COLOR
