"""The report of an export with several precisions: JSON for programs, Markdown and one HTML page for people.

The page is one file without scripts; its plots are SVG written here, so that no plotting library is needed.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepfake_export.proof.comparison import Proof
from deepfake_export.proof.faces import FaceSet
from deepfake_export.proof.tolerances import TOLERANCES
from deepfake_preprocess.contract.spec import ModelSpec

REPORT_FORMAT = 1
REPORT_NAME = "report"
"""Stem of ``report.json``, ``report.md`` and ``report.html`` in the version's directory."""

COLORS = {"fp32": "#4477aa", "fp16": "#228833", "int8": "#cc6677"}
"""Told apart by colour-blind people too (Paul Tol's bright scheme)."""
HISTOGRAM_BINS = 40
SHOWN_LAYERS = 12


def report_data(
    spec: ModelSpec, proof: Proof, faces: FaceSet, calibration: FaceSet | None, commands: Mapping[str, str]
) -> dict[str, Any]:
    """Return the report as plain JSON data.

    Args:
        spec: contract of the version.
        proof: what was measured.
        faces: crops of the comparison.
        calibration: crops of the INT8 ranges.
        commands: by precision, the command line that repeats its comparison.
    """
    data = {
        "format": REPORT_FORMAT,
        "model": spec.name,
        "version": spec.version,
        "architecture": spec.architecture,
        "checkpoint_sha256": spec.checkpoint_sha256,
        "threshold": spec.threshold,
        "promotion": proof.decision.to_dict(),
        "crops": {"count": len(faces.crops), "origin": faces.origin, "labelled": faces.labels is not None},
        "calibration": calibration_data(calibration),
        "artifacts": [
            {
                **item.to_dict(),
                "command": commands[item.precision],
                "tolerance_reason": TOLERANCES[item.precision].reason,
            }
            for item in proof.comparisons
        ],
        "scores": {
            "sources": list(faces.sources),
            "labels": None if faces.labels is None else faces.labels.tolist(),
            "checkpoint": _rounded(proof.reference),
            **{item.precision: _rounded(item.probability) for item in proof.comparisons if len(item.probability)},
        },
        "notes": list(dict.fromkeys([*faces.notes, *(calibration.notes if calibration is not None else ())])),
    }
    # Through JSON, so that what is kept in memory equals what is read back; NaN is no JSON.
    return dict(json.loads(json.dumps(_finite(data), allow_nan=False)))


def calibration_data(calibration: FaceSet | None) -> dict[str, Any] | None:
    """Return what a manifest says about a calibration set, as plain JSON data."""
    if calibration is None:
        return None
    return {
        "sha256": calibration.sha256,
        "num_crops": len(calibration.crops),
        "num_files": len(set(calibration.sources)),
        "origin": calibration.origin,
    }


def write_report(directory: Path, data: Mapping[str, Any]) -> None:
    """Write ``report.json``, ``report.md`` and ``report.html`` into `directory`."""
    texts = {".json": json.dumps(data, indent=2) + "\n", ".md": to_markdown(data), ".html": to_html(data)}
    for suffix, text in texts.items():
        (directory / f"{REPORT_NAME}{suffix}").write_text(text, encoding="utf-8")


def to_markdown(data: Mapping[str, Any]) -> str:
    """Return the report as a Markdown page."""
    header, rows = _table(data)
    lines = [
        f"# {data['model']} version {data['version']}: precisions",
        "",
        f"**{data['promotion']['promoted'].upper()} is served.** {data['promotion']['reason']}.",
        "",
        f"| {' | '.join(header)} |",
        "|" + "---|" * len(header),
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        *(f"- {line}" for line in _facts(data)),
        "",
    ]
    for artifact in data["artifacts"]:
        lines += [f"## {artifact['precision'].upper()}", "", *(f"- {line}" for line in _artifact_facts(artifact))]
        lines += ["", "```sh", artifact["command"], "```", ""]
    return "\n".join(lines)


def to_html(data: Mapping[str, Any]) -> str:
    """Return the report as one self-contained HTML page with plots."""
    header, rows = _table(data)
    esc = html.escape
    parts = [
        f"<h1>{esc(data['model'])} version {data['version']}: precisions</h1>",
        f"<p><b>{esc(data['promotion']['promoted'].upper())} is served.</b> {esc(data['promotion']['reason'])}.</p>",
        "<table><tr>" + "".join(f"<th>{esc(cell)}</th>" for cell in header) + "</tr>",
        *("<tr>" + "".join(f"<td>{esc(cell)}</td>" for cell in row) + "</tr>" for row in rows),
        "</table><ul>",
        *(f"<li>{esc(line)}</li>" for line in _facts(data)),
        "</ul>",
        _latency_bars(data),
    ]
    for artifact in data["artifacts"]:
        name = artifact["precision"]
        parts.append(f"<h2>{esc(name.upper())}</h2><ul>")
        parts += [f"<li>{esc(line)}</li>" for line in _artifact_facts(artifact)]
        parts.append(f"</ul><pre>{esc(artifact['command'])}</pre>")
        if name in data["scores"]:
            parts.append(_scatter(data, name) + _histogram(data, name))
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em}"
        "table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:.2em .6em;text-align:left}"
        "pre{background:#f3f3f3;padding:.6em;overflow-x:auto}svg{margin:.5em 1em .5em 0}"
    )
    return (
        f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{esc(data['model'])} precisions</title>"
        f"<style>{style}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _table(data: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    sizes = list(data["artifacts"][0]["speed"]["latency_ms"])
    header = ["Precision", "Gate", "Largest / mean difference", "Frames flipped", "Videos flipped", "AUC", "MB"]
    header += [f"Batch {size}: ms (crops/s)" for size in sizes]
    header.append(f"Speed against FP32 at batch {', '.join(sizes)}")
    rows = []
    for item in data["artifacts"]:
        parity, speed = item["parity"], item["speed"]
        name = item["precision"].upper()
        if parity is None:
            rows.append([name, "failed", *["-"] * (len(header) - 2)])
            continue
        if item["precision"] == data["promotion"]["promoted"]:
            gate = "served"
        else:
            gate = "passed" if item["passed"] and not _is_slower(item) else "rejected"
        probability, videos = parity["probability"], item["videos"]
        auc = item["auc"]
        rows.append(
            [
                name,
                gate,
                f"{_number(probability['max_abs'], '.2e')} / {_number(probability['mean_abs'], '.2e')}",
                f"{parity['verdict_flips']} of {parity['num_crops']}",
                f"{videos['verdict_flips']} of {videos['count']}" if videos["count"] else "no videos",
                f"{auc['artifact']:.4f} ({auc['difference']:+.4f})" if auc is not None else "no labels",
                f"{parity['size_bytes'] / 1e6:.1f}",
                *(f"{speed['latency_ms'][size]:.1f} ({speed['crops_per_s'][size]:.0f})" for size in sizes),
                ", ".join(f"{speed['ratio_to_fp32'][size]:.2f}x" for size in sizes),
            ]
        )
    return header, rows


def _is_slower(item: Mapping[str, Any]) -> bool:
    return item["precision"] != "fp32" and any(ratio < 1 for ratio in item["speed"]["ratio_to_fp32"].values())


def _facts(data: Mapping[str, Any]) -> list[str]:
    calibration = data["calibration"]
    facts = [
        f"Reference: the checkpoint in float32 PyTorch, on {data['crops']['origin']}; "
        f"threshold {data['threshold']:g}.",
        "Speed: one CPU thread, as one instance of the embedded server has; the precisions in turn in one run, "
        "medians of the rounds.",
    ]
    if calibration is not None:
        facts.append(f"Calibration: {calibration['origin']}, SHA-256 {calibration['sha256']}.")
    return facts + [f"Note: {note}." for note in data["notes"]]


def _artifact_facts(artifact: Mapping[str, Any]) -> list[str]:
    details = artifact["details"]
    facts = [f"Rejected: {problem}." for problem in artifact["problems"]]
    facts.append(f"Limits: {artifact['tolerance_reason']}.")
    if "kept_fp32" in details:
        largest = details["largest_activation"]
        if largest is not None:
            facts.append(
                f"Largest activation: {_number(largest['max_abs'], '.4g')} in {largest['module']}; "
                f"FP16 ends at {details['float16_max']:.0f}."
            )
        kept = [f"{item['module']} ({_number(item['max_abs'], '.3g')})" for item in details["kept_fp32"]]
        facts.append(f"Kept in FP32, because they would overflow: {', '.join(kept) or 'none'}.")
    if "calibration_method" in details:
        errors = ", ".join(f"{name} {_number(value, '.3g')}" for name, value in details["method_errors"].items())
        facts.append(
            f"Ranges: {details['calibration_method']} (mean logit error of each method: {errors}), on "
            f"{details['num_calibration_crops']} crops, for {details['target']}: {details['target_reason']}."
        )
        worst = list(details["layer_errors"].items())[:SHOWN_LAYERS]
        facts.append(
            "Mean logit error of each layer alone, worst first: "
            + ", ".join(f"{name} {_number(value, '.3g')}" for name, value in worst)
            + "."
        )
        kept = details["layers_kept_fp32"]
        facts.append(f"Kept in FP32: {len(kept)} of {details['num_layers']} layers: {', '.join(kept) or 'none'}.")
    return facts


def _scatter(data: Mapping[str, Any], name: str) -> str:
    size, pad = 300, 36
    threshold = data["threshold"]
    labels = data["scores"]["labels"]
    parts = [_axes(size, pad, "checkpoint", f"{name.upper()}", f"Scores of {name.upper()} and the checkpoint")]
    x, y = pad + threshold * size, pad / 2 + (1 - threshold) * size
    dash = "stroke='#999' stroke-dasharray='4'"
    parts.append(f"<path d='M{x:.1f} {pad / 2}v{size}M{pad} {y:.1f}h{size}' {dash}/>")
    for index, (ref, got) in enumerate(zip(data["scores"]["checkpoint"], data["scores"][name], strict=True)):
        if ref is None or got is None:
            continue
        color = COLORS[name] if labels is None else ("#cc3311" if labels[index] else "#0077bb")
        parts.append(
            f"<circle cx='{pad + ref * size:.1f}' cy='{pad / 2 + (1 - got) * size:.1f}' r='2.5' fill='{color}' "
            "fill-opacity='.5'/>"
        )
    return "".join(parts) + "</svg>"


def _histogram(data: Mapping[str, Any], name: str) -> str:
    size, pad = 300, 36
    pairs = zip(data["scores"]["checkpoint"], data["scores"][name], strict=True)
    differences = [got - ref for ref, got in pairs if got is not None and ref is not None]
    reach = max((abs(value) for value in differences), default=0) or 1e-9
    counts, _ = np.histogram(differences, bins=HISTOGRAM_BINS, range=(-reach, reach))
    width = size / HISTOGRAM_BINS
    label = f"difference, -{reach:.1e} to {reach:.1e}"
    parts = [_axes(size, pad, label, "crops", f"Differences of {name.upper()}")]
    for index, count in enumerate(counts.tolist()):
        height = size * count / max(1, int(counts.max()))
        parts.append(
            f"<rect x='{pad + index * width:.1f}' y='{pad / 2 + size - height:.1f}' width='{width:.1f}' "
            f"height='{height:.1f}' fill='{COLORS[name]}'/>"
        )
    return "".join(parts) + "</svg>"


def _latency_bars(data: Mapping[str, Any]) -> str:
    items = [item for item in data["artifacts"] if item["speed"] is not None]
    sizes = list(items[0]["speed"]["latency_ms"])
    rows = [(size, item) for size in sizes for item in items]
    largest = max(item["speed"]["latency_ms"][size] / int(size) for size, item in rows)
    parts = [
        f"<svg width='680' height='{30 + 22 * len(rows)}' role='img' font-size='12'>"
        "<title>Milliseconds per crop</title><text x='0' y='14'>Milliseconds per crop</text>"
    ]
    for index, (size, item) in enumerate(rows):
        value = item["speed"]["latency_ms"][size] / int(size)
        y, width = 24 + 22 * index, 420 * value / largest
        parts.append(
            f"<text x='0' y='{y + 13}'>{item['precision'].upper()}, batch {size}</text>"
            f"<rect x='130' y='{y}' width='{width:.1f}' height='16' fill='{COLORS[item['precision']]}'/>"
            f"<text x='{136 + width:.1f}' y='{y + 13}'>{value:.2f} ms, "
            f"{item['speed']['crops_per_s'][size]:.0f}/s</text>"
        )
    return "".join(parts) + "</svg>"


def _axes(size: int, pad: int, x_label: str, y_label: str, title: str) -> str:
    total = size + pad + pad // 2
    return (
        f"<svg width='{total}' height='{total}' role='img' font-size='12'><title>{html.escape(title)}</title>"
        f"<rect x='{pad}' y='{pad / 2}' width='{size}' height='{size}' fill='none' stroke='#bbb'/>"
        f"<text x='{pad + size / 2}' y='{total - 4}' text-anchor='middle'>{html.escape(x_label)}</text>"
        f"<text transform='translate(14 {pad / 2 + size / 2}) rotate(-90)' text-anchor='middle'>"
        f"{html.escape(y_label)}</text>"
    )


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 6) for value in values]


def _finite(value: Any) -> Any:
    """Return plain data with None for NaN and Inf."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
