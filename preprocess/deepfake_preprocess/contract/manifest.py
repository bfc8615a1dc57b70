"""The manifest of one served model version: which files belong to it, their hashes, and where they come from.

`export` writes it as ``<model>/<version>/manifest.json``; `serve` refuses a version whose files do not match.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import RepositoryError, SpecError

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = 1


def sha256_file(path: Path) -> str:
    """Return the lower-case hexadecimal SHA-256 of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one model version consists of.

    Attributes:
        spec: the model's contract, with version and checkpoint hash filled in.
        files: SHA-256 of every file of the version directory but the manifest, by POSIX relative path.
        precision: of the ONNX file: ``fp32``, ``fp16`` or ``int8``.
        tools: versions of the tools that made the files, by name.
        parity: figures of the proof against the checkpoint (plain JSON data).
        promotion: why that precision is served, and what it was chosen from (plain JSON data); empty where FP32
            was the only one.
        engine: what is known of the TensorRT engine (`contract.plan_info.EngineInfo`); empty without one.
    """

    spec: ModelSpec
    files: Mapping[str, str]
    precision: str
    tools: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    promotion: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_directory(
        cls,
        version_dir: Path,
        spec: ModelSpec,
        *,
        precision: str,
        tools: Mapping[str, str],
        parity: Mapping[str, Any],
        promotion: Mapping[str, Any] | None = None,
        engine: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Hash every file of `version_dir` into a new manifest (nothing is written)."""
        return cls(
            spec,
            _hash_files(version_dir),
            precision,
            tools=dict(tools),
            parity=dict(parity),
            promotion=dict(promotion or {}),
            engine=dict(engine or {}),
        )

    def write(self, version_dir: Path) -> Path:
        """Write ``manifest.json`` into `version_dir` and return its path."""
        data = {
            "format": MANIFEST_FORMAT,
            "spec": self.spec.to_dict(),
            "files": dict(self.files),
            "precision": self.precision,
            "tools": dict(self.tools),
            "parity": dict(self.parity),
            "promotion": dict(self.promotion),
            "engine": dict(self.engine),
        }
        path = version_dir / MANIFEST_NAME
        path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, version_dir: Path) -> Manifest:
        """Read the manifest of `version_dir` without checking the files.

        Raises:
            RepositoryError: it is missing or not a manifest of this format.
        """
        path = version_dir / MANIFEST_NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != MANIFEST_FORMAT:
                raise RepositoryError(
                    f"{path}: manifest format {data['format']!r} is not {MANIFEST_FORMAT}; export the model again"
                )
            spec = ModelSpec.from_dict(data["spec"], where=str(path))
            return cls(
                spec,
                dict(data["files"]),
                str(data["precision"]),
                tools=dict(data["tools"]),
                parity=dict(data["parity"]),
                promotion=dict(data["promotion"]),
                engine=dict(data["engine"]),
            )
        except FileNotFoundError:
            raise RepositoryError(
                f"{version_dir} has no {MANIFEST_NAME}; put models there with `deepfake export`"
            ) from None
        except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, SpecError) as exc:
            raise RepositoryError(f"{path}: the manifest is damaged ({exc}); export the model again") from exc

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
        actual = _hash_files(version_dir)
        problems = [(name, "is missing") for name in self.files if name not in actual]
        problems += [
            (name, "has changed") for name in self.files if actual.get(name, self.files[name]) != self.files[name]
        ]
        problems += [(name, "is not in the manifest") for name in actual if name not in self.files]
        if (self.spec.name, str(self.spec.version)) != version_dir.absolute().parts[-2:]:
            what = f"is that of {self.spec.name!r} version {self.spec.version}: the folder was copied or renamed"
            problems.append((MANIFEST_NAME, what))
        return problems


def _hash_files(version_dir: Path) -> dict[str, str]:
    return {
        path.relative_to(version_dir).as_posix(): sha256_file(path)
        for path in sorted(version_dir.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME and "__pycache__" not in path.parts
    }
