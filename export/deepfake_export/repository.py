"""Puts a model version into a Triton model repository, whole or not at all.

A version is made in a hidden directory beside its place and moved in by one rename, so that a crash, a full disk
or Ctrl-C leaves the repository as it was. One lock per model keeps two exports apart. This module knows
nothing of networks: it moves files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deepfake_preprocess.engine import PLAN_FILE
from deepfake_preprocess.errors import RepositoryError
from deepfake_preprocess.manifest import Manifest
from deepfake_preprocess.spec import ModelSpec
from deepfake_preprocess.triton_config import (
    CONFIG_NAME,
    EMBEDDED_CONFIG_NAME,
    EMBEDDED_MAX_BATCH_SIZE,
    embedded_config,
    production_config,
)

MODEL_FILE = "model.onnx"


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a new version is made.

    Attributes:
        version: the number it will get.
        version_dir: an empty directory to put the version's files into.
    """

    version: int
    version_dir: Path


def versions_of(model_dir: Path) -> list[int]:
    """Return the version numbers in a model's directory, in ascending order; those that Triton would see."""
    if not model_dir.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in model_dir.iterdir()
        if path.is_dir() and path.name.isascii() and path.name.isdecimal() and not path.name.startswith("0")
    )


@contextlib.contextmanager
def locked(repository: Path, name: str) -> Iterator[None]:
    """Hold the lock of one model; the repository is created where missing.

    Raises:
        RepositoryError: another export of the model is running, or the repository cannot be written.
    """
    with _translated(repository):
        repository.mkdir(parents=True, exist_ok=True)
        # The file stays: removing it would let two processes lock two files of one name.
        stream = (repository / f"{name}.lock").open("a")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RepositoryError(
                f"another export of {name!r} into {repository} is running; wait for it to end and try again"
            ) from None
        yield


@contextlib.contextmanager
def staged(repository: Path, name: str) -> Iterator[Stage]:
    """Give a directory for the next version of a model; it is removed at the end, whatever happened.

    `publish` moves its content into place. Call it, and this, with the lock held.

    Raises:
        RepositoryError: the disk is full, or the repository cannot be written.
    """
    version = max(versions_of(repository / name), default=0) + 1
    stage = _stage_dir(repository, name)
    with _translated(repository):
        # Left behind only by a process that was killed; nobody else works here while we hold the lock.
        shutil.rmtree(stage, ignore_errors=True)
        try:
            version_dir = stage / str(version)
            version_dir.mkdir(parents=True)
            yield Stage(version, version_dir)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def publish(repository: Path, spec: ModelSpec, *, max_batch_size: int) -> Path:
    """Move the staged version of `spec` into its place and write the model's configurations.

    Returns:
        The model's directory.

    Raises:
        RepositoryError: the disk is full, or the repository cannot be written.
    """
    model_dir, stage = repository / spec.name, _stage_dir(repository, spec.name)
    with _translated(repository):
        if not model_dir.exists():
            _write_configs(stage, spec, max_batch_size=max_batch_size)
            stage.rename(model_dir)
        else:
            (stage / str(spec.version)).rename(model_dir / str(spec.version))
            refresh_configs(model_dir, spec, max_batch_size=max_batch_size)
    return model_dir


def refresh_configs(model_dir: Path, spec: ModelSpec, *, max_batch_size: int) -> None:
    """Write the configurations of the version that is served; each file is replaced in one step.

    Raises:
        RepositoryError: the disk is full, or the repository cannot be written.
    """
    with _translated(model_dir):
        _write_configs(model_dir, spec, max_batch_size=max_batch_size)


def find_identical(repository: Path, spec: ModelSpec) -> Manifest | None:
    """Return the manifest of the latest version if that was made from the same checkpoint and spec and is intact.

    Args:
        repository: the model repository.
        spec: with `checkpoint_sha256`; its `version` does not matter.
    """
    model_dir = repository / spec.name
    versions = versions_of(model_dir)
    if not versions:
        return None
    version_dir = model_dir / str(versions[-1])
    try:
        manifest = Manifest.read(version_dir)
        manifest.verify(version_dir)
    except RepositoryError:
        return None
    return manifest if manifest.spec == dataclasses.replace(spec, version=versions[-1]) else None


def _stage_dir(repository: Path, name: str) -> Path:
    return repository / f".{name}.partial"


def _write_configs(model_dir: Path, spec: ModelSpec, *, max_batch_size: int) -> None:
    has_plan = (model_dir / str(spec.version) / PLAN_FILE).is_file()
    backend = "tensorrt" if has_plan else "onnxruntime"
    texts = {
        CONFIG_NAME: production_config(spec, max_batch_size=max_batch_size, backend=backend),
        EMBEDDED_CONFIG_NAME: embedded_config(spec, max_batch_size=min(max_batch_size, EMBEDDED_MAX_BATCH_SIZE)),
    }
    for name, text in texts.items():
        path = model_dir / name
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def writing(where: Path) -> contextlib.AbstractContextManager[None]:
    """Turn the system's refusals to write inside of `where` into `RepositoryError`."""
    return _translated(where)


@contextlib.contextmanager
def _translated(where: Path) -> Iterator[None]:
    """Turn the system's refusals to write into `RepositoryError`."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RepositoryError(
                f"no space is left for {where}; nothing was added. Free some, or name another --repository"
            ) from exc
        if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise RepositoryError(
                f"{where} cannot be written ({os.strerror(exc.errno)}: {exc.filename}); "
                "change its permissions, or name another --repository"
            ) from exc
        raise
