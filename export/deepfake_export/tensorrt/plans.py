"""Puts TensorRT plans beside the ONNX files of a model repository, and says what was checked where none can be built.

`deepfake export --tensorrt` and `deepfake build-engines` end here. The plan of a version that is already published
is moved in, then the manifest, then the configuration, each in one step; a crash in between leaves a version that
fails its check and that the next run repairs.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfake_export.repository import layout as repo
from deepfake_preprocess.contract.manifest import Manifest, sha256_file
from deepfake_preprocess.contract.plan_info import PLAN_FILE, EngineInfo, check_plan, engine_of
from deepfake_preprocess.contract.spec import INPUT_NAME, LOGIT_NAME, PROBABILITY_NAME
from deepfake_preprocess.contract.triton_config import CONFIG_NAME, read_config
from deepfake_preprocess.errors import EngineError, MissingExtraError, OptionError, ParityError, RepositoryError
from deepfake_preprocess.support.extras import require_extra
from deepfake_preprocess.support.sessions import open_session

if TYPE_CHECKING:
    from deepfake_export.tensorrt.gpu import Gpu
    from deepfake_export.tensorrt.library import TensorRTLibrary

BUILD_LATER = "on the machine with the GPU run `deepfake build-engines`, or `docker compose up`"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How plans are built; see `deepfake_export.tensorrt.engine.build_engine`.

    Attributes:
        typical_batch_size: batch that kernels are picked for; None takes 8, or the largest batch where smaller.
        timing_cache: file with kernel timings of earlier builds; None keeps none.
        version_compatible: let later TensorRT versions of the same major version load the plans.
    """

    typical_batch_size: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False


@dataclass(frozen=True, slots=True)
class EngineMaker:
    """What this machine can build with.

    Attributes:
        library: TensorRT, or TensorRT-RTX where plans cannot be built here.
        gpu: the GPU that plans are built for; None where they cannot be built.
        missing: why they cannot, as a clause; empty where they can.
    """

    library: TensorRTLibrary
    gpu: Gpu | None
    missing: str = ""


@dataclass(frozen=True, slots=True)
class EngineResult:
    """What `build_engines` did for one model.

    Attributes:
        version_dir: the version that the plan belongs to.
        engine: how the plan was built, now or earlier.
        created: False where a plan that fits was there already.
    """

    version_dir: Path
    engine: EngineInfo
    created: bool


def find_maker(*, check_only_allowed: bool) -> EngineMaker:
    """Return what this machine builds engines with.

    Args:
        check_only_allowed: take TensorRT-RTX's CPU builder where plans cannot be built.

    Raises:
        EngineError: plans cannot be built here, and neither can they be checked; says what is missing.
        MissingExtraError: the `onnx` package is not installed.
    """
    require_extra("onnx", extra="export")
    from deepfake_export.tensorrt.gpu import find_gpu
    from deepfake_export.tensorrt.library import load_tensorrt, load_tensorrt_rtx

    gpu = find_gpu()
    missing = "" if gpu is not None else "no NVIDIA GPU was found here, and a plan is built on the kind that runs it"
    if gpu is not None:
        try:
            return EngineMaker(load_tensorrt(), gpu)
        except MissingExtraError as exc:
            missing = str(exc)
    if not check_only_allowed:
        raise EngineError(f"no TensorRT plan can be built: {missing}")
    try:
        return EngineMaker(load_tensorrt_rtx(), None, missing)
    except MissingExtraError as exc:
        raise EngineError(f"no TensorRT plan can be built ({missing}), and none can be checked: {exc}") from exc


def plan_target() -> tuple[str, str] | None:
    """Return the TensorRT version and the compute capability of this machine; None where it lacks either."""
    from deepfake_export.tensorrt.gpu import find_gpu
    from deepfake_export.tensorrt.library import load_tensorrt

    gpu = find_gpu()
    if gpu is None:
        return None
    try:
        return load_tensorrt().version, gpu.compute_capability
    except (MissingExtraError, EngineError):
        return None


def parse_target(text: str, option: str) -> tuple[str, str] | None:
    """Return TensorRT version and compute capability of a text like ``11.4.0/8.9``; None for ``here``.

    Raises:
        OptionError: it is neither; the message names `option`.
    """
    version, slash, capability = text.partition("/")
    if text != "here" and not slash:
        raise OptionError(f"{option} is {text!r}; allowed: 'here', or a pair like 11.4.0/8.9")
    return None if text == "here" else (version, capability)


def add_engine(
    maker: EngineMaker, version_dir: Path, target_dir: Path, *, max_batch_size: int, options: EngineOptions
) -> tuple[EngineInfo, str]:
    """Build the engine of `version_dir`'s ONNX file, and put it into `target_dir` where it is a plan that runs here.

    Returns:
        What was built, and a sentence for the user.

    Raises:
        EngineError: TensorRT refuses the graph.
        ParityError: the plan gives other results than the ONNX file; it is removed.
    """
    from deepfake_export.tensorrt.engine import build_engine

    model_path, plan_path = source_of(version_dir), target_dir / PLAN_FILE
    engine = build_engine(
        model_path,
        plan_path if maker.gpu is not None else None,
        max_batch_size=max_batch_size,
        typical_batch_size=options.typical_batch_size,
        timing_cache=options.timing_cache,
        version_compatible=options.version_compatible,
        library=maker.library,
    )
    if maker.gpu is None:
        return engine, (
            f"no TensorRT plan was written, because {maker.missing}; instead NVIDIA's parser and builder "
            f"(TensorRT-RTX {engine.tensorrt_version}) took the {engine.precision.upper()} graph for compute "
            f"capability {engine.compute_capability} in {engine.build_seconds:.1f} s; {BUILD_LATER}"
        )
    try:
        difference = compare_plan(model_path, plan_path, engine)
    except ParityError:
        plan_path.unlink()
        raise
    return engine, (
        f"the {engine.precision.upper()} plan for {maker.gpu.name} (compute capability {engine.compute_capability}, "
        f"TensorRT {engine.tensorrt_version}) differs from ONNX Runtime by at most {difference:.2g}"
    )


def source_of(version_dir: Path) -> Path:
    """Return the ONNX file that a version's plan is built from."""
    source = version_dir / repo.ENGINE_SOURCE
    return source if source.is_file() else version_dir / repo.MODEL_FILE


def compare_plan(model_path: Path, plan_path: Path, engine: EngineInfo) -> float:
    """Run the plan and the ONNX file on the same crops, at the smallest, the typical and the largest batch.

    Returns:
        The largest difference of `fake_probability`.

    Raises:
        ParityError: it is beyond tolerance.
        EngineError: the plan does not run.
    """
    import numpy as np

    from deepfake_export.proof.crops import generate_crops
    from deepfake_export.proof.tolerances import PLAN_PROBABILITY_ABS
    from deepfake_export.tensorrt.engine import tensorrt_runner

    session = open_session(model_path)
    height, width = session.get_inputs()[0].shape[1:3]
    run = tensorrt_runner(plan_path)
    largest = 0.0
    for batch_size in sorted({engine.min_batch_size, engine.typical_batch_size, engine.max_batch_size}):
        crops = generate_crops(batch_size, (width, height))
        expected, _ = session.run([PROBABILITY_NAME, LOGIT_NAME], {INPUT_NAME: crops})
        probability, _ = run(crops)
        # max() would pass over NaN.
        largest = float(np.max([largest, np.abs(probability - expected).max()]))
    limit = PLAN_PROBABILITY_ABS[engine.precision]
    if not largest <= limit:
        raise ParityError(
            f"the TensorRT plan differs from {model_path.name} by up to {largest:.3g} in {PROBABILITY_NAME} "
            f"(limit {limit:g} for {engine.precision}); serve the ONNX file, or report this with both files"
        )
    return largest


def ensure_plan(
    maker: EngineMaker,
    model_dir: Path,
    manifest: Manifest,
    *,
    max_batch_size: int,
    options: EngineOptions,
    force: bool = False,
) -> tuple[Manifest, bool, str]:
    """Give a published version a plan that fits this machine, with the model's lock held.

    Returns:
        The manifest, whether something was built, and a sentence for the user.

    Raises:
        EngineError: TensorRT refuses the graph.
        ParityError: the plan gives other results than the ONNX file.
        RepositoryError: the repository cannot be written.
    """
    version_dir = model_dir / str(manifest.spec.version)
    if not force and _plan_fits(maker, manifest, max_batch_size, options):
        repo.refresh_configs(model_dir, manifest, max_batch_size=max_batch_size)
        return manifest, False, "the plan fits this machine's TensorRT and GPU"
    with repo.writing(model_dir):
        stage = model_dir / ".engine.partial"
        shutil.rmtree(stage, ignore_errors=True)
        try:
            stage.mkdir()
            engine, note = add_engine(maker, version_dir, stage, max_batch_size=max_batch_size, options=options)
            if not engine.plan:
                return manifest, False, note
            files = {**manifest.files, PLAN_FILE: sha256_file(stage / PLAN_FILE)}
            manifest = dataclasses.replace(manifest, files=files, engine=engine.to_dict())
            manifest.write(stage)
            for path in (stage / PLAN_FILE, *(item for item in stage.iterdir() if item.name != PLAN_FILE)):
                path.replace(version_dir / path.name)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
        repo.refresh_configs(model_dir, manifest, max_batch_size=max_batch_size)
    return manifest, True, note


def build_engines(
    repository: Path,
    models: Sequence[str] = (),
    *,
    options: EngineOptions | None = None,
    force: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> list[EngineResult]:
    """Give the served version of each model a TensorRT plan that fits this machine; those that fit already are kept.

    Args:
        repository: model repository, as `deepfake export` writes it.
        models: names of the models; all that have a version where empty.
        options: how to build.
        force: build even where the plan fits.
        on_step: called with a short sentence before each step.

    Raises:
        EngineError: no GPU, or TensorRT refuses a graph.
        ParityError: a plan gives other results than its ONNX file.
        RepositoryError: a model is missing, a version does not match its manifest, or nothing can be written.
        MissingExtraError: TensorRT or `onnx` is not installed.
    """
    options = options or EngineOptions()
    names = _models_of(repository, models)
    maker = find_maker(check_only_allowed=False)
    results = []
    for name in names:
        with repo.locked(repository, name):
            model_dir = repository / name
            # The one that is served; after a rollback that is not the newest.
            version_dir = model_dir / str(repo.served_in(model_dir))
            manifest = _read_verified(version_dir)
            on_step(f"Building the TensorRT plan of {name} version {version_dir.name}")
            max_batch_size = int(read_config(model_dir / CONFIG_NAME).max_batch_size)
            manifest, created, note = ensure_plan(
                maker, model_dir, manifest, max_batch_size=max_batch_size, options=options, force=force
            )
            on_step(f"{name}: {note}")
            engine = engine_of(manifest)
            assert engine is not None
            results.append(EngineResult(version_dir, engine, created))
    return results


def check_plans(repository: Path, models: Sequence[str] = (), *, target: tuple[str, str] | None = None) -> list[Path]:
    """Check that the plans of the served versions can be loaded, and build nothing.

    Args:
        repository: model repository.
        models: names of the models; all that have a version where empty.
        target: TensorRT version and compute capability that shall load them; None takes this machine's.

    Returns:
        The served versions; those without a plan pass.

    Raises:
        RepositoryError: a plan does not fit, or a version does not match its manifest; says what to rebuild.
        EngineError: no `target`, and this machine has no TensorRT or no GPU.
    """
    names = _models_of(repository, models)
    if target is None:
        maker = find_maker(check_only_allowed=False)
        assert maker.gpu is not None
        target = maker.library.version, maker.gpu.compute_capability
    checked = []
    for name in names:
        version_dir = repository / name / str(repo.served_in(repository / name))
        manifest = Manifest.read(version_dir)
        manifest.verify(version_dir)
        check_plan(manifest, tensorrt_version=target[0], compute_capability=target[1])
        checked.append(version_dir)
    return checked


def _models_of(repository: Path, models: Sequence[str]) -> list[str]:
    """Return the names of the models that are meant, each once.

    Raises:
        RepositoryError: there is no such repository, or no version of one of them.
    """
    if not repository.is_dir():
        raise RepositoryError(f"{repository}: there is no such model repository; `deepfake export` makes one")
    present = [
        path.name
        for path in sorted(repository.iterdir())
        if path.is_dir() and not path.name.startswith(".") and repo.versions_of(path)
    ]
    absent = [name for name in models if name not in present]
    if absent or not present:
        what = f"no version of {absent[0]!r}" if absent else "no model version"
        raise RepositoryError(f"{repository} holds {what}; put one there with `deepfake export`")
    return list(dict.fromkeys(models) or present)


def _plan_fits(maker: EngineMaker, manifest: Manifest, max_batch_size: int, options: EngineOptions) -> bool:
    engine = engine_of(manifest)
    if maker.gpu is None or PLAN_FILE not in manifest.files or engine is None:
        return False
    wanted = (max_batch_size, options.version_compatible)
    if (engine.max_batch_size, engine.version_compatible) != wanted:
        return False
    try:
        check_plan(
            manifest,
            tensorrt_version=maker.library.version,
            compute_capability=maker.gpu.compute_capability,
        )
    except RepositoryError:
        return False
    return True


def _read_verified(version_dir: Path) -> Manifest:
    """Return the manifest, of which only the plan may be wrong; then nothing is said of a plan, so one is built."""
    manifest = Manifest.read(version_dir)
    if repo.MODEL_FILE not in manifest.files:
        raise RepositoryError(f"{version_dir} has no {repo.MODEL_FILE} to build from; export the model again")
    plan = version_dir / PLAN_FILE
    actual: dict[str, Any] = {PLAN_FILE: sha256_file(plan)} if plan.is_file() else {}
    others = {name: digest for name, digest in manifest.files.items() if name != PLAN_FILE}
    dataclasses.replace(manifest, files={**others, **actual}).verify(version_dir)
    if actual.get(PLAN_FILE) != manifest.files.get(PLAN_FILE):
        return dataclasses.replace(manifest, files=others, engine={})
    return manifest
