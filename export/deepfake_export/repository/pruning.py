"""Removes old versions of a model: `deepfake repository prune`. Never one that is served or in use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from deepfake_export.repository.listing import size_bytes
from deepfake_export.repository.locks import locked, writing
from deepfake_export.repository.staging import clear_leftovers, removed_dir
from deepfake_preprocess.contract.model_dir import claimed_versions, versions_of
from deepfake_preprocess.contract.repository import CONFIG_NAMES, model_dirs, served_in
from deepfake_preprocess.contract.triton_config import CONFIG_NAME
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.json_data import JsonData


@dataclass(frozen=True, slots=True)
class Pruning(JsonData):
    """What a pruning removes, or did.

    Attributes:
        served: versions that a configuration names, which are never removed.
        done: False where nothing was changed: a dry run, or it was not confirmed.
    """

    model: str
    served: tuple[int, ...]
    kept: tuple[int, ...]
    removed: tuple[int, ...]
    freed_bytes: int
    done: bool


def prune(
    repository: str | Path,
    model: str,
    *,
    keep: int,
    dry_run: bool = False,
    confirm: Callable[[Pruning], bool] = lambda plan: True,
) -> Pruning:
    """Remove old versions of a model, but never one that a configuration or a running server names.

    They are first moved aside, each in one step, and then deleted: a crash leaves no incomplete version. The newest
    `keep` versions stay, and the served one as well. `confirm` gets the plan when nothing can come between any more,
    and may refuse it; a dry run only returns it.

    Raises:
        OptionError: `keep` is below 1.
        RepositoryError: no configuration says which version is served, one that would go is in use, the repository
            cannot be written, or another change of the model is under way.
    """
    if keep < 1:
        raise OptionError(f"keep is {keep}; allowed: a whole number from 1")
    repository = Path(repository)
    (model_dir,) = model_dirs(repository, [model])
    if dry_run:
        return _plan(model_dir, keep)
    with locked(repository, model, create=False), writing(repository):
        plan = _plan(model_dir, keep)
        paths = [model_dir / str(version) for version in plan.removed]
        with claimed_versions(paths):
            if not confirm(plan):
                return plan
            clear_leftovers(repository, model)
            if paths:
                aside = removed_dir(model_dir)
                aside.mkdir()
                for path in paths:
                    path.rename(aside / path.name)
        clear_leftovers(repository, model)
        return replace(plan, done=True)


def _plan(model_dir: Path, keep: int) -> Pruning:
    versions = versions_of(model_dir)
    there = [name for name in CONFIG_NAMES if (model_dir / name).exists()] or [CONFIG_NAME]
    served = {served_in(model_dir, name) for name in there}
    kept = sorted({*versions[-keep:], *served})
    removed = [version for version in versions if version not in kept]
    freed_bytes = sum(size_bytes(model_dir / str(version)) for version in removed)
    return Pruning(model_dir.name, tuple(sorted(served)), tuple(kept), tuple(removed), freed_bytes, done=False)
