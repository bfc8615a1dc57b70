"""Tables of figures from results files; nobody types a figure.

The README has the headlines, docs/performance.md everything. Both are written between markers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deepfake_bench.compare.comparison import SERVED, served_over_in_process
from deepfake_bench.machine.results import Results, read_results

START, END = "<!-- results -->\n", "<!-- end -->"
HEAD = "| What | Against | Figure |\n|---|---|---|\n"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: what was done, against what or under which load, and whether it is in the README, as a headline."""

    what: str
    against: str
    figure: str
    headline: bool = False

    def __str__(self) -> str:
        return f"| {self.what} | {self.against} | {self.figure} |\n"


def pipeline_rows(data: Results) -> list[Row]:
    """Rows of a ``pipeline`` result."""
    rows = []
    alone, model = "PyAV decoding the clip, nothing else", f"{data['model']} {data['precision']}"
    for clip in data["clips"]:
        what = f"{clip['frames']} frames of {clip['clip']}: clip to verdict, {model}"
        rows.append(Row(what, alone, f"{clip['ours_over_decode_alone']:.2f} x the time", headline=True))
        rows.append(Row(f"{what}, fast sampling", alone, f"{clip['fast_over_decode_alone']:.2f} x the time"))
        if "ours_over_usual" in clip:
            usual = "OpenCV seek + facenet-pytorch MTCNN + eager PyTorch"
            rows.append(Row(what, usual, f"{1 / clip['ours_over_usual']:.1f} x as fast", headline=True))
    one, *more = data.get("repeated", [None])
    rows += [
        Row(
            f"{item['clips']} clips in one run, {model}",
            f"{one['clips']} in a run",
            f"{item['cpu_ratio']:.2f} x the CPU time per clip, {item['time_ratio']:.2f} x the time per clip, "
            f"{item['peak_growth_mb']:+.0f} MB",
        )
        for item in more
    ]
    return rows


def server_rows(data: Results) -> list[Row]:
    """Rows of a ``server`` result: one for each load, of the protocol that was measured first."""
    protocol, items = next(iter(data["protocols"].items()))
    crops = data["crops_per_request"]
    what = f"{_model(data)}, {protocol}, requests of {crops} crop{'s' * (crops > 1)}"
    rows = []
    for item in items:
        load = (
            f"{item['concurrency']} in flight"
            if item["concurrency"]
            else f"{item['requests_per_s']:g} requests/s at random times"
        )
        waits = item["latency"]
        figure = f"{item['crops_per_s']:.0f} crops/s"
        if item["falls_behind"]:
            figure += "; falls behind"
        elif waits["p50_ms"] is not None:
            figure += f"; p50 {waits['p50_ms']:.0f} ms, p99 {waits['p99_ms']:.0f} ms"
        rows.append(Row(what, load, figure))
    return rows


def compare_rows(data: Results) -> list[Row]:
    """Rows of a ``compare`` result: what serving costs by protocol, ours against others, what was not measured."""
    contenders = {item["name"]: item for item in data["contenders"]}
    ours, engine = f"{_model(data)}, {data['ours']}, 32 in flight", data["in_process"]
    rows = []
    for name, ratio in served_over_in_process(data).items():
        against = f"{engine} ({contenders[engine]['setting']})"
        figure = f"{ratio:.2f} x the throughput"
        if name == data["ours"]:
            figure += f", alone {data['ours_over'][engine]['p50_alone']:.2f} x the latency"
        rows.append(Row(f"{_model(data)}, {name}, 32 in flight", against, figure, headline=name == data["ours"]))
    for name, ratio in data["ours_over"].items():
        if name in SERVED or name == engine:
            continue
        figure = f"{ratio['throughput']:.2f} x the throughput"
        if ratio["p99"] is not None:
            figure += f", {ratio['p99']:.2f} x the p99"
        figure += f", alone {ratio['p50_alone']:.2f} x the latency"
        against = f"{name} ({contenders[name]['setting']})"
        rows.append(Row(ours, against, figure, headline=name == "LitServe"))
    reasons = {item["name"]: item["reason"] for item in data["not_measured"] if item["name"] not in contenders}
    return rows + [Row(ours, name, f"not measured: {reason}") for name, reason in reasons.items()]


def tune_rows(data: Results) -> list[Row]:
    """Rows of a ``tune`` result: the setting that was found."""
    what = f"{_model(data)}, recorded video traffic, 99% of the requests within {data['p99_bound_ms']:g} ms"
    best, rate = data["best"], data["start"]["videos_per_s"]
    if data["best_is_start"]:
        return [Row(what, "other settings", f"{rate:.2f} videos/s with the present setting; none was better")]
    found = max(item["videos_per_s"] or 0.0 for item in data["tried"])
    setting = f"{best['instances']} x {best['threads']}, batches to {best['max_batch_size']}"
    figure = f"{found / rate:.2f} x the videos/s ({setting})" if rate else setting
    return [Row(what, "the setting before", figure)]


def detector_rows(data: Results) -> list[Row]:
    """Rows of a ``detector`` result: the 1080p clips, and faces found over all clips."""
    rows = [
        Row(
            f"face detection, {clip['clip']}",
            "facenet-pytorch MTCNN",
            f"{clip['ratio']:.0f} x as fast per frame",
            headline=True,
        )
        for clip in data["clips"]
        if min(clip["size_wh"]) >= 1080
    ]
    for kind, boxes in (
        ("_sure", "boxes of facenet-pytorch with confidence 0.95 or more"),
        ("", "all its boxes (most others are hands, shadows and clothes)"),
    ):
        found = sum(clip[f"matched{kind}"] for clip in data["clips"])
        known = sum(clip[f"peer{kind or '_faces'}"] for clip in data["clips"])
        rows.append(Row("faces found, IoU >= 0.7", boxes, f"{found} of {known}"))
    return rows


def decode_rows(data: Results) -> list[Row]:
    """Rows of a ``decode`` result."""
    return [
        Row(
            f"sampling {clip['frames_verified']} frames of {clip['clip']}",
            "PyAV decoding the clip",
            f"{clip['cpu_ratio']:.2f} x the CPU time",
        )
        for clip in data["clips"]
    ]


def gpu_rows(data: Results) -> list[Row]:
    """Rows of a ``gpu`` result: each engine at its fastest batch size; none of a run that only tried the code."""
    rows: list[Row] = []
    if data["device"] != "cuda":
        return rows
    for network in data["networks"]:
        for engine in network["engines"]:
            best = max(engine["batches"], key=lambda item: float(item["crops_per_s"]))
            width, height = network["input_size_wh"]
            figure = f"{best['crops_per_s']:.0f} crops/s at batch {best['batch']}"
            if best["share_of_roofline"] is not None:
                figure += f", {100 * best['share_of_roofline']:.0f}% of the roofline"
            rows.append(Row(f"{network['architecture']}, {width}x{height} px", engine["engine"], figure))
    return rows


def _model(data: Results) -> str:
    return f"{data['model']['name']} {data['model']['precision']}"


ROWS: Mapping[str, Callable[[Results], list[Row]]] = {
    "pipeline": pipeline_rows,
    "compare": compare_rows,
    "server": server_rows,
    "tune": tune_rows,
    "detector": detector_rows,
    "decode": decode_rows,
    "gpu": gpu_rows,
}
"""By benchmark, in the order of the tables."""


def all_figures(folder: Path, *, link: str) -> str:
    """Return the Markdown tables of all results in a folder, one for each file; `link` is its address there."""
    parts = []
    for path, data, rows in _read(folder):
        machine = data["environment"]
        parts.append(
            f"[{path.name}]({link}/{path.name}): {machine['cpu']}, {machine['cores']} cores, "
            f"GPU {machine['gpu']}\n\n{HEAD}{''.join(map(str, rows))}"
        )
    return "\n".join(parts)


def headlines(folder: Path) -> str:
    """Return the Markdown table of the figures that a newcomer wants first."""
    return HEAD + "".join(str(row) for _, _, rows in _read(folder) for row in rows if row.headline)


def replaced(text: str, table: str) -> str:
    """Return a page with another table between its markers."""
    before, rest = text.split(START, 1)
    return f"{before}{START}\n{table}\n{END}{rest.split(END, 1)[1]}"


def _read(folder: Path) -> list[tuple[Path, Results, list[Row]]]:
    results = [(path, read_results(path)) for path in sorted(folder.glob("*.json"))]
    return [
        (path, data, rows)
        for benchmark, rows_of in ROWS.items()
        for path, data in results
        if data["benchmark"] == benchmark and (rows := rows_of(data))
    ]
