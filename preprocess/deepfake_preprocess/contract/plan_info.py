"""What is known of a TensorRT engine, and whether a plan may be loaded where it shall run.

A plan is compiled code for one TensorRT version and one kind of GPU. `export` writes an `EngineInfo` into the
manifest; whoever serves the plan asks `check_plan`. This module imports neither TensorRT nor CUDA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.errors import RepositoryError

PLAN_FILE = "model.plan"
"""The file that Triton's `tensorrt` backend loads."""

REBUILD = (
    "build it again on the machine that serves it: `deepfake build-engines`, or `docker compose run --rm engines`"
)

_VERSION_PARTS = 3
"""Major, minor and patch decide what loads; the fourth number is a build counter that images do not name."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """How a TensorRT engine was built.

    Attributes:
        builder: ``tensorrt``, or ``tensorrt_rtx`` where the graph was only checked without a GPU.
        tensorrt_version: of the builder, for example ``11.4.0.106``.
        compute_capability: of the GPU that the engine is for, for example ``8.9``.
        cuda_version: of the CUDA runtime that the engine was built with, for example ``13.0``; empty where unknown.
        precision: ``fp32``, ``fp16`` or ``int8``, as the types in the ONNX graph say (networks are strongly typed).
        min_batch_size: smallest batch of the optimization profile.
        typical_batch_size: the batch that kernels were picked for.
        max_batch_size: largest batch of the optimization profile.
        num_layers: layers of the parsed network, before fusion.
        size_bytes: of the engine.
        build_seconds: how long parsing and building took.
        version_compatible: whether later TensorRT versions of the same major version load it, too.
        plan: name of the file beside ``manifest.json``; empty where the engine was only built as a check.
    """

    builder: str
    tensorrt_version: str
    compute_capability: str
    cuda_version: str
    precision: str
    min_batch_size: int
    typical_batch_size: int
    max_batch_size: int
    num_layers: int
    size_bytes: int
    build_seconds: float
    version_compatible: bool = False
    plan: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EngineInfo:
        """Return the engine that `to_dict` described.

        Raises:
            RepositoryError: a field is missing or unknown.
        """
        names = {item.name for item in fields(cls)}
        if set(data) != names:
            wrong = ", ".join(sorted(names ^ set(data)))
            raise RepositoryError(f"the manifest's entry on the TensorRT engine is damaged ({wrong}); {REBUILD}")
        return cls(**data)


def engine_of(manifest: Manifest) -> EngineInfo | None:
    """Return the engine that the manifest tells of, or None."""
    return EngineInfo.from_dict(manifest.engine) if manifest.engine else None


def served_precision(manifest: Manifest, backend: str) -> str:
    """Return the precision of the file that a Triton backend serves of a version."""
    engine = engine_of(manifest)
    return engine.precision if backend == "tensorrt" and engine is not None else manifest.precision


def check_plan(manifest: Manifest, *, tensorrt_version: str, compute_capability: str) -> None:
    """Check that this TensorRT can load a version's plan on this GPU; a version without a plan passes.

    Args:
        manifest: of the model version.
        tensorrt_version: of the TensorRT that shall load the plan, with or without the build number.
        compute_capability: of the GPU that shall run it, for example ``8.9``.

    Raises:
        RepositoryError: the plan is not for this TensorRT or this GPU, or nothing is known of it; says what to
            rebuild.
    """
    if PLAN_FILE not in manifest.files:
        return
    what = f"{PLAN_FILE} of {manifest.spec.name!r} version {manifest.spec.version}"
    engine = engine_of(manifest)
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
        raise RepositoryError(f"{version!r} is no TensorRT version; expected one like 11.4.0")
    return numbers
