"""The HTML page of an export's report: one file without scripts that fetches nothing, with its plots as SVG."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jinja2

from deepfake_export.proof.gate import shown
from deepfake_export.proof.report_words import (
    MEMBERS_INTRO,
    artifact_facts,
    facts,
    figure_rows,
    member_rows,
    overview,
    reason,
)

PLOT_PX = 260
"""Side of the square that scatter plot and histogram are drawn in, in units of the SVG."""
BARS_PX = 170
SCORE_STEP = 1e-6
"""Scores of the report are rounded to this."""
HISTOGRAM_SIDE = 20
"""Most bars on each side of zero."""

_templates = jinja2.Environment(
    loader=jinja2.PackageLoader("deepfake_export.proof"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def to_html(data: Mapping[str, Any]) -> str:
    """Return the report as one self-contained page."""
    gates = {row[0]: row[1] for row in overview(data)[1:]}
    return _templates.get_template("report.html.j2").render(
        data=data,
        reason=reason(data),
        overview=overview(data),
        facts=facts(data),
        bars=_bars(data),
        artifacts=[
            {
                "name": shown(item["name"]),
                "precision": item["precision"],
                "gate": gates[shown(item["name"])],
                "facts": artifact_facts(item),
                "figures": None if item["parity"] is None else figure_rows(item),
                **_plots(data, item["name"]),
            }
            for item in data["artifacts"]
        ],
        members=member_rows(data["members"]) if data["members"] else None,
        members_intro=MEMBERS_INTRO,
        size=PLOT_PX,
    )


def _plots(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return scatter plot and histogram of an artifact; None where there is nothing to draw."""
    scores = data["scores"]
    if name not in scores:
        return {"scatter": None, "histogram": None, "num_drawn": 0, "num_left_out": 0}
    labels = scores["labels"] or [None] * len(scores["checkpoint"])
    kinds = {None: "crop", 0: "real", 1: "fake"}
    points = [
        (kinds[label], reference, score)
        for label, reference, score in zip(labels, scores["checkpoint"], scores[name], strict=True)
        if reference is not None and score is not None
    ]
    return {
        "scatter": _scatter(points, data["threshold"]) if points else None,
        "histogram": _histogram([score - reference for _, reference, score in points]),
        "num_drawn": len(points),
        "num_left_out": len(labels) - len(points),
    }


def _scatter(points: list[tuple[str, float, float]], threshold: float) -> dict[str, Any]:
    """Return where the marks lie, from the plot's upper left corner; marks on one place are drawn once."""
    marks = {(kind, f"{PLOT_PX * x:.1f}", f"{PLOT_PX * (1 - y):.1f}") for kind, x, y in points}
    return {
        "marks": sorted(marks),
        "kinds": [kind for kind in ("real", "fake") if any(mark[0] == kind for mark in marks)],
        "threshold": threshold,
        "ticks": [(PLOT_PX * tick, f"{tick:g}") for tick in (0, 0.25, 0.5, 0.75, 1)],
    }


def _histogram(differences: list[float]) -> dict[str, Any] | None:
    """Return bars around zero, each of a whole number of rounding steps; None where nothing differs."""
    steps = [round(value / SCORE_STEP) for value in differences]
    reach = max(map(abs, steps), default=0)
    if reach == 0:
        return None
    width = math.ceil(reach / HISTOGRAM_SIDE)
    side = math.ceil(reach / width)
    counts = Counter(round(step / width) for step in steps)
    top, bar_px = max(counts.values()), PLOT_PX / (2 * side + 1)
    return {
        "bars": [(f"{(at + side) * bar_px:.1f}", f"{PLOT_PX * count / top:.1f}") for at, count in counts.items()],
        "bar_px": f"{max(bar_px - 0.5, 0.5):.1f}",
        "x_ticks": [
            ((at + side + 0.5) * bar_px, f"{at * width * SCORE_STEP:.1e}" if at else "0") for at in (-side, 0, side)
        ],
        "y_ticks": [(PLOT_PX * (1 - count / top), str(count)) for count in sorted({0, top // 2, top})],
    }


def _bars(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a bar for each batch size and artifact whose speed was measured."""
    items = [item for item in data["artifacts"] if item["speed"] is not None]
    sizes = items[0]["speed"]["latency_ms"] if items else ()
    values = [(size, item, item["speed"]["latency_ms"][size] / int(size)) for size in sizes for item in items]
    longest = max((value for _, _, value in values), default=1)
    return [
        {
            "label": f"{shown(item['name'])}, batch {size}",
            "precision": item["precision"],
            "ms": f"{value:.3g} ms",
            "width": f"{BARS_PX * value / longest:.1f}",
        }
        for size, item, value in values
    ]
