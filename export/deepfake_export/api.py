"""The library call behind `deepfake export`: a request in, a proved version of a served model out.

PyTorch is imported inside the functions: this module loads at once, and works, with a helpful message, where the
`export` extra is not installed.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfake_export.network import load_network
from deepfake_export.repository.configs import refresh_configs
from deepfake_export.repository.locks import NO_SPACE, locked
from deepfake_export.repository.staging import find_identical, publish, staged
from deepfake_export.request.request import REQUEST_KEY, ExportJob, ExportRequest, what_changed
from deepfake_export.spec_file import PinnedCheckpoint, pin_checkpoint
from deepfake_export.tensorrt.plans import EngineMaker, add_plan, find_maker
from deepfake_preprocess.contract.forms import ServedForm
from deepfake_preprocess.contract.manifest import Manifest, file_hashes
from deepfake_preprocess.contract.version_files import BF16_FILE, BF16_WEIGHTS, ENGINE_SOURCE, FP32_FILE, MODEL_FILE
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.engines import ONNX_RUNTIME
from deepfake_preprocess.support.extras import require_extra
from deepfake_preprocess.support.files import write_whole

if TYPE_CHECKING:
    from deepfake_export.proof.comparison import Proof

TOOLS = ("deepfake-serving", "torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "openvino", "numpy")
"""Distributions whose versions the manifest records."""
REQUIRED_MODULES = ("torch", "onnx", "onnxscript", "safetensors", "onnxruntime", "jinja2")
ENSEMBLE_FILE = "ensemble.json"
"""In a version's directory: what the ensemble is; its SHA-256 is the model's `checkpoint_sha256`."""

OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export made.

    Attributes:
        repository: the model repository.
        version: Triton version of the model.
        created: False where the served or the newest version is already the same; it is the one that is served now.
        manifest: content of ``manifest.json``, with the spec, hashes, tool versions and parity figures.
        notes: what the user should know, as sentences.
    """

    repository: Path
    version: int
    created: bool
    manifest: Manifest
    notes: tuple[str, ...] = ()

    @property
    def model_dir(self) -> Path:
        """``<repository>/<model>``."""
        return self.repository / self.manifest.spec.name

    @property
    def version_dir(self) -> Path:
        """``<repository>/<model>/<version>``."""
        return self.model_dir / str(self.version)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "model": self.manifest.spec.name,
            "version": self.version,
            "created": self.created,
            "repository": str(self.repository),
            "version_dir": str(self.version_dir),
            **self.manifest.to_dict(),
            "notes": list(self.notes),
        }


def export_checkpoint(request: ExportRequest, *, on_step: OnStep = lambda step: None) -> ExportResult:
    """Export a checkpoint to ONNX, prove it against PyTorch, and add it to a model repository as a new version.

    Args:
        request: what to export, and how.
        on_step: called with a short sentence before each step.

    Raises:
        OptionError: a file of the request is missing, or there are too few faces to calibrate on.
        SpecError: there is no spec, or it is wrong, or the architecture is unknown.
        CheckpointError: the checkpoint cannot be read safely, or does not fit.
        ExportError: the network cannot be exported.
        EngineError: TensorRT refuses the graph, or is neither there to build nor to check; nothing is added.
        ParityError: the ONNX file does not reproduce the checkpoint; the repository is unchanged.
        RepositoryError: the repository cannot be written, or another export of the model runs.
        MissingExtraError: the `export` extra is not installed.
    """
    repository = Path(request.repository)
    identity = request.identity()
    checkpoint = pin_checkpoint(request.checkpoint, request.spec)
    # Before minutes of work: is there anything to build or to check engines with?
    maker = None if request.tensorrt is None else find_maker(check_only_allowed=True, options=request.tensorrt)
    with locked(repository, checkpoint.spec.name):
        same = None if request.force else find_identical(repository, checkpoint.spec)
        changed = what_changed(same.parity, identity, request.max_batch_size) if same is not None else ()
        if same is not None and not changed:
            return _serve_again(request, same, maker, on_step)
        result = _add_version(request, checkpoint, identity, maker, on_step)
    if same is None:
        return result
    what = f"version {same.spec.version} has the same checkpoint and spec, but this export differs in"
    note = f"{what} {', '.join(changed)}, so this is a new version"
    return dataclasses.replace(result, notes=(*result.notes, note))


def _serve_again(request: ExportRequest, same: Manifest, maker: EngineMaker | None, on_step: OnStep) -> ExportResult:
    """Serve the version that the same request made before."""
    repository = Path(request.repository)
    model_dir = repository / same.spec.name
    # Heals configurations that were edited, or left behind by a crash after the last rename; and serves the
    # newest version again after a rollback, for that is what an export is asked to bring about.
    refresh_configs(model_dir, same, max_batch_size=request.max_batch_size)
    note = (
        f"version {same.spec.version} was made of the same checkpoint and spec by the same request, and its "
        "files are intact, so it is the one that is served; `force` makes a new one"
    )
    if request.artifacts is not None:
        note += f", and fills {request.artifacts}"
    notes = (note, *_why_served(request, same.promotion))
    if maker is None:
        return ExportResult(repository, same.spec.version, created=False, manifest=same, notes=notes)
    on_step("Building the TensorRT engine")
    version_dir = model_dir / str(same.spec.version)
    added = add_plan(maker, version_dir, same, max_batch_size=request.max_batch_size)
    refresh_configs(model_dir, added.manifest, max_batch_size=request.max_batch_size)
    return ExportResult(repository, same.spec.version, added.created, added.manifest, (*notes, added.note))


def _add_version(
    request: ExportRequest,
    checkpoint: PinnedCheckpoint,
    identity: Mapping[str, Any],
    maker: EngineMaker | None,
    on_step: OnStep,
) -> ExportResult:
    """Make, prove and publish the next version of the model, with its lock held."""
    on_step("Loading PyTorch")
    for module in REQUIRED_MODULES:
        require_extra(module, extra="export")
    from deepfake_export.graph.served_detector import ServedDetector

    on_step(f"Loading {checkpoint.path.name} into {checkpoint.spec.architecture}")
    loaded = load_network(checkpoint)
    if request.faces.calibration is not None:
        on_step("Cutting out faces")
    crops, calibration = request.read_crops(checkpoint.spec)
    repository = Path(request.repository)
    with staged(repository, checkpoint.spec.name) as version_dir:
        spec = dataclasses.replace(checkpoint.spec, version=int(version_dir.name))
        job = ExportJob(request, spec, ServedDetector(loaded.network, spec).eval(), crops, calibration, on_step)
        proof, forms = _export_and_prove(job, version_dir)
        report = _write_report(job, checkpoint, proof, version_dir)
        parity = proof.promoted.parity
        assert parity is not None  # what could not be made is never promoted
        manifest = Manifest(
            spec,
            file_hashes(version_dir),
            tools=_tool_versions(),
            parity={**parity.to_dict(), REQUEST_KEY: identity},
            precision="fp32" if proof.decision.promoted == "bf16" else proof.decision.promoted,
            promotion=_promotion(report),
            forms=forms,
        )
        engine_notes: tuple[str, ...] = ()
        if maker is not None:
            on_step("Building the TensorRT engine")
            added = add_plan(maker, version_dir, manifest, max_batch_size=request.max_batch_size)
            manifest, engine_notes = added.manifest, (added.note,)
        on_step(f"Adding version {spec.version} to {repository}")
        manifest.write(version_dir)
        publish(repository, manifest, max_batch_size=request.max_batch_size)
    notes = (*loaded.notes, *parity.notes, *_why_served(request, manifest.promotion), *report["notes"], *engine_notes)
    return ExportResult(repository, spec.version, created=True, manifest=manifest, notes=notes)


def _export_and_prove(job: ExportJob, version_dir: Path) -> tuple[Proof, tuple[ServedForm, ...]]:
    """Make and measure all precisions; leave in `version_dir` what is served, and what engines are built from.

    Returns what was measured, and how the embedded server may run the version.
    """
    from deepfake_export.graph.onnx_export import export_onnx
    from deepfake_export.precision.forms import forms_of, serving_needs
    from deepfake_export.precision.selection import prove_precisions

    model_path = version_dir / MODEL_FILE
    job.on_step("Exporting to ONNX")
    export_onnx(job.detector, model_path, job.spec, verbose=job.request.verbose)
    with _work_dir(version_dir) as work_dir:
        proof = prove_precisions(job, model_path, work_dir)
        if job.request.artifacts is not None:
            _keep_artifacts(Path(job.request.artifacts), job.spec.name, proof.accurate)
        accurate, promoted = proof.accurate, proof.promoted
        files = {promoted.precision: MODEL_FILE}
        if promoted.precision == "int8" and job.request.precisions.int8_target == "cpu":
            shutil.copyfile(accurate.get("fp16", model_path), version_dir / ENGINE_SOURCE)
            # For a CPU on which INT8 would be slower, or without the engine.
            if serving_needs(promoted) or promoted.engine != ONNX_RUNTIME:
                files["fp32"] = ENGINE_SOURCE if "fp16" not in accurate else FP32_FILE
                shutil.copyfile(model_path, version_dir / files["fp32"])
        elif promoted.precision in ("fp32", "bf16"):
            files = {item.precision: MODEL_FILE for item in proof.artifacts if item.path == model_path}
        assert promoted.path is not None  # what could not be made is never promoted
        if promoted.precision == "bf16" and promoted.path != model_path:
            files["bf16"] = BF16_FILE
            for source, name in ((promoted.path, BF16_FILE), (promoted.path.with_suffix(".bin"), BF16_WEIGHTS)):
                shutil.copyfile(source, version_dir / name)
        elif promoted.path != model_path:
            shutil.copyfile(promoted.path, model_path)
    return proof, forms_of(proof, files)


@contextmanager
def _work_dir(version_dir: Path) -> Iterator[Path]:
    """Give a temporary directory; an `OptionError` says where its disk is full, and not the repository's."""
    with tempfile.TemporaryDirectory(prefix="deepfake-export-") as name:
        try:
            yield Path(name)
        except OSError as exc:
            here, there = shutil.disk_usage(name), shutil.disk_usage(version_dir)
            if exc.errno not in NO_SPACE or here.total == there.total or here.free >= there.free:
                raise
            raise OptionError(
                f"no space is left for temporary files in {tempfile.gettempdir()}; what is served is unchanged. Free "
                "some, or set TMPDIR to another directory"
            ) from exc


def _write_report(job: ExportJob, checkpoint: PinnedCheckpoint, proof: Proof, version_dir: Path) -> Mapping[str, Any]:
    """Write the report, for an ensemble with the proof of its members, and return its data."""
    from deepfake_export.proof.report import report_data, write_report

    members = {}
    if checkpoint.ensemble is not None:
        from deepfake_export.ensemble.proof import prove_members

        (version_dir / ENSEMBLE_FILE).write_text(checkpoint.description, encoding="utf-8")
        members = prove_members(job)
    data = report_data(job.spec, proof, job.crops, job.calibration, members=members, command=job.request.command)
    write_report(version_dir, data)
    return data


def _why_served(request: ExportRequest, promotion: Mapping[str, Any]) -> tuple[str, ...]:
    """Return why the engine and precision are served, where there was something to choose."""
    if request.precisions.left_out:
        return (request.precisions.left_out,)
    return (promotion["reason"],) if len(promotion.get("artifacts", ())) > 1 else ()


def _promotion(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the manifest says about the choice of the precision."""
    artifacts = [
        {key: item[key] for key in ("precision", "engine", "passed", "problems", "speed")}
        for item in report["artifacts"]
    ]
    return {**report["promotion"], "calibration": report["calibration"], "artifacts": artifacts}


def _keep_artifacts(directory: Path, name: str, paths: Mapping[str, Path]) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for precision, path in paths.items():
            write_whole(directory / f"{name}.{precision}.onnx", partial(shutil.copyfile, path))
    except OSError as exc:
        raise OptionError(
            f"`artifacts` is {str(directory)!r}, which cannot be written ({exc.strerror}); name another directory"
        ) from exc


def _tool_versions() -> dict[str, str]:
    versions = {}
    for name in TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
