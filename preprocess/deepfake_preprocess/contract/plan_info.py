"""Whether a TensorRT plan may be loaded where it is to run, and which precision is served.

A plan is compiled code for one TensorRT version and one kind of GPU. This module imports neither TensorRT nor CUDA.
"""

from __future__ import annotations

from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.version_files import PLAN_FILE
from deepfake_preprocess.errors import RepositoryError

REBUILD = "build it again on the machine that serves it: `deepfake build-engines`, or `docker compose run engines`"

_VERSION_PARTS = 3
"""Major, minor and patch decide what loads; images do not name the fourth number, a build counter."""


def served_precision(manifest: Manifest, backend: str) -> str:
    """Return the precision of the file that a Triton backend serves of a version."""
    engine = manifest.engine
    return engine.precision if backend == "tensorrt" and engine is not None else manifest.precision


def check_plan(manifest: Manifest, *, tensorrt_version: str, compute_capability: str) -> None:
    """Check that a TensorRT (``11.4.0``) can load a version's plan on a GPU (``8.9``); one without a plan passes.

    The `RepositoryError` says what to rebuild.
    """
    if PLAN_FILE not in manifest.files:
        return
    what = f"{PLAN_FILE} of {manifest.spec.name!r} version {manifest.spec.version}"
    engine = manifest.engine
    if engine is None or engine.plan != PLAN_FILE:
        raise RepositoryError(f"{what} has no entry in its manifest that says what it was built for; {REBUILD}")
    built, running = _parts(engine.tensorrt_version), _parts(tensorrt_version)
    if engine.version_compatible:
        if built[:1] != running[:1] or running < built:
            raise RepositoryError(
                f"{what} was built by TensorRT {engine.tensorrt_version} for that and later versions of "
                f"{built[0]}.x, but {tensorrt_version} runs here; {REBUILD}"
            )
    elif built != running:
        raise RepositoryError(
            f"{what} was built by TensorRT {engine.tensorrt_version}, but {tensorrt_version} runs here, and a plan "
            f"loads only in the version that wrote it; {REBUILD}"
        )
    if engine.compute_capability != compute_capability:
        raise RepositoryError(
            f"{what} was built for GPUs of compute capability {engine.compute_capability}, but this one has "
            f"{compute_capability}; {REBUILD}"
        )


def _parts(version: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in version.split(".")[:_VERSION_PARTS] if part.isdecimal())
    if not numbers:
        raise RepositoryError(f"{version!r} is not a TensorRT version; expected one like 11.4.0")
    return numbers
