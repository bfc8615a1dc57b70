"""Pictures of results files, and of nothing else; each is written next to its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfake_bench.machine.results import Results, read_results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
WIDTH_INCHES, HEIGHT_INCHES, DPI = 9.0, 4.0, 120
PANEL_WIDTH_INCHES = 5.5
"""Width for each network of a ``gpu`` result."""
ROOFLINES = {"fp32": ":", "tf32": "-.", "fp16": "--", "bf16": (0, (5, 1))}
"""Their lines, by precision."""
STAGES = {
    "client_and_network_ms": "client and network",
    "queue_ms": "server: queue",
    "compute_ms": "server: compute",
}


def latency_throughput(data: Results) -> Figure:
    """Curve of a ``server`` result: median and 99th percentile of latency against throughput."""
    axes = _axes()
    for number, (protocol, items) in enumerate(data["protocols"].items()):
        for mode, marker in (("closed", "o"), ("open", "^")):
            levels = [item for item in items if item["mode"] == mode and item["latency"]["p50_ms"] is not None]
            levels.sort(key=lambda item: float(item["concurrency"] or item["requests_per_s"]))
            for percentile, line in (("p50_ms", "-"), ("p99_ms", "--")):
                axes.plot(
                    [item["crops_per_s"] for item in levels],
                    [item["latency"][percentile] for item in levels],
                    color=f"C{number}",
                    linestyle=line,
                    marker=marker,
                    label=f"{protocol}, {mode} loop, {percentile[:3]}" if levels else None,
                )
            for item in levels:
                load = item["concurrency"] or f"{item['requests_per_s']:g}/s"
                place = (item["crops_per_s"], item["latency"]["p50_ms"])
                axes.annotate(str(load), place, textcoords="offset points", xytext=(4, -11), fontsize=7)
    axes.set(xlabel="crops/s", ylabel="latency, ms", yscale="log")
    _plain_numbers(axes)
    return _finish(axes, data, "Latency against throughput")


def stages(data: Results) -> Figure:
    """Bars of a ``server`` result: where the mean latency of each load goes."""
    axes = _axes()
    levels = [(f"{protocol}\n{_load(item)}", item) for protocol, items in data["protocols"].items() for item in items]
    parts = {
        label: [max(0.0, (item["server"].get(key) or item.get(key) or 0.0)) for _, item in levels]
        for key, label in STAGES.items()
    }
    _stack(axes, [name for name, _ in levels], parts)
    axes.set(ylabel="mean, ms")
    return _finish(axes, data, "Where a request's time goes")


def batches(data: Results) -> Figure:
    """Histogram of a ``server`` result: crops run in batches of each size, by the server's counters."""
    axes = _axes()
    levels = [
        (f"{protocol}, {_load(item)}", item["server"]["executions_by_batch"])
        for protocol, items in data["protocols"].items()
        for item in items
    ]
    width = 0.8 / max(1, len(levels))
    for number, (name, executions) in enumerate(levels):
        crops = {int(size): int(size) * count for size, count in executions.items()}
        total = max(1, sum(crops.values()))
        axes.bar(
            [size + (number - (len(levels) - 1) / 2) * width for size in crops],
            [100 * count / total for count in crops.values()],
            width,
            label=name,
        )
    axes.set(xlabel="batch size formed", ylabel="share of crops, %")
    return _finish(axes, data, "Batches the server formed")


def contenders(data: Results) -> Figure:
    """Bars of a ``compare`` result: throughput with many requests in flight."""
    axes = _axes()
    items = sorted(data["contenders"], key=lambda item: float(item["concurrency"]["32"]["crops_per_s"]))
    colors = ["C1" if item["name"] == data["ours"] else "C0" for item in items]
    bars = axes.barh(
        [item["name"] for item in items], [item["concurrency"]["32"]["crops_per_s"] for item in items], color=colors
    )
    axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    axes.set(xlabel="crops/s, 32 in flight")
    return _finish(axes, data, "The same model, served otherwise", legend=False)


def analysis_stages(data: Results) -> Figure:
    """Bars of a ``pipeline`` result: where the time of one analysis of each clip goes; stages overlap."""
    axes = _axes()
    splits = [clip["stages_s"] for clip in data["clips"]]
    parts = {stage: [split[stage] for split in splits] for stage in splits[0] if stage != "total"}
    _stack(axes, [_short(clip["clip"]) for clip in data["clips"]], parts, width=0.6)
    places = range(len(splits))
    axes.hlines(
        [split["total"] for split in splits], [x - 0.4 for x in places], [x + 0.4 for x in places], "k", label="total"
    )
    axes.set(ylabel="seconds at work")
    return _finish(axes, data, "Where the time of an analysis goes (stages overlap)")


def tuning(data: Results) -> Figure:
    """Curves of a ``tune`` result: the 99th percentile of each setting against the rate of videos, and the bound."""
    axes = _axes()
    for number, item in enumerate(data["tried"]):
        replays = [part for part in item["replays"] if part["latency"]["p99_ms"] is not None]
        replays.sort(key=lambda part: float(part["videos_per_s"]))
        shown = number == 0 or item["better"]
        axes.plot(
            [part["videos_per_s"] for part in replays],
            [part["latency"]["p99_ms"] for part in replays],
            marker="o" if shown else ".",
            color=None if shown else "0.75",
            linewidth=1.5 if shown else 0.5,
            zorder=2 if shown else 1,
            label=f"{item['instances']} x {item['threads']}, batch {item['max_batch_size']}, "
            f"{item['queue_delay_us']} us, {item['precision']}"
            if shown
            else None,
        )
    axes.axhline(data["p99_bound_ms"], color="k", linestyle="--", linewidth=0.8, label="bound")
    axes.set(xlabel="videos/s", ylabel="p99 of a request, ms", yscale="log")
    _plain_numbers(axes)
    return _finish(axes, data, "Settings tried, on recorded traffic")


def roofline(data: Results) -> Figure:
    """Curves of a ``gpu`` result: crops/s against the batch, one panel per network; the roofline is gray."""
    from matplotlib.figure import Figure

    networks = data["networks"]
    figure = Figure(figsize=(PANEL_WIDTH_INCHES * len(networks), HEIGHT_INCHES), dpi=DPI, layout="constrained")
    for axes, network in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks, strict=True):
        bounds: dict[str, dict[int, float]] = {}
        for number, engine in enumerate(network["engines"]):
            sizes = [item["batch"] for item in engine["batches"]]
            speeds = [item["crops_per_s"] for item in engine["batches"]]
            axes.plot(sizes, speeds, color=f"C{number}", marker="o", label=engine["engine"])
            for item in engine["batches"]:
                if item["roofline_crops_per_s"] is not None:
                    bounds.setdefault(engine["precision"], {})[item["batch"]] = item["roofline_crops_per_s"]
        for precision, points in bounds.items():
            xs, ys = zip(*sorted(points.items()), strict=True)
            axes.plot(xs, ys, color="0.5", linestyle=ROOFLINES[precision], label=f"roofline, {precision}")
        axes.set(xlabel="crops per execution", ylabel="crops/s", yscale="log")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        _plain_numbers(axes)
        axes.legend(fontsize=7, frameon=False)
        width, height = network["input_size_wh"]
        axes.set_title(f"{network['architecture']}, {width}x{height} px\n{data['environment']['gpu']}", size=9)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def replicas(data: Results) -> Figure:
    """Lines of an ``autoscaling`` result: callers, requests and replicas above, the queue with its target below."""
    from matplotlib.figure import Figure

    looks = data["looks"]
    minutes = [look["at_s"] / 60 for look in looks]
    figure = Figure(figsize=(WIDTH_INCHES, 1.2 * HEIGHT_INCHES), dpi=DPI, layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    for name, label, color in (("callers", "callers", "0.6"), ("ready", "replicas that answer", "C0")):
        above.step(minutes, [look[name] for look in looks], where="post", color=color, label=label)
    above.plot(minutes, [look["requests"] for look in looks], color="C2", label="requests that wait or run")
    below.plot(minutes, [look["queue_ms_now"] for look in looks], color="C0", label="mean time in the queue, of 5 s")
    below.axhline(data["targets"]["queue"], color="C3", linestyle="--", label="target")
    above.set(ylabel="number", ylim=(0, None))
    below.set(xlabel="minutes", ylabel="ms", ylim=(0, None))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, frameon=False)
    share, machine = data["cores_of_a_replica"], data["environment"]["cpu"]
    above.set_title(f"Autoscaling by the chart's rule\n{data['model']}, {share:g} of a core each, {machine}", size=9)
    return figure


PLOTS: Mapping[str, Mapping[str, Callable[[Results], Figure]]] = {
    "server": {"latency-throughput": latency_throughput, "stages": stages, "batches": batches},
    "compare": {"throughput": contenders},
    "pipeline": {"stages": analysis_stages},
    "tune": {"settings": tuning},
    "gpu": {"roofline": roofline},
    "autoscaling": {"replicas": replicas},
}
"""By benchmark and by name of the plot."""


def write_plots(path: Path, *, form: str) -> list[Path]:
    """Write the plots of a results file next to it, as one of `FORMATS`; none without plots or a GPU."""
    data = read_results(path)
    plots = PLOTS.get(data["benchmark"], {})
    if not plots or data.get("device", "cuda") != "cuda":  # without a GPU there are no figures, only a trial
        return []
    import matplotlib

    matplotlib.use("Agg")
    # Files that are made again from the same figures are the same.
    matplotlib.rcParams["svg.hashsalt"] = path.name
    written = []
    for name, draw in plots.items():
        target = path.with_name(f"{path.stem}-{name}.{form}")
        draw(data).savefig(target, metadata={"Date": None} if form == "svg" else {"Software": None})
        written.append(target)
    return written


def _plain_numbers(axes: Axes) -> None:
    """Write 400, not 4 x 10^2, on a logarithmic axis."""
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="both", labelsize=7)


def _stack(axes: Axes, names: Sequence[str], parts: Mapping[str, Sequence[float]], *, width: float = 0.8) -> None:
    """Draw one bar for each name, of parts on top of each other."""
    base = [0.0] * len(names)
    for label, values in parts.items():
        axes.bar(range(len(names)), values, width, bottom=base, label=label)
        base = [below + value for below, value in zip(base, values, strict=True)]
    axes.set_xticks(range(len(names)), names, fontsize=7)


def _short(name: str, length: int = 18) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _load(item: Mapping[str, Any]) -> str:
    return f"{item['concurrency']} in flight" if item["concurrency"] else f"{item['requests_per_s']:g} req/s"


def _axes() -> Axes:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI, layout="constrained").subplots()


def _finish(axes: Axes, data: Results, title: str, *, legend: bool = True) -> Figure:
    machine, model = data["environment"], data["model"]
    name = f"{model} {data['precision']}" if isinstance(model, str) else f"{model['name']} {model['precision']}"
    axes.set_title(f"{title}\n{name}, {machine['cpu']}, {machine['cores']} cores", size=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure: Figure = axes.figure  # type: ignore[assignment]
    if legend:
        figure.legend(loc="outside right upper", fontsize=7, frameon=False, handlelength=3)
    return figure
