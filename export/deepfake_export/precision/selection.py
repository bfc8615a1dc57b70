"""Makes the precisions asked for, measures all on the same crops, and decides which one is served.

What cannot be made or fails is in the report with its reason, and never in the repository.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepfake_export.precision.fp16 import export_fp16
from deepfake_export.precision.int8 import quantize_int8
from deepfake_export.proof.comparison import ArtifactProof, Proof, compare
from deepfake_export.proof.gate import decide
from deepfake_export.proof.parity import measure_parity, onnxruntime_runner, reference_outputs, require_parity
from deepfake_export.proof.speed import measure_speed
from deepfake_export.request import ExportJob
from deepfake_preprocess.contract.triton_config import EMBEDDED_THREADS
from deepfake_preprocess.errors import ExportError

SPEED_BATCH = 8


def prove_precisions(job: ExportJob, fp32_path: Path, work_dir: Path) -> Proof:
    """Make and measure the precisions of a network whose FP32 file exists; the others go into `work_dir`.

    Raises:
        ParityError: the FP32 file does not reproduce the checkpoint.
    """
    job.on_step(f"Running the checkpoint in float32 PyTorch on {len(job.crops)} crops")
    reference = reference_outputs(job.detector, job.crops.crops)
    version = f"{job.spec.name} version {job.spec.version}"
    artifacts = []
    for precision in job.request.precisions:
        path = fp32_path if precision == "fp32" else work_dir / f"model.{precision}.onnx"
        try:
            details = _make(job, precision, fp32_path, path)
            job.on_step(f"Comparing {precision.upper()} with PyTorch on {len(job.crops)} crops")
            parity, probability = measure_parity(
                reference,
                onnxruntime_runner(path),
                job.crops,
                name=f"{version}, ONNX {precision.upper()} in ONNX Runtime on the CPU",
                precision=precision,
                threshold=job.spec.threshold,
                max_batch_size=job.request.max_batch_size,
                size_bytes=path.stat().st_size,
            )
        except ExportError as exc:
            if precision == "fp32":
                raise
            artifacts.append(ArtifactProof(precision, failure=str(exc)))
            continue
        if precision == "fp32":
            require_parity(parity)
        artifacts.append(compare(parity, probability, reference[0][:, 0], job.crops, path=path, details=details))
    measured = _with_speed(job, artifacts)
    decision = decide([item.entrant() for item in measured], job.request.promote)
    return Proof(tuple(measured), decision, reference[0][:, 0])


def _make(job: ExportJob, precision: str, fp32_path: Path, path: Path) -> dict[str, Any]:
    """Write the file of a precision to `path`, and return how it was made as plain data."""
    if precision == "fp16":
        job.on_step("Exporting to ONNX in FP16")
        return export_fp16(job.detector, path, job.spec, job.crops.crops, verbose=job.request.verbose).to_dict()
    if precision == "int8":
        assert job.calibration is not None  # the request refuses INT8 without it
        crops, target = job.calibration.crops, job.request.int8_target
        return quantize_int8(fp32_path, path, job.spec, crops, target=target, on_step=job.on_step).to_dict()
    return {}


def _with_speed(job: ExportJob, artifacts: Sequence[ArtifactProof]) -> list[ArtifactProof]:
    """Return the artifacts with their speed side by side; FP32 alone has nothing to be measured against."""
    # One thread, as an instance of the embedded server has; with all cores, other programs disturb each round.
    runners = {
        item.precision: onnxruntime_runner(item.path, num_threads=EMBEDDED_THREADS)
        for item in artifacts
        if item.path is not None
    }
    if len(runners) < 2:
        return list(artifacts)
    sizes = sorted({1, min(SPEED_BATCH, job.request.max_batch_size), job.request.max_batch_size})
    job.on_step(f"Measuring speed side by side at batch {', '.join(map(str, sizes))}")
    speeds = measure_speed(runners, job.crops.crops, sizes)
    return [dataclasses.replace(item, speed=speeds.get(item.precision)) for item in artifacts]
