"""The manifest of one served model version: which files belong to it, their hashes, and where they come from.

`export` writes it as ``<model>/<version>/manifest.json``; `serve` refuses a version whose files do not match.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deepfake_preprocess.contract.forms import ServedForm
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.contract.version_files import MODEL_FILE
from deepfake_preprocess.errors import RepositoryError
from deepfake_preprocess.support.json_data import JsonData
from deepfake_preprocess.support.text import reason_of

MANIFEST_NAME = "manifest.json"


def sha256_file(path: Path) -> str:
    """Return the lower-case hexadecimal SHA-256 of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class EngineInfo(JsonData):
    """How a TensorRT engine was built.

    Attributes:
        builder: ``tensorrt``, or ``tensorrt_rtx`` where the graph was only checked without a GPU.
        tensorrt_version: of the builder, for example ``11.4.0.106``.
        compute_capability: of the GPU that the engine is for, for example ``8.9``.
        cuda_version: of the CUDA runtime that the engine was built with, for example ``13.0``; empty where unknown.
        precision: ``fp32``, ``fp16`` or ``int8``, as the types in the ONNX graph say (networks are strongly typed).
        min_batch_size: smallest batch of the optimization profile.
        typical_batch_size: the batch size that kernels were selected for.
        max_batch_size: largest batch of the optimization profile.
        num_layers: layers of the parsed network, before fusion.
        size_bytes: of the engine.
        build_seconds: how long parsing and building took.
        version_compatible: whether later TensorRT versions of the same major version load it too.
        plan: name of the file next to ``manifest.json``; empty where the engine was only built as a check.
    """

    json_error = RepositoryError

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


@dataclass(frozen=True, slots=True)
class Manifest(JsonData):
    """What one model version consists of.

    Attributes:
        format: of the file.
        spec: the model's contract, with version and checkpoint hash filled in.
        files: SHA-256 of every file of the version directory except the manifest, by relative POSIX path.
        precision: of the ONNX file: ``fp32``, ``fp16`` or ``int8``.
        tools: versions of the tools that made the files, by name.
        parity: figures of the proof against the checkpoint (plain JSON data).
        promotion: why that precision is served, and what it was chosen from (plain JSON data); empty where FP32
            was the only one.
        engine: how the TensorRT engine was built; None without one.
        forms: how the embedded server may run it, the promoted form first and one that needs nothing last.
    """

    json_error = RepositoryError

    format: Literal[1] = field(default=1, kw_only=True)
    spec: ModelSpec
    files: Mapping[str, str]
    precision: str
    tools: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    promotion: Mapping[str, Any] = field(default_factory=dict)
    engine: EngineInfo | None = None
    forms: tuple[ServedForm, ...] = ()

    @property
    def served_forms(self) -> tuple[ServedForm, ...]:
        """`forms`, or ONNX Runtime with the ONNX file where nothing else was measured."""
        return self.forms or (ServedForm("onnxruntime", self.precision, MODEL_FILE),)

    def write(self, version_dir: Path) -> Path:
        """Write ``manifest.json`` into `version_dir` and return its path."""
        path = version_dir / MANIFEST_NAME
        path.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, version_dir: Path) -> Manifest:
        """Read the manifest of `version_dir` without checking the files.

        Raises:
            RepositoryError: it is missing or not a manifest of this format.
        """
        path = version_dir / MANIFEST_NAME
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise RepositoryError(
                f"{version_dir} has no {MANIFEST_NAME}; put models there with `deepfake export`"
            ) from None
        except (OSError, ValueError, RepositoryError) as exc:
            raise RepositoryError(
                f"{path}: the manifest is damaged ({reason_of(exc)}); export the model again"
            ) from exc

    def verify(self, version_dir: Path) -> None:
        """Check that the manifest is that of the directory, and that it holds exactly these files, unchanged.

        Raises:
            RepositoryError: names the first few `problems`.
        """
        problems = [f"{name} {what}" for name, what in self.problems(version_dir)]
        if problems:
            shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
            raise RepositoryError(
                f"{version_dir} does not match its manifest: {shown}. Export the model again, or restore the files"
            )

    def problems(self, version_dir: Path) -> list[tuple[str, str]]:
        """Return the files that are missing, changed or unexpected, each with what is wrong with it.

        A manifest that names another model or version than its directory ``<model>/<version>`` is among them.
        """
        actual = file_hashes(version_dir)
        problems = [(name, "is missing") for name in self.files if name not in actual]
        problems += [
            (name, "has changed") for name in self.files if actual.get(name, self.files[name]) != self.files[name]
        ]
        problems += [(name, "is not in the manifest") for name in actual if name not in self.files]
        if (self.spec.name, str(self.spec.version)) != version_dir.absolute().parts[-2:]:
            what = f"is that of {self.spec.name!r} version {self.spec.version}: the folder was copied or renamed"
            problems.append((MANIFEST_NAME, what))
        return problems


def file_hashes(version_dir: Path) -> dict[str, str]:
    """Return `Manifest.files` of a version directory as it is now."""
    return {
        path.relative_to(version_dir).as_posix(): sha256_file(path)
        for path in sorted(version_dir.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME and "__pycache__" not in path.parts
    }
