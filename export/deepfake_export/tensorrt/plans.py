"""Puts TensorRT plans next to a repository's ONNX files, and says what was checked where none can be built.

Exports and `deepfake build-engines` end here. The plan of a version that is already published is moved in, then the
manifest, then the configuration, each in one step; a crash in between leaves a version that fails its check and that
the next run repairs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepfake_export.repository.configs import refresh_configs
from deepfake_export.repository.locks import locked, writing
from deepfake_export.tensorrt.options import EngineOptions
from deepfake_preprocess.contract.manifest import MANIFEST_NAME, EngineInfo, Manifest, sha256_file
from deepfake_preprocess.contract.plan_info import check_plan
from deepfake_preprocess.contract.repository import model_dirs, served_in
from deepfake_preprocess.contract.spec import INPUT_NAME, PROBABILITY_NAME
from deepfake_preprocess.contract.triton_config import CONFIG_NAME, read_config
from deepfake_preprocess.contract.version_files import ENGINE_SOURCE, MODEL_FILE, PLAN_FILE
from deepfake_preprocess.errors import EngineError, MissingExtraError, ParityError, RepositoryError
from deepfake_preprocess.support.extras import require_extra
from deepfake_preprocess.support.sessions import open_session

if TYPE_CHECKING:
    from deepfake_export.tensorrt.gpu import Gpu
    from deepfake_export.tensorrt.library import TensorRTLibrary


@dataclass(frozen=True, slots=True)
class EngineMaker:
    """What this machine can build with, and how it is to build.

    Attributes:
        library: TensorRT, or TensorRT-RTX where plans cannot be built here.
        gpu: the GPU that plans are built for; None where they cannot be built.
        missing: why they cannot, as a clause; empty where they can.
        options: how to build.
    """

    library: TensorRTLibrary
    gpu: Gpu | None
    missing: str = ""
    options: EngineOptions = EngineOptions()


@dataclass(frozen=True, slots=True)
class EngineResult:
    """What was done for the plan of one version.

    Attributes:
        manifest: of the version, with what was built or checked; that of a mere check is not written.
        engine: how the plan was built, now or earlier, or what was checked.
        created: whether a plan was added; False where one that fits was there, or none can be built here.
        note: the same in words.
    """

    version_dir: Path
    manifest: Manifest
    engine: EngineInfo
    created: bool
    note: str


def find_maker(*, check_only_allowed: bool, options: EngineOptions = EngineOptions()) -> EngineMaker:
    """Return what this machine builds engines with; `check_only_allowed` takes TensorRT-RTX where it cannot build.

    Raises:
        EngineError: plans cannot be built here, and neither can they be checked; says what is missing.
    """
    from deepfake_export.tensorrt.gpu import find_gpu
    from deepfake_export.tensorrt.library import load_tensorrt, load_tensorrt_rtx

    missing = "no NVIDIA GPU was found here, and a plan is built on the kind that runs it"
    if (gpu := find_gpu()) is not None:
        try:
            return EngineMaker(load_tensorrt(), gpu, options=options)
        except MissingExtraError as exc:
            missing = str(exc)
    if not check_only_allowed:
        raise EngineError(f"no TensorRT plan can be built: {missing}")
    try:
        return EngineMaker(load_tensorrt_rtx(), None, missing, options)
    except MissingExtraError as exc:
        raise EngineError(f"no TensorRT plan can be built ({missing}), and none can be checked: {exc}") from exc


def plan_target() -> tuple[str, str] | None:
    """Return the TensorRT version and the compute capability of this machine; None where it lacks either."""
    try:
        maker = find_maker(check_only_allowed=False)
    except EngineError:
        return None
    return None if maker.gpu is None else (maker.library.version, maker.gpu.compute_capability)


def add_plan(
    maker: EngineMaker, version_dir: Path, manifest: Manifest, *, max_batch_size: int, force: bool = False
) -> EngineResult:
    """Give a version a plan that fits this machine; where none can be built, check that TensorRT takes its graph.

    The plan and the manifest that lists it are moved in one after the other, with the model's lock held. That
    production runs it is for the configuration to say, which the caller writes. `force` builds even where one fits.

    Raises:
        EngineError: TensorRT refuses the graph.
        ParityError: the plan gives other results than the ONNX file; it is not added.
        RepositoryError: the repository cannot be written.
    """
    known = manifest.engine
    if known is not None and not force and _plan_fits(maker, manifest, known, max_batch_size):
        return EngineResult(version_dir, manifest, known, False, "the plan fits this machine's TensorRT and GPU")
    from deepfake_export.tensorrt.engine import build_engine

    source = version_dir / ENGINE_SOURCE
    source = source if source.is_file() else version_dir / MODEL_FILE
    aside = version_dir.parent / ".engine.partial"
    with writing(version_dir.parent):
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir()
            plan = aside / PLAN_FILE if maker.gpu is not None else None
            engine = build_engine(
                source, plan, max_batch_size=max_batch_size, options=maker.options, library=maker.library
            )
            what = f"{engine.precision.upper()} graph for compute capability {engine.compute_capability}"
            if plan is None:
                checked = dataclasses.replace(manifest, engine=manifest.engine or engine)
                note = (
                    f"no TensorRT plan was written, because {maker.missing}; instead NVIDIA's parser and builder "
                    f"(TensorRT-RTX {engine.tensorrt_version}) took the {what} in {engine.build_seconds:.1f} s; on "
                    "the machine with the GPU run `deepfake build-engines`, or `docker compose up`"
                )
                return EngineResult(version_dir, checked, engine, False, note)
            difference = compare_plan(source, plan, engine)
            files = {**manifest.files, PLAN_FILE: sha256_file(plan)}
            manifest = dataclasses.replace(manifest, files=files, engine=engine)
            manifest.write(aside)
            for name in (PLAN_FILE, MANIFEST_NAME):
                (aside / name).replace(version_dir / name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    note = (
        f"the plan of the {what} (TensorRT {engine.tensorrt_version}) differs from ONNX Runtime by at most "
        f"{difference:.2g}"
    )
    return EngineResult(version_dir, manifest, engine, True, note)


def compare_plan(model_path: Path, plan_path: Path, engine: EngineInfo) -> float:
    """Return the largest difference of `fake_probability` between plan and ONNX file on the same crops.

    They run at the smallest, the typical and the largest batch.

    Raises:
        ParityError: it is beyond tolerance.
        EngineError: the plan does not run.
    """
    import numpy as np

    from deepfake_export.proof.crops import generate_crops
    from deepfake_export.proof.tolerances import PLAN_PROBABILITY_ABS
    from deepfake_export.tensorrt.engine import LoadedPlan

    session = open_session(model_path)
    height, width = session.get_inputs()[0].shape[1:3]
    plan = LoadedPlan(plan_path)
    largest = 0.0
    for batch_size in sorted({engine.min_batch_size, engine.typical_batch_size, engine.max_batch_size}):
        crops = generate_crops(batch_size, (width, height))
        (expected,) = session.run([PROBABILITY_NAME], {INPUT_NAME: crops})
        probability, _ = plan.score(crops)
        # max() would pass over NaN.
        largest = float(np.max([largest, np.abs(probability - expected).max()]))
    limit = PLAN_PROBABILITY_ABS[engine.precision]
    if not largest <= limit:
        raise ParityError(
            f"the TensorRT plan differs from {model_path.name} by up to {largest:.3g} in {PROBABILITY_NAME} "
            f"(limit {limit:g} for {engine.precision}); serve the ONNX file, or report this with both files"
        )
    return largest


def build_engines(
    repository: Path,
    models: Sequence[str] = (),
    *,
    options: EngineOptions = EngineOptions(),
    force: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> list[EngineResult]:
    """Give the served version of each model (all that have one, or those named) a plan that fits this machine.

    Those that fit already are kept, unless `force` is set.

    Raises:
        EngineError: no GPU, or TensorRT refuses a graph.
        ParityError: a plan gives other results than its ONNX file.
        RepositoryError: a model is missing, a version does not match its manifest, or nothing can be written.
        MissingExtraError: TensorRT or `onnx` is not installed.
    """
    require_extra("onnx", extra="export")
    dirs = model_dirs(repository, models)
    maker = find_maker(check_only_allowed=False, options=options)
    results = []
    for model_dir in dirs:
        with locked(repository, model_dir.name):
            # The one that is served; after a rollback that is not the newest.
            version_dir = model_dir / str(served_in(model_dir))
            manifest = _read_verified(version_dir)
            on_step(f"Building the TensorRT plan of {model_dir.name} version {version_dir.name}")
            max_batch_size = int(read_config(model_dir / CONFIG_NAME).max_batch_size)
            result = add_plan(maker, version_dir, manifest, max_batch_size=max_batch_size, force=force)
            refresh_configs(model_dir, result.manifest, max_batch_size=max_batch_size)
            on_step(f"{model_dir.name}: {result.note}")
            results.append(result)
    return results


def _plan_fits(maker: EngineMaker, manifest: Manifest, engine: EngineInfo, max_batch_size: int) -> bool:
    built = (engine.max_batch_size, engine.version_compatible)
    wanted = (max_batch_size, maker.options.version_compatible)
    if maker.gpu is None or PLAN_FILE not in manifest.files or built != wanted:
        return False
    with contextlib.suppress(RepositoryError):
        check_plan(manifest, tensorrt_version=maker.library.version, compute_capability=maker.gpu.compute_capability)
        return True
    return False


def _read_verified(version_dir: Path) -> Manifest:
    """Return the manifest of an intact version; where only its plan is wrong, one that lists no plan."""
    manifest = Manifest.read(version_dir)
    if MODEL_FILE not in manifest.files:
        raise RepositoryError(f"{version_dir} has no {MODEL_FILE} to build from; export the model again")
    wrong = {name for name, _ in manifest.problems(version_dir)}
    if wrong - {PLAN_FILE}:
        manifest.verify(version_dir)
    if wrong:
        files = {name: digest for name, digest in manifest.files.items() if name != PLAN_FILE}
        return dataclasses.replace(manifest, files=files, engine=None)
    return manifest
