"""`deepfake bench readme`: README's table of figures from the files under ``benchmarks/results``.

Nobody types a figure: the part between the markers is rewritten; ``--check`` only says if it is current.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from deepfake_bench.machine.environment import DEFAULT_RESULTS_DIR

START, END = "<!-- results -->\n", "<!-- end -->"

Results = Mapping[str, Any]
Row = tuple[str, str, str]
"""What was done, against what, and the figure."""


def served_rows(data: Results) -> list[Row]:
    """Rows of a ``*-served.json`` file: three for each protocol."""
    rows = []
    for protocol, item in data["protocols"].items():
        what = f"{data['model']} served, {protocol}, {data['concurrency']} concurrent crops"
        same, one = (f"{item[f'ratio_to_{key}']:.2f} x the throughput" for key in ("same_sessions", "one_session"))
        rows += [
            (what, "the same ONNX Runtime sessions in-process", same),
            (what, "one in-process session with all threads", one),
            (what, "batch formed, by the server's counters", f"{item['mean_batch']:.1f} crops on average"),
        ]
    return rows


def pipeline_rows(data: Results) -> list[Row]:
    """Rows of a ``*-pipeline.json`` file."""
    rows = []
    for clip in data["clips"]:
        what = f"{clip['frames']} frames of {clip['clip']}: clip to verdict, {data['model']}"
        alone = "PyAV decoding the clip, no more"
        rows.append((what, alone, f"{clip['ours_over_decode_alone']:.2f} x the time"))
        if "fast_over_decode_alone" in clip:
            rows.append((f"{what}, fast sampling", alone, f"{clip['fast_over_decode_alone']:.2f} x the time"))
        if "ours_over_usual" in clip:
            other = "OpenCV seek + facenet-pytorch MTCNN + eager PyTorch"
            rows.append((what, other, f"{1 / clip['ours_over_usual']:.1f} x as fast"))
    one, *more = data.get("repeated", [None])
    rows += [
        (
            f"{item['clips']} clips in one run, {data['model']}",
            f"{one['clips']} in a run",
            f"{item['cpu_ratio']:.2f} x the CPU time per clip, {item['time_ratio']:.2f} x the time per clip, "
            f"{item['peak_growth_mb']:+.0f} MB",
        )
        for item in more
    ]
    return rows


def detector_rows(data: Results) -> list[Row]:
    """Rows of a ``*-detector.json`` file: the 1080p clips, and faces found over all clips."""
    rows = [
        (f"face detection, {clip['clip']}", "facenet-pytorch MTCNN", f"{clip['ratio']:.0f} x as fast per frame")
        for clip in data["clips"]
        if min(clip["size_wh"]) >= 1080
    ]
    sums = {
        key: sum(clip[key] for clip in data["clips"])
        for key in ("peer_faces", "matched", "peer_sure", "matched_sure")
    }
    return [
        *rows,
        (
            "faces found, IoU >= 0.7",
            "boxes of facenet-pytorch with confidence 0.95 or more",
            f"{sums['matched_sure']} of {sums['peer_sure']}",
        ),
        (
            "faces found, IoU >= 0.7",
            "all its boxes (most others are hands, shadows and clothes)",
            f"{sums['matched']} of {sums['peer_faces']}",
        ),
    ]


def decode_rows(data: Results) -> list[Row]:
    """Rows of a ``*-decode.json`` file."""
    return [
        (
            f"sampling {clip['frames_verified']} frames of {clip['clip']}",
            "PyAV decoding the clip",
            f"{clip['cpu_ratio']:.2f} x the CPU time",
        )
        for clip in data["clips"]
    ]


def server_rows(data: Results) -> list[Row]:
    """Rows of a ``*-server.json`` file: one for each load, of the protocol that was measured first."""
    rows = []
    for protocol, items in list(data["protocols"].items())[:1]:
        for item in items:
            load = (
                f"{item['concurrency']} in flight"
                if item["concurrency"]
                else f"{item['requests_per_s']:g} requests/s at random times"
            )
            waits = item["latency"]
            figure = f"{item['crops_per_s']:.0f} crops/s"
            if waits["p50_ms"] is not None and not item["falls_behind"]:
                figure += f"; p50 {waits['p50_ms']:.0f} ms, p99 {waits['p99_ms']:.0f} ms"
            if item["falls_behind"]:
                figure += "; falls behind"
            crops = data["crops_per_request"]
            rows.append((f"{_model(data)}, {protocol}, requests of {crops} crop{'s' * (crops > 1)}", load, figure))
    return rows


def compare_rows(data: Results) -> list[Row]:
    """Rows of a ``*-compare.json`` file: ours against each other contender, and what was not measured."""
    rows = []
    what = f"{_model(data)}, {data['ours']}, 32 in flight"
    for item in data["contenders"]:
        if item["name"] == data["ours"]:
            continue
        ratio = data["ours_over"][item["name"]]
        parts = [f"{ratio['throughput']:.2f} x the throughput"]
        if ratio["p99"] is not None:
            parts.append(f"{ratio['p99']:.2f} x the p99")
        parts.append(f"alone {ratio['p50_alone']:.2f} x the latency")
        rows.append((what, f"{item['name']} ({item['setting']})", ", ".join(parts)))
    measured = {item["name"] for item in data["contenders"]}
    reasons = {item["name"]: item["reason"] for item in data["not_measured"] if item["name"] not in measured}
    return rows + [(what, name, f"not measured: {reason}") for name, reason in reasons.items()]


def tune_rows(data: Results) -> list[Row]:
    """Rows of a ``*-tune.json`` file: the setting that was found."""
    what = f"{_model(data)}, recorded video traffic, 99% of the requests within {data['p99_bound_ms']:g} ms"
    best, rate = data["best"], data["start"]["videos_per_s"]
    if data["best_is_start"]:
        return [(what, "other settings", f"{rate:.2f} videos/s with the present setting; none was better")]
    found = max(item["videos_per_s"] or 0.0 for item in data["tried"])
    setting = f"{best['instances']} x {best['threads']}, batches to {best['max_batch_size']}"
    return [(what, "the setting before", f"{found / rate:.2f} x the videos/s ({setting})" if rate else setting)]


def _model(data: Results) -> str:
    return f"{data['model']['name']} {data['model']['precision']}"


KINDS: Mapping[str, Callable[[Results], list[Row]]] = {
    "pipeline": pipeline_rows,
    "served": served_rows,
    "server": server_rows,
    "compare": compare_rows,
    "tune": tune_rows,
    "detector": detector_rows,
    "decode": decode_rows,
}


def results_table(folder: Path) -> str:
    """Return the Markdown table of all results in `folder`, one section per file."""
    parts = []
    for kind, rows_of in KINDS.items():
        for path in sorted(folder.glob(f"*-{kind}.json")):
            data = json.loads(path.read_text(encoding="utf-8"))
            machine = data["environment"]
            rows = "".join(f"| {what} | {against} | {figure} |\n" for what, against, figure in rows_of(data))
            parts.append(
                f"[{path.name}]({path.as_posix()}): {machine['cpu']}, {machine['cores']} cores, "
                f"GPU {machine['gpu']}\n\n| What | Against | Figure |\n|---|---|---|\n{rows}"
            )
    return "\n".join(parts)


def readme(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail when README is not current.")] = False,
) -> None:
    """Write README's table of figures from the results files."""
    path = Path("README.md")
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(START, 1)
    current = before + START + "\n" + results_table(DEFAULT_RESULTS_DIR) + "\n" + END + rest.split(END, 1)[1]
    if not check:
        path.write_text(current, encoding="utf-8")
    elif current != text:
        typer.echo("README's figures are not those of benchmarks/results; run: deepfake bench readme")
        raise typer.Exit(1)
