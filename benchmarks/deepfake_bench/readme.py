"""Writes README's table of figures from the files under ``benchmarks/results``; nobody types a figure.

``python -m deepfake_bench.readme`` rewrites the part between the markers; ``--check`` only says if it is current.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deepfake_bench.environment import DEFAULT_RESULTS_DIR

START, END = "<!-- results -->\n", "<!-- end -->"

Results = Mapping[str, Any]
Row = tuple[str, str, str]
"""What was done, against what, and the figure."""


def served_rows(data: Results) -> list[Row]:
    """Rows of a ``*-served.json`` file."""
    what = f"{data['model']} served, {data['concurrency']} concurrent crops"
    return [
        (what, "the same ONNX Runtime sessions in-process", f"{data['ratio_to_same_sessions']:.2f} x the throughput"),
        (what, "one in-process session with all threads", f"{data['ratio_to_one_session']:.2f} x the throughput"),
        (what, "batch formed, by the server's counters", f"{data['mean_batch']:.1f} crops on average"),
    ]


def pipeline_rows(data: Results) -> list[Row]:
    """Rows of a ``*-pipeline.json`` file."""
    rows = []
    for clip in data["clips"]:
        what = f"{clip['frames']} frames of {clip['clip']}: clip to verdict"
        rows.append((what, "PyAV decoding the clip, no more", f"{clip['ours_over_decode_alone']:.2f} x the time"))
        if "ours_over_usual" in clip:
            other = "OpenCV seek + facenet-pytorch MTCNN + eager PyTorch"
            rows.append((what, other, f"{1 / clip['ours_over_usual']:.1f} x as fast"))
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


KINDS: Mapping[str, Callable[[Results], list[Row]]] = {
    "pipeline": pipeline_rows,
    "served": served_rows,
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


def main() -> int:
    """Rewrite README's table, or with ``--check`` compare it; returns the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when README is not current")
    options = parser.parse_args()
    readme = Path("README.md")
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(START, 1)
    current = before + START + "\n" + results_table(DEFAULT_RESULTS_DIR) + "\n" + END + rest.split(END, 1)[1]
    if options.check:
        if current != text:
            print("README's figures are not those of benchmarks/results; run: python -m deepfake_bench.readme")
        return int(current != text)
    readme.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
