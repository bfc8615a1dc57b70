"""The picture of a ``gpu`` result: throughput of each engine against the batch, below the rooflines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL_WIDTH_INCHES, HEIGHT_INCHES, DPI = 5.5, 4.5, 120
LINES = {"fp32": ":", "tf32": "-.", "fp16": "--"}
"""Of the rooflines, by precision."""


def roofline(data: Mapping[str, Any]) -> Figure:
    """Draw crops/s against the batch, one panel per network; grey lines are what the roofline allows."""
    from matplotlib.figure import Figure

    networks = data["networks"]
    figure = Figure(figsize=(PANEL_WIDTH_INCHES * len(networks), HEIGHT_INCHES), dpi=DPI, layout="constrained")
    for axes, network in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks, strict=True):
        bounds: dict[str, dict[int, float]] = {}
        for number, engine in enumerate(network["engines"]):
            batches = engine["batches"]
            if batches:
                sizes = [item["batch"] for item in batches]
                speeds = [item["crops_per_s"] for item in batches]
                axes.plot(sizes, speeds, color=f"C{number}", marker="o", label=engine["engine"])
            for item in batches:
                if item["roofline_crops_per_s"] is not None:
                    bounds.setdefault(engine["precision"], {})[item["batch"]] = item["roofline_crops_per_s"]
        for precision, points in bounds.items():
            xs, ys = zip(*sorted(points.items()), strict=True)
            axes.plot(xs, ys, color="0.5", linestyle=LINES[precision], label=f"roofline, {precision}")
        if axes.lines:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.legend(fontsize=7, frameon=False)
        else:
            why = data["reason"] or "see the file"
            axes.text(0.5, 0.5, f"not measured: {why}", ha="center", transform=axes.transAxes)
        axes.set(xlabel="crops per execution", ylabel="crops/s")
        width, height = network["input_size_wh"]
        axes.set_title(f"{network['architecture']}, {width}x{height} px\n{data['environment']['gpu']}", size=9)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
