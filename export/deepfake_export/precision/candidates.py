"""Makes the precisions asked for, measures all on the same crops, and decides which one is served.

What cannot be made or fails is in the report with its reason, and never in the repository.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.precision.fp16 import export_fp16
from deepfake_export.precision.int8 import quantize_int8
from deepfake_export.proof.comparison import Comparison, Proof, measure_speed, video_flips
from deepfake_export.proof.crops import UInt8Array
from deepfake_export.proof.faces import FaceSet
from deepfake_export.proof.gate import Candidate, decide
from deepfake_export.proof.parity import (
    Float32Array,
    Runner,
    measure_parity,
    onnxruntime_runner,
    reference_outputs,
    require_parity,
)
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.contract.triton_config import EMBEDDED_THREADS
from deepfake_preprocess.errors import ExportError
from deepfake_preprocess.support.ranking import roc_auc

SPEED_BATCH = 8


def prove_precisions(
    detector: ServedDetector,
    spec: ModelSpec,
    fp32_path: Path,
    work_dir: Path,
    *,
    precisions: tuple[str, ...],
    promote: str,
    proof: FaceSet,
    calibration: FaceSet | None,
    int8_target: str,
    max_batch_size: int,
    verbose: bool,
    on_step: Callable[[str], None],
) -> Proof:
    """Make and measure the precisions of a network whose FP32 file exists.

    Args:
        detector: the checkpoint, in eval mode on the CPU.
        spec: its contract, with the version.
        fp32_path: its FP32 file.
        work_dir: where the other files go, as ``model.fp16.onnx`` and ``model.int8.onnx``.
        precisions: what to make, FP32 among them.
        promote: ``best`` or a precision.
        proof: crops of the comparison.
        calibration: crops of the INT8 ranges.
        int8_target: key of `deepfake_export.precision.int8.TARGETS`.
        max_batch_size: the largest batch that will be served.
        verbose: let PyTorch's exporter print its messages.
        on_step: called with a short sentence before each step.

    Raises:
        ParityError: the FP32 file does not reproduce the checkpoint.
    """
    on_step(f"Running the checkpoint in float32 PyTorch on {len(proof.crops)} crops")
    reference = reference_outputs(detector, proof.crops)
    paths, runners, comparisons = {"fp32": fp32_path}, {}, {}
    for precision in precisions:
        details: dict[str, Any] = {}
        try:
            if precision == "fp16":
                on_step("Exporting to ONNX in FP16")
                paths[precision] = work_dir / "model.fp16.onnx"
                details = export_fp16(detector, paths[precision], spec, proof.crops, verbose=verbose).to_dict()
            elif precision == "int8":
                assert calibration is not None  # `api` refuses INT8 without it
                paths[precision] = work_dir / "model.int8.onnx"
                details = quantize_int8(
                    fp32_path, paths[precision], spec, calibration.crops, target=int8_target, on_step=on_step
                ).to_dict()
            runner = onnxruntime_runner(paths[precision])
        except ExportError as exc:
            if precision == "fp32":
                raise
            comparisons[precision] = _failed(precision, str(exc))
            paths.pop(precision, None)
            continue
        on_step(f"Comparing {precision.upper()} with PyTorch")
        comparisons[precision] = _compare(
            detector, runner, reference, proof, spec, precision, max_batch_size, paths[precision], details
        )
        runners[precision] = runner
    fp32 = comparisons["fp32"].parity
    assert fp32 is not None
    require_parity(fp32)

    # One thread, as an instance of the embedded server has; with all cores, other programs disturb each round.
    threaded = {name: onnxruntime_runner(paths[name], num_threads=EMBEDDED_THREADS) for name in runners}
    sizes = sorted({1, min(SPEED_BATCH, max_batch_size), max_batch_size})
    on_step(f"Measuring speed side by side at batch {', '.join(map(str, sizes))}")
    speeds = measure_speed(threaded, proof.crops, sizes)
    measured = tuple(dataclasses.replace(comparisons[name], speed=speeds.get(name)) for name in precisions)
    decision = decide(
        [
            Candidate(
                item.precision,
                item.problems,
                {} if item.speed is None or item.precision == "fp32" else item.speed.ratio,
            )
            for item in measured
        ],
        promote,
    )
    accurate = {item.precision: paths[item.precision] for item in measured if not item.problems}
    return Proof(measured, decision, accurate, reference[0][:, 0])


def _compare(
    detector: ServedDetector,
    runner: Runner,
    reference: tuple[Float32Array, Float32Array],
    proof: FaceSet,
    spec: ModelSpec,
    precision: str,
    max_batch_size: int,
    path: Path,
    details: dict[str, Any],
) -> Comparison:
    recorded: dict[int, Float32Array] = {}

    def recording(faces: UInt8Array) -> tuple[Float32Array, Float32Array]:
        probability, logit = runner(faces)
        # The first pass is at batch 1, so that the crops arrive one by one.
        if len(recorded) < len(proof.crops):
            recorded[len(recorded)] = probability
        return probability, logit

    parity = measure_parity(
        detector,
        recording,
        proof.crops,
        name=f"{spec.name} version {spec.version}, ONNX {precision.upper()} in ONNX Runtime on the CPU",
        precision=precision,
        threshold=spec.threshold,
        max_batch_size=max_batch_size,
        crops_source=proof.origin,
        size_bytes=path.stat().st_size,
        reference=reference,
    )
    probability = np.concatenate(list(recorded.values()))[:, 0]
    known = reference[0][:, 0]
    usable = proof.labels is not None and bool(np.isfinite(probability).all())
    return Comparison(
        precision,
        parity,
        probability,
        len(proof.videos & set(proof.sources)),
        video_flips(known, probability, proof, spec.threshold),
        (roc_auc(known, proof.labels), roc_auc(probability, proof.labels))
        if usable and proof.labels is not None
        else None,
        None,
        "",
        details,
    )


def _failed(precision: str, why: str) -> Comparison:
    return Comparison(precision, None, np.empty(0, dtype=np.float32), 0, 0, None, None, why, {})
