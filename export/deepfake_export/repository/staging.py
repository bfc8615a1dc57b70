"""Puts a model version into a Triton model repository, completely or not at all.

A version is made in a hidden directory and moved in by one rename; then each configuration is replaced by one
rename, which is what makes the version served. So a crash, a full disk or Ctrl-C leaves the repository as it was,
or with a version that nobody serves yet. This module knows nothing of networks: it moves files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from deepfake_export.repository.configs import prepared_configs
from deepfake_export.repository.locks import writing
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.model_dir import served_version, versions_of
from deepfake_preprocess.contract.repository import CONFIG_NAMES, served_in
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.contract.triton_config import read_config
from deepfake_preprocess.errors import RepositoryError
from deepfake_preprocess.support.files import sync


@contextlib.contextmanager
def staged(repository: Path, name: str) -> Iterator[Path]:
    """Give an empty directory, named by its number, for a model's next version; it is removed in any case.

    `publish` moves its content into place. Call it, and this, with the lock held. Both raise `RepositoryError` where
    the disk is full, or the repository cannot be written.
    """
    version = max(versions_of(repository / name), default=0) + 1
    stage = _stage_dir(repository, name)
    with writing(repository):
        clear_leftovers(repository, name)
        try:
            version_dir = stage / str(version)
            version_dir.mkdir(parents=True)
            yield version_dir
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def publish(repository: Path, manifest: Manifest, *, max_batch_size: int) -> Path:
    """Move the staged version of a manifest into its place, serve it, and return the model's directory."""
    spec = manifest.spec
    model_dir, stage = repository / spec.name, _stage_dir(repository, spec.name)
    made = stage / str(spec.version)
    with writing(repository):
        if model_dir.exists():
            with prepared_configs(model_dir, made, manifest, max_batch_size=max_batch_size) as switch:
                _sync_tree(stage)
                _put_into_service(made, model_dir, spec.version, switch)
        else:
            with prepared_configs(stage, made, manifest, max_batch_size=max_batch_size) as switch:
                switch()
            _sync_tree(stage)
            _move_in(stage, model_dir)
        sync(model_dir)
        sync(repository)
    return model_dir


def find_identical(repository: Path, spec: ModelSpec) -> Manifest | None:
    """Return the manifest of the served or newest version that was made from the same checkpoint and spec.

    The two differ after a rollback. Older ones do not count: exporting an old checkpoint again makes a new version,
    so the newest version is always the last export. A version that is not intact does not count either. The `version`
    of `spec` does not matter.
    """
    model_dir = repository / spec.name
    candidates = versions_of(model_dir)[-1:]
    with contextlib.suppress(RepositoryError):
        candidates = [served_in(model_dir), *candidates]
    for version in dict.fromkeys(candidates):
        version_dir = model_dir / str(version)
        with contextlib.suppress(RepositoryError):
            manifest = Manifest.read(version_dir)
            manifest.verify(version_dir)
            if manifest.spec == dataclasses.replace(spec, version=version):
                return manifest
    return None


def leftovers(repository: Path, name: str) -> list[Path]:
    """Return what a killed export, rollback or prune of a model left behind; nothing of it is ever served."""
    model_dir = repository / name
    partial = [path for place in (model_dir, model_dir / "configs") for path in sorted(place.glob(".*partial"))]
    places = [*_stage_places(repository, name), removed_dir(model_dir), *partial]
    return [path for path in dict.fromkeys(places) if os.path.lexists(path)]


def clear_leftovers(repository: Path, name: str) -> None:
    """Delete what `leftovers` finds. Call it with the lock held: nobody else works there then."""
    for path in leftovers(repository, name):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def begun_models(repository: Path) -> set[str]:
    """Return the names of the models whose first version a killed export has left incomplete."""
    here = repository.absolute()
    begun = {path for path in repository.glob(".*.partial") if path.is_dir()}
    beside = {path for path in here.parent.glob(f".{here.name}.*.partial") if path.is_dir()}
    names = {path.name.removeprefix(".") for path in begun}
    names |= {path.name.removeprefix(f".{here.name}.") for path in beside}
    return {name.removesuffix(".partial") for name in names}


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
    configuration (seen with 2.51); in a model's folder it passes over names that are not numbers. So a known model
    gets its new version in its own folder, and a new model next to the repository, where that is possible.
    """
    inside_model, beside, inside_repository = _stage_places(repository, name)
    if inside_model.parent.exists():
        return inside_model
    same_device = repository.stat().st_dev == beside.parent.stat().st_dev
    return beside if same_device and os.access(beside.parent, os.W_OK | os.X_OK) else inside_repository


def _put_into_service(made: Path, model_dir: Path, version: int, switch: Callable[[], None]) -> None:
    """Move a finished version into its model's folder, and its configurations in by `switch`.

    Configurations name the version that they serve. So the version comes first, and is not loaded until it is named;
    only where a configuration names it already (weights that git does not keep) is it the other way round, and it
    is never loaded with the parameters of another one.
    """
    version_dir = model_dir / str(version)
    if _is_named(model_dir, version):
        switch()
        made.rename(version_dir)
        return
    made.rename(version_dir)
    try:
        switch()
    except OSError:
        # Nothing names it yet, so it goes away with the stage.
        if not _is_named(model_dir, version):
            version_dir.rename(made)
        raise


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
    for path in (model_dir / name for name in CONFIG_NAMES):
        with contextlib.suppress(RepositoryError):
            if served_version(read_config(path), [*versions_of(model_dir), version], where=path) == version:
                return True
    return False


def _sync_tree(directory: Path) -> None:
    for path in (*directory.rglob("*"), directory):
        sync(path)
