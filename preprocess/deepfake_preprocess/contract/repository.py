"""What a model repository holds, for whoever serves or changes it: its models, and which version each one serves.

One model's own folder is described in `contract.model_dir`. This module only reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deepfake_preprocess.contract.model_dir import served_version, versions_of
from deepfake_preprocess.contract.triton_config import (
    CONFIG_NAME,
    CPU_CONFIG_NAME,
    EMBEDDED_CONFIG_NAME,
    read_config,
)
from deepfake_preprocess.errors import RepositoryError

CONFIG_NAMES: Final = (CONFIG_NAME, EMBEDDED_CONFIG_NAME, CPU_CONFIG_NAME)

EXPORT_FIRST: Final = "put a model there with `deepfake export`"


def model_names(repository: Path) -> list[str]:
    """Return the names of all models in ascending order, those without a version included."""
    if not repository.is_dir():
        what = "this is not a folder" if repository.exists() else "there is no such model repository"
        raise RepositoryError(f"{repository}: {what}; `deepfake export` makes one, or name another `repository`")
    try:
        return sorted(path.name for path in repository.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as exc:
        raise RepositoryError(f"{repository} cannot be read ({exc.strerror}); change its permissions") from exc


def model_dirs(repository: Path, models: Sequence[str] = ()) -> list[Path]:
    """Return the folders of models that hold a version: of those named, or of all where none is.

    A configuration without weights is normal (the weights are not in git); only asking for it is an error.
    """
    present = model_names(repository)
    found = [repository / name for name in checked_names(repository, models, present)]
    filled = [model_dir for model_dir in found if versions_of(model_dir)]
    if not found:
        raise RepositoryError(f"{repository} holds no model; {EXPORT_FIRST}")
    for model_dir in found:
        if model_dir not in filled and (models or not filled):
            raise RepositoryError(f"{model_dir} holds no version, so there are no weights; {EXPORT_FIRST}")
    return filled


def empty_models(repository: Path) -> list[str]:
    """Return the names of folders without a version, which the embedded server passes over and NVIDIA's refuses."""
    return [name for name in model_names(repository) if not versions_of(repository / name)]


def checked_names(repository: Path, models: Sequence[str], present: Sequence[str]) -> list[str]:
    """Return `models` without repetitions, each of which must be `present`, or all that are where it is empty."""
    for name in models:
        if name not in present:
            raise RepositoryError(f"{repository} holds no model {name!r}, only: {', '.join(present) or 'nothing'}")
    return list(dict.fromkeys(models) or present)


def served_in(model_dir: Path, config_name: str = CONFIG_NAME) -> int:
    """Return the version that a model's configuration serves; see `served_version`."""
    versions = versions_of(model_dir)
    if not versions:
        raise RepositoryError(f"{model_dir} holds no version; {EXPORT_FIRST}")
    path = model_dir / config_name
    return served_version(read_config(path), versions, where=path)
