"""The words, figures and tables of an export's report, the same on each page that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepfake_export.proof.gate import shown
from deepfake_export.proof.tolerances import TOLERANCES
from deepfake_preprocess.contract.spec import LOGIT_NAME, PROBABILITY_NAME

MEMBERS_INTRO = (
    "Each for itself against its checkpoint in float32 PyTorch, with its own resizing and normalization, on the same "
    "crops."
)
SHOWN_LAYERS = 12


def reason(data: Mapping[str, Any]) -> str:
    """Return why what is served is served, as a sentence."""
    text = data["promotion"]["reason"]
    return f"{text[:1].upper()}{text[1:]}."


def served(data: Mapping[str, Any]) -> str:
    """Return what is served: the precision, and the engine where it is not ONNX Runtime."""
    promotion = data["promotion"]
    found = [
        item["name"]
        for item in data["artifacts"]
        if (item["precision"], item["engine"]) == (promotion["promoted"], promotion["engine"])
    ]
    return shown(found[0])


def overview(data: Mapping[str, Any]) -> list[list[str]]:
    """Return the header and a row for each precision and engine."""
    speeds = [item["speed"] for item in data["artifacts"] if item["speed"] is not None]
    sizes = list(speeds[0]["latency_ms"]) if speeds else []
    header = ["Precision", "Gate", "Largest / mean difference", "Crops flipped", "Videos flipped", "AUC", "MB"]
    header += [f"Batch {size}: ms (crops/s)" for size in sizes]
    if sizes:
        header.append(f"Speed against FP32 at batch {', '.join(sizes)}")
    rows = [header]
    for item in data["artifacts"]:
        name, parity, auc, speed = item["name"], item["parity"], item["auc"], item["speed"]
        if parity is None:
            rows.append([shown(name), "failed", *["-"] * (len(header) - 2)])
            continue
        promotion = data["promotion"]
        is_served = (item["precision"], item["engine"]) == (promotion["promoted"], promotion["engine"])
        slower = speed is not None and min(speed["ratio_to_fp32"].values()) < 1
        gate = "served" if is_served else "passed" if item["passed"] and not slower else "rejected"
        probability, videos = parity["probability"], item["videos"]
        row = [
            shown(name),
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


def facts(data: Mapping[str, Any]) -> list[str]:
    """Return what holds for all precisions, in sentences."""
    calibration = data["calibration"]
    lines = [
        f"Reference: the checkpoint in float32 PyTorch, on {data['crops']['count']} crops "
        f"({data['crops']['origin']}); threshold {data['threshold']:g}."
    ]
    if any(item["speed"] is not None for item in data["artifacts"]):
        lines.append(
            "Speed: CPU time of one thread, as an instance of the embedded server has; the precisions in turn in one "
            "run, medians of the rounds."
        )
    if calibration is not None:
        lines.append(f"Calibration: {calibration['origin']}, SHA-256 {calibration['sha256']}.")
    return lines + [f"Note: {note}." for note in data["notes"]]


def figure_rows(artifact: Mapping[str, Any]) -> list[list[str]]:
    """Return the header and the figures of an artifact with their limits."""
    parity, tolerance = artifact["parity"], TOLERANCES[artifact["precision"]]
    probability, logit = parity["probability"], parity["logit"]
    figures = [
        (f"`{PROBABILITY_NAME}`, largest difference", probability["max_abs"], probability["limit"]),
        (f"`{PROBABILITY_NAME}`, mean difference", probability["mean_abs"], tolerance.probability_mean_abs),
        (f"`{LOGIT_NAME}`, largest difference", logit["max_abs"], logit["limit"]),
        (f"`{LOGIT_NAME}`, mean difference", logit["mean_abs"], parity["logit_mean_limit"]),
        ("same crop in different batches", parity["batch_dependence"], parity["batch_dependence_limit"]),
    ]
    allowed = tolerance.allowed_flips(parity["num_crops"])
    return [
        ["What", "Figure", "Limit"],
        *(
            [name, _number(figure, ".2e"), "" if limit is None else _number(limit, ".2e")]
            for name, figure, limit in figures
        ),
        [
            f"verdicts at {parity['threshold']:g} that change",
            str(parity["verdict_flips"]),
            "" if allowed is None else str(allowed),
        ],
    ]


def artifact_facts(artifact: Mapping[str, Any]) -> list[str]:
    """Return how an artifact was made and judged, in sentences."""
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
    if "first_layers_in_fp32" in details:
        kept = f"{details['first_layers_in_fp32']} of {details['num_layers']} layers"
        facts.append(f"The first {kept} are computed in FP32, because with all in BF16 it did not pass.")
    if "products_with_split_channels" in details:
        facts.append(
            f"The weights of {details['num_products']} matrix products are in 8 bits, activations are "
            f"{details['activations']}; the largest channels of {details['products_with_split_channels']} products "
            "are split."
        )
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
    facts = [f"Fine-tuned for INT8: {details['finetuning']}."] if "finetuning" in details else []
    facts += [
        f"Ranges: {details['method']} (mean logit error of each method: {errors}), on "
        f"{details['num_calibration_crops']} crops, for {details['target']}: {details['target_reason']}.",
        f"Kept in FP32: {len(kept)} of {details['num_layers']} layers: {', '.join(kept) or 'none'}.",
    ]
    if worst:
        errors = ", ".join(f"{name} {_number(value, '.3g')}" for name, value in worst)
        facts.append(f"Mean logit error of each layer alone, worst first: {errors}.")
    return facts


def member_rows(members: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the header and a row for each member of an ensemble."""
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
    return rows


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)
