"""The report of an export: JSON for programs and Markdown for people, of one precision or of several."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepfake_export.proof.comparison import Proof
from deepfake_export.proof.crops import CropSet
from deepfake_export.proof.parity import Float32Array
from deepfake_export.proof.tolerances import TOLERANCES
from deepfake_preprocess.contract.spec import LOGIT_NAME, PROBABILITY_NAME, ModelSpec

REPORT_FORMAT = 2
REPORT_NAME = "report"
"""Stem of ``report.json`` and ``report.md`` in the version's directory."""
SHOWN_LAYERS = 12


def report_data(
    spec: ModelSpec,
    proof: Proof,
    crops: CropSet,
    calibration: CropSet | None,
    *,
    members: Mapping[str, Any],
    command: str,
) -> dict[str, Any]:
    """Return the report as plain JSON data.

    `members` are the parity reports of an ensemble's, by name; `command` is the command line that repeats the export.
    Both are empty where there are none.
    """
    scores = {item.precision: item.probability for item in proof.artifacts if item.probability is not None}
    return {
        "format": REPORT_FORMAT,
        "model": spec.name,
        "version": spec.version,
        "architecture": spec.architecture,
        "checkpoint_sha256": spec.checkpoint_sha256,
        "threshold": spec.threshold,
        "promotion": proof.decision.to_dict(),
        "crops": crops.to_dict(),
        "calibration": None if calibration is None else calibration.to_dict(),
        "artifacts": [item.to_dict() for item in proof.artifacts],
        "members": members,
        "scores": {
            "sources": list(crops.sources),
            "labels": None if crops.labels is None else crops.labels.tolist(),
            **{name: _rounded(values) for name, values in {"checkpoint": proof.reference, **scores}.items()},
        },
        "notes": list(dict.fromkeys([*crops.notes, *(() if calibration is None else calibration.notes)])),
        "command": command,
    }


def _rounded(values: Float32Array) -> list[float | None]:
    """Return scores for JSON, which cannot express NaN."""
    return [value if math.isfinite(value) else None for value in values.round(6).tolist()]


def write_report(directory: Path, data: Mapping[str, Any]) -> None:
    """Write ``report.json`` and ``report.md`` into `directory`."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    (directory / f"{REPORT_NAME}.json").write_text(text + "\n", encoding="utf-8")
    (directory / f"{REPORT_NAME}.md").write_text(to_markdown(data), encoding="utf-8")


def to_markdown(data: Mapping[str, Any]) -> str:
    """Return the report as a Markdown page."""
    promotion = data["promotion"]
    lines = [
        f"# {data['model']} version {data['version']}",
        "",
        f"**{promotion['promoted'].upper()} is served.** {promotion['reason']}.",
        "",
        *_table(_overview(data)),
        "",
        *(f"- {line}" for line in _facts(data)),
        "",
    ]
    for artifact in data["artifacts"]:
        lines += [f"## {artifact['precision'].upper()}", ""]
        if artifact["parity"] is not None:
            lines += [*_table(_figures(artifact)), ""]
        lines += [*(f"- {line}" for line in _artifact_facts(artifact)), ""]
    if data["members"]:
        lines += [*_members(data["members"]), ""]
    if data["command"]:
        lines += ["## Repeat it", "", "```sh", data["command"], "```", ""]
    return "\n".join(lines)


def _table(rows: list[list[str]]) -> list[str]:
    header, *body = (f"| {' | '.join(row)} |" for row in rows)
    return [header, "|" + "---|" * len(rows[0]), *body]


def _overview(data: Mapping[str, Any]) -> list[list[str]]:
    """Return the header and a row for each precision."""
    speeds = [item["speed"] for item in data["artifacts"] if item["speed"] is not None]
    sizes = list(speeds[0]["latency_ms"]) if speeds else []
    header = ["Precision", "Gate", "Largest / mean difference", "Crops flipped", "Videos flipped", "AUC", "MB"]
    header += [f"Batch {size}: ms (crops/s)" for size in sizes]
    if sizes:
        header.append(f"Speed against FP32 at batch {', '.join(sizes)}")
    rows = [header]
    for item in data["artifacts"]:
        name, parity, auc, speed = item["precision"], item["parity"], item["auc"], item["speed"]
        if parity is None:
            rows.append([name.upper(), "failed", *["-"] * (len(header) - 2)])
            continue
        served = name == data["promotion"]["promoted"]
        slower = speed is not None and min(speed["ratio_to_fp32"].values()) < 1
        gate = "served" if served else "passed" if item["passed"] and not slower else "rejected"
        probability, videos = parity["probability"], item["videos"]
        row = [
            name.upper(),
            gate,
            f"{_number(probability['max_abs'], '.2e')} / {_number(probability['mean_abs'], '.2e')}",
            f"{parity['verdict_flips']} of {parity['num_crops']}",
            f"{videos['verdict_flips']} of {videos['count']}" if videos["count"] else "no videos",
            f"{auc['artifact']:.4f} ({auc['difference']:+.4f})" if auc is not None else "no labels",
            f"{parity['size_bytes'] / 1e6:.1f}",
        ]
        if speed is not None:
            row += [f"{speed['latency_ms'][size]:.1f} ({speed['crops_per_s'][size]:.0f})" for size in sizes]
            row.append(", ".join(f"{speed['ratio_to_fp32'][size]:.2f}x" for size in sizes))
        rows.append(row)
    return rows


def _facts(data: Mapping[str, Any]) -> list[str]:
    calibration = data["calibration"]
    facts = [
        f"Reference: the checkpoint in float32 PyTorch, on {data['crops']['count']} crops "
        f"({data['crops']['origin']}); threshold {data['threshold']:g}."
    ]
    if any(item["speed"] is not None for item in data["artifacts"]):
        facts.append(
            "Speed: one CPU thread, as one instance of the embedded server has; the precisions in turn in one run, "
            "medians of the rounds."
        )
    if calibration is not None:
        facts.append(f"Calibration: {calibration['origin']}, SHA-256 {calibration['sha256']}.")
    return facts + [f"Note: {note}." for note in data["notes"]]


def _figures(artifact: Mapping[str, Any]) -> list[list[str]]:
    """Return the header and the figures of an artifact with their limits."""
    parity, tolerance = artifact["parity"], TOLERANCES[artifact["precision"]]
    probability, logit = parity["probability"], parity["logit"]
    figures = [
        (f"`{PROBABILITY_NAME}`, largest difference", probability["max_abs"], probability["limit"]),
        (f"`{PROBABILITY_NAME}`, mean difference", probability["mean_abs"], tolerance.probability_mean_abs),
        (f"`{LOGIT_NAME}`, largest difference", logit["max_abs"], logit["limit"]),
        (f"`{LOGIT_NAME}`, mean difference", logit["mean_abs"], None),
        ("same crop in different batches", parity["batch_dependence"], parity["batch_dependence_limit"]),
    ]
    near_counts = "" if tolerance.flip_share is None else " (any)"
    return [
        ["What", "Figure", "Limit"],
        *(
            [name, _number(figure, ".2e"), "" if limit is None else _number(limit, ".2e")]
            for name, figure, limit in figures
        ),
        [
            f"verdict flips at {parity['threshold']:g} (of these, within the limit of the threshold)",
            f"{parity['verdict_flips']} ({parity['verdict_flips_near_threshold']})",
            f"{tolerance.allowed_flips(parity['num_crops'])}{near_counts}",
        ],
    ]


def _artifact_facts(artifact: Mapping[str, Any]) -> list[str]:
    parity, details = artifact["parity"], artifact["details"]
    facts = [f"Rejected: {problem}." for problem in artifact["problems"]]
    if parity is not None:
        low, high = parity["reference_logit_range"]
        latency = ", ".join(f"{value:.1f} ms at batch {size}" for size, value in parity["latency_ms"].items())
        facts += [
            f"Each crop at batch {', '.join(map(str, parity['batch_sizes']))}.",
            f"Reference logits: {_number(low, '.3f')} to {_number(high, '.3f')}.",
            f"On the exporting machine: {latency}.",
            *(f"Note: {note}." for note in parity["notes"]),
        ]
    facts.append(f"Why these limits: {TOLERANCES[artifact['precision']].reason}.")
    return facts + _fp16_facts(details) + _int8_facts(details)


def _fp16_facts(details: Mapping[str, Any]) -> list[str]:
    if "kept_fp32" not in details:
        return []
    largest = details["largest"]
    kept = [f"{item['module']} ({_number(item['max_abs'], '.3g')})" for item in details["kept_fp32"]]
    facts = [f"Kept in FP32, because they would overflow: {', '.join(kept) or 'none'}."]
    if largest is not None:
        facts.append(
            f"Largest activation: {_number(largest['max_abs'], '.4g')} in {largest['module']}; "
            f"FP16 ends at {details['float16_max']:.0f}."
        )
    return facts


def _int8_facts(details: Mapping[str, Any]) -> list[str]:
    if "method_errors" not in details:
        return []
    errors = ", ".join(f"{name} {_number(value, '.3g')}" for name, value in details["method_errors"].items())
    worst = list(details["layer_errors"].items())[:SHOWN_LAYERS]
    kept = details["layers_kept_fp32"]
    return [
        f"Ranges: {details['method']} (mean logit error of each method: {errors}), on "
        f"{details['num_calibration_crops']} crops, for {details['target']}: {details['target_reason']}.",
        "Mean logit error of each layer alone, worst first: "
        + ", ".join(f"{name} {_number(value, '.3g')}" for name, value in worst)
        + ".",
        f"Kept in FP32: {len(kept)} of {details['num_layers']} layers: {', '.join(kept) or 'none'}.",
    ]


def _members(members: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [["Member", "Largest difference", "Mean difference", "Verdicts flipped", "Logits of the reference"]]
    for name, figures in members.items():
        probability, (low, high) = figures["probability"], figures["reference_logit_range"]
        rows.append(
            [
                name,
                f"{probability['max_abs']:.2e} (limit {probability['limit']:.2g})",
                f"{probability['mean_abs']:.2e}",
                f"{figures['verdict_flips']} of {figures['num_crops']}",
                f"{low:.3g} to {high:.3g}",
            ]
        )
    intro = (
        "Each for itself against its checkpoint in float32 PyTorch, with its own resizing and normalization, on the "
        "same crops."
    )
    return ["## Members", "", intro, "", *_table(rows)]


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)
