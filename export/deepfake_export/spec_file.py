"""Reads what a spec file describes, a single checkpoint or an ensemble, and pins the checkpoint by its hash.

Here, above both kinds, is decided which of the two it is. No weights are read and no PyTorch is imported.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

from deepfake_export.checkpoint.file import SPEC_SUFFIXES, check_file, require_sha256, sha256_of, spec_beside
from deepfake_export.ensemble.spec import EnsembleSpec
from deepfake_preprocess.contract.fields import read_mapping
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import SpecError


@dataclass(frozen=True, slots=True)
class PinnedCheckpoint:
    """A checkpoint with its contract, read and hashed once.

    Attributes:
        path: the file with the weights, or the YAML file of an ensemble.
        spec: the contract, with `checkpoint_sha256` filled in.
        ensemble: the members and how they are combined; None for a single checkpoint.
        description: what the ensemble is, as `EnsembleSpec.identity` gives it; empty for a single checkpoint.
    """

    path: Path
    spec: ModelSpec
    ensemble: EnsembleSpec | None = None
    description: str = ""


def pin_checkpoint(checkpoint: str | Path, spec: ModelSpec | str | Path | None = None) -> PinnedCheckpoint:
    """Read a checkpoint's contract and fill in the checkpoint's hash.

    Args:
        checkpoint: the file with the weights, or the YAML file of an ensemble.
        spec: its contract, or the YAML file of that; None takes the file of the checkpoint's name next to it.

    Raises:
        SpecError: there is no spec, or it is wrong.
        CheckpointError: a file cannot be a checkpoint, or the spec holds another hash.
    """
    path = Path(checkpoint)
    if path.suffix not in SPEC_SUFFIXES:
        check_file(path)  # first: without it, a word about its spec would mislead
    found: ModelSpec | EnsembleSpec
    found = spec if isinstance(spec, ModelSpec) else _read(_default_spec_path(path) if spec is None else Path(spec))
    if isinstance(found, ModelSpec) and found.architecture_family != "ensemble":
        sha256 = sha256_of(path, found.checkpoint_sha256)
        return PinnedCheckpoint(path, dataclasses.replace(found, checkpoint_sha256=sha256))
    if not isinstance(found, EnsembleSpec):
        found = dataclasses.replace(EnsembleSpec.from_yaml(path), spec=found)
    description = found.identity()
    sha256 = hashlib.sha256(description.encode()).hexdigest()
    require_sha256(path, sha256, found.spec.checkpoint_sha256)
    return PinnedCheckpoint(path, dataclasses.replace(found.spec, checkpoint_sha256=sha256), found, description)


def _default_spec_path(checkpoint: Path) -> Path:
    """Return the spec file of the checkpoint's name next to it, or the ensemble's file itself."""
    if checkpoint.suffix in SPEC_SUFFIXES:  # an ensemble's file is spec and checkpoint in one
        return checkpoint
    if (path := spec_beside(checkpoint)) is None:
        raise SpecError(
            f"{checkpoint.with_suffix('.yaml')}: there is no such spec file; `deepfake init-spec "
            f"{checkpoint}` writes a first one, or name it as `spec`"
        )
    return path


def _read(path: Path) -> ModelSpec | EnsembleSpec:
    data = read_mapping(path)
    if data.get("architecture") == "ensemble" or "members" in data:
        return EnsembleSpec.from_dict(data, path)
    return ModelSpec.from_dict(data, where=str(path))
