"""The proof of an ensemble's members, each for itself, with the resizing and normalization that it has in the graph.

The whole may hide a wrong member: three good ones outvote it. The graphs made here are measured and thrown away.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from deepfake_export.ensemble.network import EnsembleNetwork
from deepfake_export.graph.onnx_export import export_onnx
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.proof.parity import measure_parity, reference_outputs, require_parity
from deepfake_export.proof.running import LocalEngine
from deepfake_export.request.request import ExportJob


def prove_members(job: ExportJob) -> dict[str, dict[str, Any]]:
    """Prove every member of an ensemble, and return the parity reports by name as plain JSON data.

    Raises:
        ParityError: a member's graph does not reproduce its checkpoint.
        ExportError: a member cannot be exported.
    """
    network = job.detector.network
    assert isinstance(network, EnsembleNetwork)
    reports = {}
    with tempfile.TemporaryDirectory() as scratch:
        for branch, spec in zip(network.branches, network.member_specs, strict=True):
            job.on_step(f"Proving the member {spec.name} for itself")
            detector = ServedDetector(branch, spec).eval()
            model_path = Path(scratch) / "member.onnx"
            export_onnx(detector, model_path, spec, verbose=job.request.verbose)
            report, _ = measure_parity(
                reference_outputs(detector, job.crops.crops),
                LocalEngine(model_path).run,
                job.crops,
                name=f"the member {spec.name!r}, ONNX FP32 in ONNX Runtime on the CPU",
                precision="fp32",
                threshold=spec.threshold,
                max_batch_size=job.request.max_batch_size,
                size_bytes=model_path.stat().st_size,
            )
            require_parity(report)
            reports[spec.name] = report.to_dict()
            model_path.unlink()
    return reports
