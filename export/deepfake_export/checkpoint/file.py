"""What can be said of a checkpoint file without reading its tensors: is it one, the right one, and where is its spec.

Kept apart from `loading`: an export that has nothing to do answers without loading PyTorch.
"""

from __future__ import annotations

from pathlib import Path

from deepfake_preprocess.contract.manifest import sha256_file
from deepfake_preprocess.errors import CheckpointError

LFS_MARK = b"version https://git-lfs"
SPEC_SUFFIXES = (".yaml", ".yml")


def spec_beside(checkpoint: Path) -> Path | None:
    """Return the spec file of the checkpoint's name next to it, where there is one."""
    places = (checkpoint.with_suffix(suffix) for suffix in SPEC_SUFFIXES)
    return next((path for path in places if path.is_file()), None)


def sha256_of(path: Path, expected: str | None = None) -> str:
    """Return the SHA-256 of a checkpoint file, whose spec may hold the one expected.

    Raises:
        CheckpointError: the file is missing, empty, a directory or a Git LFS pointer, cannot be read, or has another
            hash than `expected`.
    """
    check_file(path)
    sha256 = sha256_file(path)
    require_sha256(path, sha256, expected)
    return sha256


def require_sha256(path: Path, sha256: str, expected: str | None) -> None:
    """Check that the hash of a checkpoint is what its spec holds; `CheckpointError` where it is not."""
    if expected not in (None, sha256):
        raise CheckpointError(
            f"{path} is not the checkpoint of this spec: its SHA-256 is {sha256}, the spec says {expected}; get the "
            "right file, or correct 'checkpoint_sha256' in the spec"
        )


def check_file(path: Path) -> None:
    """Check that a file can be a checkpoint at all; `CheckpointError` where it cannot."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; name the checkpoint file in it")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is a pipe or a device, which cannot be read twice; save it to a file")
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
