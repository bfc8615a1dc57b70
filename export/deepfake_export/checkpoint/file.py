"""What can be said of a checkpoint file without reading its tensors: is it there, and is it the right one.

Kept apart from `checkpoint`, so that an export that has nothing to do answers without loading PyTorch.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from deepfake_preprocess.contract.manifest import sha256_file
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import CheckpointError

LFS_MARK = b"version https://git-lfs"


def pin_checkpoint(checkpoint: str | Path, spec: ModelSpec) -> ModelSpec:
    """Return the spec with the checkpoint's hash filled in.

    Raises:
        CheckpointError: the file cannot be a checkpoint, or the spec holds another hash.
    """
    path = Path(checkpoint)
    if spec.architecture_family == "ensemble":
        from deepfake_export.ensemble.spec import EnsembleSpec

        sha256 = EnsembleSpec.from_yaml(path).identity_sha256()
    else:
        check_file(path)
        sha256 = sha256_file(path)
    if spec.checkpoint_sha256 not in (None, sha256):
        raise CheckpointError(
            f"{path} is not the checkpoint of this spec: its SHA-256 is {sha256}, the spec says "
            f"{spec.checkpoint_sha256}; get the right file, or correct 'checkpoint_sha256' in the spec"
        )
    return dataclasses.replace(spec, checkpoint_sha256=sha256)


def check_file(path: Path) -> None:
    """Do nothing where a file can be a checkpoint.

    Raises:
        CheckpointError: it is missing, empty, a directory or a Git LFS pointer, or cannot be read.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; name the checkpoint file in it")
    try:
        with path.open("rb") as stream:
            start = stream.read(len(LFS_MARK))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint") from None
    except OSError as exc:
        raise CheckpointError(f"{path}: the checkpoint cannot be read ({exc.strerror})") from exc
    if not start:
        raise CheckpointError(f"{path} is empty; it was probably not copied or downloaded to the end")
    if start == LFS_MARK:
        raise CheckpointError(f"{path} is only a Git LFS pointer; fetch the file itself with: git lfs pull")
