"""The report of an export of one precision or of several: JSON for programs, Markdown and an HTML page for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepfake_export.proof.comparison import Proof
from deepfake_export.proof.crops import CropSet
from deepfake_export.proof.gate import shown
from deepfake_export.proof.report_page import to_html
from deepfake_export.proof.report_words import (
    MEMBERS_INTRO,
    artifact_facts,
    facts,
    figure_rows,
    member_rows,
    overview,
    reason,
    served,
)
from deepfake_export.proof.running import Float32Array
from deepfake_preprocess.contract.spec import ModelSpec

REPORT_FORMAT = 2
REPORT_NAME = "report"
"""Stem of ``report.json``, ``report.md`` and ``report.html`` in the version's directory."""


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
    scores = {item.name: item.probability for item in proof.artifacts if item.probability is not None}
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
    """Write ``report.json``, ``report.md`` and ``report.html`` into `directory`."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for suffix, content in ((".json", text), (".md", to_markdown(data)), (".html", to_html(data))):
        (directory / f"{REPORT_NAME}{suffix}").write_text(content, encoding="utf-8")


def to_markdown(data: Mapping[str, Any]) -> str:
    """Return the report as a Markdown page."""
    lines = [
        f"# {data['model']} version {data['version']}",
        "",
        f"**{served(data)} is served.** {reason(data)}",
        "",
        *_table(overview(data)),
        "",
        *(f"- {line}" for line in facts(data)),
        "",
    ]
    for artifact in data["artifacts"]:
        lines += [f"## {shown(artifact['name'])}", ""]
        if artifact["parity"] is not None:
            lines += [*_table(figure_rows(artifact)), ""]
        lines += [*(f"- {line}" for line in artifact_facts(artifact)), ""]
    if data["members"]:
        lines += ["## Members", "", MEMBERS_INTRO, "", *_table(member_rows(data["members"])), ""]
    if data["command"]:
        lines += ["## Repeat it", "", "```sh", data["command"], "```", ""]
    return "\n".join(lines)


def _table(rows: list[list[str]]) -> list[str]:
    header, *body = (f"| {' | '.join(row)} |" for row in rows)
    return [header, "|" + "---|" * len(rows[0]), *body]
