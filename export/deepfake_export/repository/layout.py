"""Puts a model version into a Triton model repository, whole or not at all.

A version is made in a hidden directory and moved in by one rename; then each configuration is replaced by one
rename, which is what makes the version served. So a crash, a full disk or Ctrl-C leaves the repository as it was,
or with a version that nobody serves yet. One lock per model keeps two exports apart. This module knows nothing of
networks: it moves files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.model_dir import served_version, who_locks
from deepfake_preprocess.contract.model_dir import versions_of as versions_of
from deepfake_preprocess.contract.plan_info import served_precision
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.contract.triton_config import (
    CONFIG_NAME,
    EMBEDDED_CONFIG_NAME,
    PRODUCTION_BACKENDS,
    ServingOptions,
    embedded_config,
    production_config,
    read_config,
    tuned_options,
)
from deepfake_preprocess.errors import RepositoryError
from deepfake_preprocess.support.files import prepared, sync

MODEL_FILE = "model.onnx"
ENGINE_SOURCE = "engine.onnx"
"""What TensorRT plans are built from, where a version has it; they are built from `MODEL_FILE` otherwise. INT8 in the
form for CPUs is nothing for TensorRT, so such a version holds the next best precision, too."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EXDEV),
)
"""What the system answers to a write that no second try will make."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a new version is made.

    Attributes:
        version: the number it will get.
        version_dir: an empty directory to put the version's files into.
    """

    version: int
    version_dir: Path


@contextlib.contextmanager
def locked(repository: Path, name: str, *, create: bool = True) -> Iterator[None]:
    """Hold the lock of one model, which every change of it needs.

    Args:
        repository: the model repository.
        name: the model.
        create: make the repository where it is missing.

    Raises:
        RepositoryError: another change of the model is under way, or the repository cannot be written.
    """
    path = lock_path(repository, name)
    with _translated(repository):
        if create:
            repository.mkdir(parents=True, exist_ok=True)
        # The file stays: removing it would let two processes lock two files of one name.
        stream = path.open("a")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RepositoryError(
                f"another export of {name!r}, or a rollback or prune, is running on {repository} "
                f"({who_locks(path)}); wait for it to end and try again"
            ) from None
        except OSError as exc:
            raise RepositoryError(
                f"{path} cannot be locked ({exc.strerror}); put the repository on a file system with locks"
            ) from exc
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
        clear_leftovers(repository, name)
        try:
            version_dir = stage / str(version)
            version_dir.mkdir(parents=True)
            yield Stage(version, version_dir)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def publish(repository: Path, manifest: Manifest, *, max_batch_size: int) -> Path:
    """Move the staged version of a manifest into its place and make it the one that is served.

    Args:
        repository: the model repository.
        manifest: of the staged version.
        max_batch_size: largest batch of the production configuration.

    Returns:
        The model's directory.

    Raises:
        RepositoryError: the disk is full, or the repository cannot be written.
    """
    spec = manifest.spec
    model_dir, stage = repository / spec.name, _stage_dir(repository, spec.name)
    with _translated(repository):
        made = stage / str(spec.version)
        if not model_dir.exists():
            with _prepared_configs(stage, made, manifest, max_batch_size=max_batch_size) as switch:
                switch()
            _sync_tree(stage)
            _move_in(stage, model_dir)
        else:
            version_dir = model_dir / str(spec.version)
            with _prepared_configs(model_dir, made, manifest, max_batch_size=max_batch_size) as switch:
                _sync_tree(stage)
                # Configurations name the version that they serve. So the version comes first, and is not loaded until
                # it is named; only where a configuration names it already (weights that git does not keep) the other
                # way round, so that it is never loaded with parameters of another one.
                if _is_named(model_dir, spec.version):
                    switch()
                    made.rename(version_dir)
                else:
                    made.rename(version_dir)
                    try:
                        switch()
                    except OSError:
                        # Nothing names it yet, so it goes away with the stage.
                        if not _is_named(model_dir, spec.version):
                            version_dir.rename(made)
                        raise
        sync(model_dir)
        sync(repository)
    return model_dir


def refresh_configs(
    model_dir: Path, manifest: Manifest, *, max_batch_size: int, options: ServingOptions | None = None
) -> None:
    """Write the configurations of the version that is to be served; each file is replaced in one step.

    Args:
        model_dir: the model's directory.
        manifest: of the version.
        max_batch_size: largest batch of the production configuration; of the embedded one at most.
        options: of the embedded configuration; those that were tuned are kept when None.

    Raises:
        RepositoryError: the disk is full, or the repository cannot be written.
    """
    version_dir = model_dir / str(manifest.spec.version)
    prepared = _prepared_configs(model_dir, version_dir, manifest, max_batch_size=max_batch_size, options=options)
    with _translated(model_dir), prepared as switch:
        switch()


def find_identical(repository: Path, spec: ModelSpec) -> Manifest | None:
    """Return the manifest of the served or newest version that was made from the same checkpoint and spec.

    The two differ after a rollback. Older ones do not count: exporting an old checkpoint again makes a new version,
    so that the newest version is always the last export. A version that is not intact does not count either.

    Args:
        repository: the model repository.
        spec: with `checkpoint_sha256`; its `version` does not matter.
    """
    model_dir = repository / spec.name
    versions = versions_of(model_dir)
    candidates = versions[-1:]
    with contextlib.suppress(RepositoryError):
        candidates = [served_in(model_dir), *candidates]
    for version in dict.fromkeys(candidates):
        version_dir = model_dir / str(version)
        try:
            manifest = Manifest.read(version_dir)
            manifest.verify(version_dir)
        except RepositoryError:
            continue
        if manifest.spec == dataclasses.replace(spec, version=version):
            return manifest
    return None


def served_in(model_dir: Path, config_name: str = CONFIG_NAME) -> int:
    """Return the version that a model's configuration serves.

    Raises:
        RepositoryError: there is no version, no configuration, or it does not name exactly one that is there.
    """
    versions = versions_of(model_dir)
    if not versions:
        raise RepositoryError(f"{model_dir} holds no version; put a model there with `deepfake export`")
    path = model_dir / config_name
    return served_version(read_config(path), versions, where=path)


def lock_path(repository: Path, name: str) -> Path:
    """Return the file that is locked while a model is changed."""
    return repository / f"{name}.lock"


def leftovers(repository: Path, name: str) -> list[Path]:
    """Return what a killed export, rollback or prune of a model left behind; nothing of it is ever served."""
    model_dir = repository / name
    half = [*model_dir.glob(".*partial"), *(model_dir / EMBEDDED_CONFIG_NAME).parent.glob(".*partial")]
    places = [*_stage_places(repository, name), removed_dir(model_dir), *sorted(half)]
    return [path for path in dict.fromkeys(places) if os.path.lexists(path)]


def clear_leftovers(repository: Path, name: str) -> None:
    """Delete what `leftovers` finds. Call it with the lock held: nobody else works there then."""
    for path in leftovers(repository, name):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def removed_dir(model_dir: Path) -> Path:
    """Return where versions go on their way out; a folder that Triton passes over."""
    return model_dir / ".removed"


def _stage_places(repository: Path, name: str) -> tuple[Path, Path, Path]:
    return (
        repository / name / ".partial",
        repository.absolute().parent / f".{repository.absolute().name}.{name}.partial",
        repository / f".{name}.partial",
    )


def _stage_dir(repository: Path, name: str) -> Path:
    """Return where the next version of a model is made.

    Triton takes *every* folder of a repository for a model, hidden ones too, and does not start where one has no
    configuration (seen with 2.51); in a model's folder it passes over names that are no numbers. So a known model
    gets its new version in its own folder, and a new model beside the repository, where that is possible.
    """
    inside_model, beside, inside_repository = _stage_places(repository, name)
    if inside_model.parent.exists():
        return inside_model
    same_device = repository.stat().st_dev == beside.parent.stat().st_dev
    return beside if same_device and os.access(beside.parent, os.W_OK | os.X_OK) else inside_repository


def _move_in(stage: Path, model_dir: Path) -> None:
    try:
        stage.rename(model_dir)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        # A mount point that shows as the same device. Copied into the repository first, for one rename all the same.
        inside_repository = _stage_places(model_dir.parent, model_dir.name)[2]
        try:
            shutil.copytree(stage, inside_repository)
            _sync_tree(inside_repository)
            inside_repository.rename(model_dir)
        finally:
            shutil.rmtree(inside_repository, ignore_errors=True)


def _is_named(model_dir: Path, version: int) -> bool:
    """Return whether a configuration would serve `version` once it is there."""
    for name in (CONFIG_NAME, EMBEDDED_CONFIG_NAME):
        with contextlib.suppress(RepositoryError):
            config = read_config(model_dir / name)
            if served_version(config, [*versions_of(model_dir), version], where=model_dir / name) == version:
                return True
    return False


@contextlib.contextmanager
def _prepared_configs(
    model_dir: Path,
    version_dir: Path,
    manifest: Manifest,
    *,
    max_batch_size: int,
    options: ServingOptions | None = None,
) -> Iterator[Callable[[], None]]:
    """Write both configurations beside their places, where a full disk does no harm; the result moves them in.

    Production runs the plan where the version has one.
    """
    options = options or _options_in(model_dir)
    backend = "tensorrt" if (version_dir / PRODUCTION_BACKENDS["tensorrt"]).is_file() else "onnxruntime"
    texts = {
        CONFIG_NAME: production_config(
            manifest.spec,
            max_batch_size=max_batch_size,
            backend=backend,
            precision=served_precision(manifest, backend),
        ),
        EMBEDDED_CONFIG_NAME: embedded_config(
            manifest.spec,
            options=_with_batches_up_to(max_batch_size, options),
            precision=manifest.precision,
        ),
    }
    moves: list[Callable[[], None]] = []

    def switch() -> None:
        for put_in_place in moves:
            put_in_place()

    with contextlib.ExitStack() as stack:
        for name, text in texts.items():
            path = model_dir / name
            path.parent.mkdir(exist_ok=True)
            moves.append(stack.enter_context(prepared(path, text)))
        yield switch


def _options_in(model_dir: Path) -> ServingOptions:
    """Return the options that were tuned for a model, or the defaults; damaged ones are healed with these."""
    with contextlib.suppress(RepositoryError):
        return tuned_options(read_config(model_dir / EMBEDDED_CONFIG_NAME)) or ServingOptions()
    return ServingOptions()


def _with_batches_up_to(size: int, options: ServingOptions) -> ServingOptions:
    preferred = options.preferred_batch_size
    return dataclasses.replace(
        options,
        max_batch_size=min(size, options.max_batch_size),
        preferred_batch_size=None if preferred is None else min(size, preferred),
    )


def _sync_tree(directory: Path) -> None:
    for path in (*directory.rglob("*"), directory):
        sync(path)


def writing(where: Path) -> contextlib.AbstractContextManager[None]:
    """Turn the system's refusals to write inside of `where` into `RepositoryError`."""
    return _translated(where)


@contextlib.contextmanager
def _translated(where: Path) -> Iterator[None]:
    """Turn the system's refusals to write into `RepositoryError`."""
    try:
        yield
    except OSError as exc:
        if exc.errno in NO_SPACE:
            raise RepositoryError(
                f"no space is left for {where} ({os.strerror(exc.errno)}); what is served is unchanged. Free some, "
                "or name another --repository"
            ) from exc
        if exc.errno in NOT_WRITABLE:
            raise RepositoryError(
                f"{where} cannot be written ({os.strerror(exc.errno)}: {exc.filename or where}); "
                "change its permissions, or name another --repository"
            ) from exc
        raise
