"""The proof of an ensemble's members, each for itself, with the resizing and normalisation that it has in the graph.

The whole may hide a wrong member: three good ones outvote it. The graphs made here are measured and thrown away.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from deepfake_export.ensemble.network import EnsembleNetwork
from deepfake_export.ensemble.spec import EnsembleSpec
from deepfake_export.graph.onnx_export import export_onnx
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.proof.crops import UInt8Array
from deepfake_export.proof.parity import prove_onnx

DESCRIPTION_FILE = "ensemble.json"
"""In a version's directory: `EnsembleSpec.identity`, whose SHA-256 is the model's `checkpoint_sha256`."""


def prove_members(
    ensemble: EnsembleSpec,
    network: nn.Module,
    crops: UInt8Array,
    *,
    max_batch_size: int,
    crops_source: str,
    verbose: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """Prove every member of an ensemble.

    Args:
        ensemble: members and how they are combined.
        network: what `load_ensemble` returned for it.
        crops: uint8 ``[N, H, W, 3]`` RGB at the ensemble's input size.
        max_batch_size: the largest batch that will be served.
        crops_source: where the crops came from, for the reports.
        verbose: let the exporter's own messages through.
        on_step: called with a short sentence before each step.

    Returns:
        ``members``: a parity report per member's name; ``meta_model``: its numbers, or None. Plain JSON data.

    Raises:
        ParityError: a member's graph does not reproduce its checkpoint.
        ExportError: a member cannot be exported.
    """
    assert isinstance(network, EnsembleNetwork)
    reports = {}
    with tempfile.TemporaryDirectory() as scratch:
        for branch, spec in zip(network.branches, network.member_specs, strict=True):
            on_step(f"Proving the member {spec.name} for itself")
            detector = ServedDetector(branch, spec).eval()
            model_path = Path(scratch) / "member.onnx"
            export_onnx(detector, model_path, spec, verbose=verbose)
            report = prove_onnx(
                detector,
                model_path,
                crops,
                name=f"the member {spec.name!r}",
                threshold=spec.threshold,
                max_batch_size=max_batch_size,
                crops_source=crops_source,
            )
            reports[spec.name] = report.to_dict()
            model_path.unlink()
    meta_model = ensemble.meta_model
    return {"members": reports, "meta_model": meta_model.to_dict() if meta_model else None}


def members_markdown(members: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a Markdown section with the figures of `prove_members`, a line for each member."""
    lines = [
        "",
        "## Members",
        "",
        "Each for itself against its checkpoint in float32 PyTorch, with its own resizing and normalisation, on the "
        "same crops.",
        "",
        "| Member | Largest difference | Mean difference | Verdicts flipped | Logits of the reference |",
        "|---|---|---|---|---|",
    ]
    for name, figures in members.items():
        probability, (low, high) = figures["probability"], figures["reference_logit_range"]
        lines.append(
            f"| {name} | {probability['max_abs']:.2e} (limit {probability['limit']:.2g}) | "
            f"{probability['mean_abs']:.2e} | {figures['verdict_flips']} of {figures['num_crops']} | "
            f"{low:.3g} to {high:.3g} |"
        )
    return "\n".join([*lines, ""])
