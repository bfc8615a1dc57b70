"""Makes the precisions asked for, measures all on the same crops, and decides which one is served.

What cannot be made or fails is in the report with its reason, and never in the repository.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from deepfake_export.graph.onnx_export import export_onnx
from deepfake_export.precision.bf16 import FP32_SHARES, write_partly_fp32
from deepfake_export.precision.finetune import finetune
from deepfake_export.precision.fp16 import export_fp16
from deepfake_export.precision.int8 import TARGETS, quantize_int8
from deepfake_export.precision.products import is_of_products, write_products_int8
from deepfake_export.proof.comparison import ArtifactProof, Proof, compare
from deepfake_export.proof.gate import decide
from deepfake_export.proof.parity import measure_parity, reference_outputs, require_parity
from deepfake_export.proof.running import Engine, Outputs, Runner, UInt8Array, engine_for
from deepfake_export.proof.speed import measure_speed
from deepfake_export.request.request import ExportJob
from deepfake_preprocess.contract.forms import ENGINE_NAMES
from deepfake_preprocess.contract.triton_config import EMBEDDED_MAX_BATCH_SIZE
from deepfake_preprocess.errors import ExportError
from deepfake_preprocess.support.engines import ONNX_RUNTIME, OPENVINO


def prove_precisions(job: ExportJob, fp32_path: Path, work_dir: Path) -> Proof:
    """Make and measure the precisions of a network whose FP32 file exists; the others go into `work_dir`.

    Raises:
        ParityError: the FP32 file does not reproduce the checkpoint.
    """
    job.on_step(f"Running the checkpoint in float32 PyTorch on {len(job.crops)} crops")
    reference = reference_outputs(job.detector, job.crops.crops)
    wanted = job.request.precisions
    artifacts: list[ArtifactProof] = []
    with ExitStack() as stack:
        running: dict[str, Engine] = {}
        for precision in wanted.names:
            # BF16 is FP32's file, computed otherwise.
            own_file = precision not in ("fp32", "bf16")
            path = work_dir / f"model.{precision}.onnx" if own_file else fp32_path
            engines = wanted.engines_of(precision)
            of_products = precision == "int8" and wanted.int8_target == "cpu" and is_of_products(fp32_path)
            if precision == "int8" and wanted.int8_of_products_only and not of_products:
                continue
            try:
                details = _make(job, precision, fp32_path, path, of_products=of_products)
            except ExportError as exc:
                artifacts += [ArtifactProof(precision, failure=str(exc), engine=name) for name in engines]
                continue
            for name in engines:
                proved, engine = _prove(job, reference, precision, name, path, details)
                if precision == "bf16" and proved.problems and proved.parity is not None:
                    proved, engine = _partly_fp32(job, reference, fp32_path, work_dir, (proved, engine))
                stack.enter_context(closing(engine))
                artifacts.append(proved)
                if proved.path is not None:
                    running[proved.name] = engine
        measured = _with_speed(job, artifacts, running)
    decision = decide([item.entrant() for item in measured], wanted.promote)
    if wanted.left_out:
        decision = dataclasses.replace(decision, reason=wanted.left_out)
    return Proof(tuple(measured), decision, reference[0][:, 0])


def _prove(
    job: ExportJob, reference: Outputs, precision: str, engine: str, path: Path, details: Mapping[str, Any]
) -> tuple[ArtifactProof, Engine]:
    """Return what `_proved` does, and the file in the engine, which the caller closes."""
    running = engine_for(path, engine=engine, precision=precision)
    try:
        return _proved(job, reference, precision, engine, path, running.run, details), running
    except BaseException:
        running.close()
        raise


def _partly_fp32(
    job: ExportJob, reference: Outputs, fp32_path: Path, work_dir: Path, all_bf16: tuple[ArtifactProof, Engine]
) -> tuple[ArtifactProof, Engine]:
    """Return BF16 with as few of the first layers in FP32 as pass the proof; `all_bf16` where none does."""
    tried: list[Mapping[str, Any]] = []
    for share in FP32_SHARES:
        path = work_dir / f"model.bf16.{share:g}.xml"
        try:
            details = write_partly_fp32(fp32_path, path, share)
        except ExportError:
            break
        if details in tried:
            continue
        tried.append(details)
        kept = f"{details['first_layers_in_fp32']} of {details['num_layers']} layers in FP32"
        job.on_step(f"BF16 does not pass ({all_bf16[0].problems[0]}); trying it with the first {kept}")
        proved, engine = _prove(job, reference, "bf16", OPENVINO, path, details)
        if not proved.problems:
            all_bf16[1].close()
            return proved, engine
        engine.close()
    return all_bf16


def _proved(
    job: ExportJob,
    reference: Outputs,
    precision: str,
    engine: str,
    path: Path,
    run: Runner,
    details: Mapping[str, Any],
) -> ArtifactProof:
    """Compare a file in an engine with the checkpoint; a `ParityError` where FP32 in ONNX Runtime differs."""
    is_measure = (precision, engine) == ("fp32", ONNX_RUNTIME)
    name = ENGINE_NAMES[engine]
    job.on_step(f"Comparing {precision.upper()} in {name} with PyTorch on {len(job.crops)} crops")
    try:
        parity, probability = measure_parity(
            reference,
            run,
            job.crops,
            name=f"{job.spec.name} version {job.spec.version}, ONNX {precision.upper()} in {name} on the CPU",
            precision=precision,
            threshold=job.spec.threshold,
            max_batch_size=job.request.max_batch_size,
            size_bytes=sum(item.stat().st_size for item in {path, path.with_suffix(".bin")} if item.exists()),
        )
    except ExportError as exc:
        if is_measure:
            raise
        return ArtifactProof(precision, failure=str(exc), engine=engine)
    if is_measure:
        require_parity(parity)
    return compare(parity, probability, reference[0][:, 0], job.crops, path=path, engine=engine, details=details)


def _make(
    job: ExportJob, precision: str, fp32_path: Path, path: Path, *, of_products: bool = False
) -> dict[str, Any]:
    """Write the file of a precision to `path`, and return how it was made as plain data."""
    if of_products:
        job.on_step("Rounding the weights of the matrix products to 8 bits")
        return write_products_int8(fp32_path, path, (job.calibration or job.crops).crops)
    if precision == "fp16":
        job.on_step("Exporting to ONNX in FP16")
        return export_fp16(job.detector, path, job.spec, job.crops.crops, verbose=job.request.verbose).to_dict()
    if precision == "int8":
        assert job.calibration is not None  # the request refuses INT8 without it
        return _make_int8(job, job.calibration.crops, fp32_path, path)
    return {}


def _make_int8(job: ExportJob, crops: UInt8Array, fp32_path: Path, path: Path) -> dict[str, Any]:
    """Round the checkpoint; where layers must stay in FP32, and time is given, fine-tune it and round once more."""
    target, minutes = job.request.precisions.int8_target, job.request.precisions.int8_finetune
    rounded = quantize_int8(fp32_path, path, job.spec, crops, target=target, on_step=job.on_step)
    if not minutes:
        return rounded.to_dict()
    if not rounded.layers_kept_fp32:
        return {**rounded.to_dict(), "finetuning": "not needed, because every layer may be rounded as it is"}
    try:
        tuned = finetune(
            job.detector,
            job.spec,
            crops,
            form=TARGETS[target],
            method=rounded.method,
            minutes=minutes,
            on_step=job.on_step,
        )
    except ExportError as exc:
        return {**rounded.to_dict(), "finetuning": f"not done: {exc}"}
    with tempfile.TemporaryDirectory(dir=path.parent) as work_dir:
        tuned_path, tuned_int8 = Path(work_dir, "tuned.onnx"), Path(work_dir, "tuned.int8.onnx")
        export_onnx(tuned.detector, tuned_path, job.spec, verbose=job.request.verbose)
        judge = tuned.held_out, tuned.reference
        made = quantize_int8(tuned_path, tuned_int8, job.spec, crops, target=target, judge=judge, on_step=job.on_step)
        what = tuned.finetuning.describe()
        if len(made.layers_kept_fp32) / made.num_layers >= len(rounded.layers_kept_fp32) / rounded.num_layers:
            return {**rounded.to_dict(), "finetuning": f"{what}; given up, because it spares no layer from FP32"}
        shutil.move(tuned_int8, path)
    return {**made.to_dict(), "finetuning": what}


def _with_speed(
    job: ExportJob, artifacts: Sequence[ArtifactProof], running: Mapping[str, Engine]
) -> list[ArtifactProof]:
    """Return the artifacts with their speed side by side; FP32 alone has nothing to be measured against."""
    if len(running) < 2:
        return list(artifacts)
    sizes = sorted({1, min(EMBEDDED_MAX_BATCH_SIZE, job.request.max_batch_size)})
    job.on_step(f"Measuring speed side by side at batch {', '.join(map(str, sizes))}")
    timers = {name: engine.seconds for name, engine in running.items()}
    speeds, failures = measure_speed(timers, job.crops.crops, sizes)
    return [
        ArtifactProof(item.precision, failure=failures[item.name], engine=item.engine)
        if item.name in failures
        else dataclasses.replace(item, speed=speeds.get(item.name))
        for item in artifacts
    ]
