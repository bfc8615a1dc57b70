"""The library call behind `deepfake export`: checkpoint and spec in, a proved version of a served model out.

PyTorch is imported inside the functions, so that this module (and the command's ``--help``) load at once and
work, with a helpful message, where the `export` extra is not installed.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfake_export.network import load_network
from deepfake_export.proof.gate import BEST, check_precisions
from deepfake_export.repository.configs import refresh_configs
from deepfake_export.repository.locks import locked
from deepfake_export.repository.staging import find_identical, publish, staged
from deepfake_export.request import REQUEST_KEY, ExportRequest, what_changed
from deepfake_export.spec_file import pin_checkpoint
from deepfake_export.tensorrt.options import EngineOptions
from deepfake_export.tensorrt.plans import add_plan, find_maker
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.repository import ENGINE_SOURCE, MODEL_FILE
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.contract.triton_config import PRODUCTION_MAX_BATCH_SIZE
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.extras import require_extra

if TYPE_CHECKING:
    from deepfake_export.graph.served_detector import ServedDetector
    from deepfake_export.proof.crops import UInt8Array
    from deepfake_export.proof.faces import FaceSet
    from deepfake_export.proof.parity import ParityReport

MAX_BATCH_LIMIT = 1024
TOOLS = ("deepfake-serving", "torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "numpy")
"""Distributions whose versions the manifest records."""

REQUIRED_MODULES = ("torch", "onnx", "onnxscript", "safetensors", "onnxruntime")


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export brought.

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


def export_checkpoint(
    checkpoint: str | Path,
    spec: ModelSpec,
    repository: str | Path,
    *,
    max_batch_size: int = PRODUCTION_MAX_BATCH_SIZE,
    crops: str | Path | None = None,
    force: bool = False,
    tensorrt: EngineOptions | None = None,
    verbose: bool = False,
    precisions: Collection[str] = ("fp32",),
    calibration: str | Path | None = None,
    labels: str | Path | None = None,
    promote: str = BEST,
    int8_target: str = "cpu",
    artifacts: str | Path | None = None,
    spec_path: str | Path | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> ExportResult:
    """Export a checkpoint to ONNX, prove it against PyTorch, and add it to a model repository as a new version.

    Args:
        checkpoint: file with the weights, or the YAML file of an ensemble, which names its members'.
        spec: contract of the model; its version is replaced by the next free one.
        repository: Triton model repository; created where missing.
        max_batch_size: largest batch the server will form, 1 to 1024; proved, and written to the configuration.
        crops: directory of face crops for the proof; None generates face-like ones.
        force: make a new version even where the latest one is the same.
        tensorrt: also build a TensorRT plan, or check without a GPU that one can be built; see
            `deepfake_export.tensorrt.plans`.
        verbose: let PyTorch's exporter print its messages.
        precisions: what to make and measure; FP32 always is among them.
        calibration: directory of the user's videos and face images: ranges of INT8, and, without `crops`, the crops
            of the proof. See `deepfake_export.proof.faces` for what is taken from it.
        labels: CSV of real and fake for the files of `calibration`; None takes its folders ``real`` and ``fake``.
        promote: ``best`` serves the fastest precision that passes; a precision's name serves that one if it is
            accurate, and falls back INT8 -> FP16 -> FP32.
        int8_target: ``cpu`` or ``tensorrt``: the form of Q/DQ.
        artifacts: directory that gets the ONNX files of all precisions that are accurate, for engines to be built
            from.
        spec_path: where the spec was read from, for the report's command lines.
        on_step: called with a short sentence before each step.

    Raises:
        OptionError: an option is out of range, or there are too few faces to calibrate on.
        SpecError: the architecture is unknown.
        CheckpointError: the checkpoint cannot be read safely, or does not fit.
        ExportError: the network cannot be exported.
        EngineError: TensorRT refuses the graph, or is neither there to build nor to check; nothing is added.
        ParityError: the ONNX file does not reproduce the checkpoint; the repository is unchanged.
        RepositoryError: the repository cannot be written, or another export of the model runs.
        MissingExtraError: the `export` extra is not installed.
    """
    if not 1 <= max_batch_size <= MAX_BATCH_LIMIT:
        raise OptionError(f"max_batch_size is {max_batch_size}; allowed: a whole number from 1 to {MAX_BATCH_LIMIT}")
    repository = Path(repository)
    request = ExportRequest(
        check_precisions(precisions), calibration, labels, promote, int8_target, artifacts, crops, spec_path
    )
    identity = request.identity()
    pinned = pin_checkpoint(checkpoint, spec)
    spec = pinned.spec
    # Before minutes of work: is there anything to build or to check engines with?
    maker = find_maker(check_only_allowed=True) if tensorrt is not None else None
    engine_notes: list[str] = []
    with locked(repository, spec.name):
        same = None if force else find_identical(repository, spec)
        changed = what_changed(same.parity, identity, max_batch_size) if same is not None else ()
        if same is not None and not changed:
            # Heals configurations that were edited, or left behind by a crash after the last rename; and serves the
            # newest version again after a rollback, for that is what an export is asked to bring about.
            model_dir = repository / spec.name
            refresh_configs(model_dir, same, max_batch_size=max_batch_size)
            note = (
                f"version {same.spec.version} was made of the same checkpoint and spec by the same request, and its "
                "files are intact, so that is the one that is served; --force makes a new one"
            )
            if artifacts is not None:
                note += f", and fills {artifacts}"
            if maker is not None and tensorrt is not None:
                on_step("Building the TensorRT engine")
                version_dir = model_dir / str(same.spec.version)
                added = add_plan(maker, version_dir, same, max_batch_size=max_batch_size, options=tensorrt)
                same = added.manifest
                refresh_configs(model_dir, same, max_batch_size=max_batch_size)
                return ExportResult(
                    repository, same.spec.version, created=added.created, manifest=same, notes=(note, added.note)
                )
            return ExportResult(repository, same.spec.version, created=False, manifest=same, notes=(note,))

        on_step("Loading PyTorch")
        _require_modules()
        from deepfake_export.graph.onnx_export import export_onnx
        from deepfake_export.graph.served_detector import ServedDetector
        from deepfake_export.proof.faces import FaceSet
        from deepfake_export.proof.parity import prove_onnx

        on_step(f"Loading {Path(checkpoint).name} into {spec.architecture}")
        loaded = load_network(pinned)
        if request.calibration is not None:
            on_step("Cutting out faces")
        faces = request.read_faces(spec)
        proof_crops, crops_source = (
            _proof_crops(crops, spec, max_batch_size) if faces is None or crops else (faces.crops, faces.origin)
        )
        with staged(repository, spec.name) as stage:
            spec = dataclasses.replace(spec, version=stage.version)
            detector = ServedDetector(loaded.network, spec).eval()
            model_path = stage.version_dir / MODEL_FILE
            on_step("Exporting to ONNX")
            export_onnx(detector, model_path, spec, verbose=verbose)

            promotion: dict[str, Any] = {}
            precision = "fp32"
            notes: tuple[str, ...] = ()
            if request.compares:
                command = request.command(checkpoint, repository, max_batch_size)
                proof_set = FaceSet(
                    proof_crops, tuple(map(str, range(len(proof_crops)))), frozenset(), None, None, crops_source
                )
                if faces is not None and not crops:
                    proof_set = faces
                report, promotion, precision, notes = _prove(
                    detector,
                    spec,
                    model_path,
                    request,
                    command,
                    proof_set,
                    faces,
                    max_batch_size=max_batch_size,
                    verbose=verbose,
                    on_step=on_step,
                )
            else:
                on_step(f"Comparing ONNX Runtime with PyTorch on {len(proof_crops)} crops")
                report = prove_onnx(
                    detector,
                    model_path,
                    proof_crops,
                    name=f"{spec.name} version {spec.version}",
                    threshold=spec.threshold,
                    max_batch_size=max_batch_size,
                    crops_source=crops_source,
                )
            figures = report.to_dict() | {REQUEST_KEY: identity}
            page = report.to_markdown()
            if pinned.ensemble is not None:
                from deepfake_export.proof.members import DESCRIPTION_FILE, members_markdown, prove_members

                (stage.version_dir / DESCRIPTION_FILE).write_text(pinned.description, encoding="utf-8")
                figures |= prove_members(
                    pinned.ensemble, loaded.network, proof_crops,
                    max_batch_size=max_batch_size, crops_source=crops_source, verbose=verbose, on_step=on_step,
                )  # fmt: skip
                page += members_markdown(figures["members"])
            (stage.version_dir / "parity.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
            (stage.version_dir / "parity.md").write_text(page, encoding="utf-8")
            manifest = Manifest.of_directory(
                stage.version_dir,
                spec,
                tools=_tool_versions(),
                parity=figures,
                precision=precision,
                promotion=promotion,
            )
            if maker is not None and tensorrt is not None:
                on_step("Building the TensorRT engine")
                added = add_plan(maker, stage.version_dir, manifest, max_batch_size=max_batch_size, options=tensorrt)
                manifest = added.manifest
                engine_notes.append(added.note)
            on_step(f"Adding version {spec.version} to {repository}")
            manifest.write(stage.version_dir)
            publish(repository, manifest, max_batch_size=max_batch_size)
    if same is not None and changed:
        engine_notes.append(
            f"version {same.spec.version} has the same checkpoint and spec, but this export differs in "
            f"{', '.join(changed)}, so this is a new version"
        )
    notes = (*loaded.notes, *report.notes, *notes, *engine_notes)
    return ExportResult(repository, spec.version, created=True, manifest=manifest, notes=notes)


def _prove(
    detector: ServedDetector,
    spec: ModelSpec,
    model_path: Path,
    request: ExportRequest,
    command: Callable[[str], str],
    proof_set: FaceSet,
    calibration: FaceSet | None,
    *,
    max_batch_size: int,
    verbose: bool,
    on_step: Callable[[str], None],
) -> tuple[ParityReport, dict[str, Any], str, tuple[str, ...]]:
    """Make and measure all precisions; leave the promoted one at `model_path`, and the report beside it."""
    from deepfake_export.precision.candidates import prove_precisions
    from deepfake_export.proof.report import calibration_data, report_data, write_report

    with tempfile.TemporaryDirectory(prefix="deepfake-export-") as work_dir:
        proof = prove_precisions(
            detector,
            spec,
            model_path,
            Path(work_dir),
            precisions=request.precisions,
            promote=request.promote,
            proof=proof_set,
            calibration=calibration,
            int8_target=request.int8_target,
            max_batch_size=max_batch_size,
            verbose=verbose,
            on_step=on_step,
        )
        data = report_data(spec, proof, proof_set, calibration, {name: command(name) for name in request.precisions})
        if request.artifacts is not None:
            _keep_artifacts(Path(request.artifacts), spec, proof.paths)
        if proof.decision.promoted == "int8" and request.int8_target == "cpu":
            other = proof.paths.get("fp16", model_path)
            shutil.copyfile(other, model_path.with_name(ENGINE_SOURCE))
        if proof.promoted_path != model_path:
            shutil.copyfile(proof.promoted_path, model_path)
    write_report(model_path.parent, data)
    promotion = {
        **data["promotion"],
        "calibration": calibration_data(calibration),
        "artifacts": [
            {key: item[key] for key in ("precision", "passed", "problems", "speed")} for item in data["artifacts"]
        ],
    }
    parity = proof.promoted.parity
    assert parity is not None  # what could not be made is never promoted
    return parity, promotion, proof.decision.promoted, (proof.decision.reason, *data["notes"])


def _keep_artifacts(directory: Path, spec: ModelSpec, paths: dict[str, Path]) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for precision, path in paths.items():
            shutil.copyfile(path, directory / f"{spec.name}.{precision}.onnx")
    except OSError as exc:
        raise OptionError(f"{directory} cannot be written ({exc.strerror}); name another --artifacts") from exc


def _proof_crops(directory: str | Path | None, spec: ModelSpec, max_batch_size: int) -> tuple[UInt8Array, str]:
    """Return the crops of the proof, and where they came from."""
    from deepfake_export.proof.crops import GENERATED_SEED, generate_crops, read_crops

    # One full batch of the largest size, and some more, so that the last batch is a smaller one.
    count = max_batch_size + 4
    if directory is None:
        return generate_crops(count, spec.input_size_wh), f"generated face-like images (seed {GENERATED_SEED})"
    crops = read_crops(directory, spec.input_size_wh, limit=max(count, 256))
    return crops, f"images of the directory {Path(directory).name!r}"


def _tool_versions() -> dict[str, str]:
    versions = {}
    for name in TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _require_modules() -> None:
    for module in REQUIRED_MODULES:
        require_extra(module, extra="export")
