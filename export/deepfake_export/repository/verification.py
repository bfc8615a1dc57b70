"""Finds what is wrong in a model repository: files against their manifest, configurations against their version.

Works on files alone, without PyTorch, and on repositories in any state: what is damaged is reported, not hidden.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepfake_export.repository.locks import lock_path
from deepfake_export.repository.staging import leftovers
from deepfake_preprocess.contract.config_check import contract_problems, production_problems
from deepfake_preprocess.contract.manifest import MANIFEST_NAME, Manifest
from deepfake_preprocess.contract.model_dir import lock_holders, served_version, versions_of
from deepfake_preprocess.contract.plan_info import REBUILD, check_plan
from deepfake_preprocess.contract.triton_config import read_config, tuned_options
from deepfake_preprocess.contract.version_files import PLAN_FILE
from deepfake_preprocess.errors import RepositoryError
from deepfake_preprocess.support.json_data import JsonData


@dataclass(frozen=True, slots=True)
class RepositoryProblem(JsonData):
    """Something that is wrong in a repository.

    Attributes:
        file: path relative to the repository; a folder where all of it is meant.
        what: what is wrong with it.
        fix: what to do.
        harmless: True where serving is not affected, as by what a killed export left behind.
    """

    model: str
    file: str
    what: str
    fix: str
    harmless: bool = False


def check_version(
    version_dir: Path, *, served: bool, plan_target: tuple[str, str] | None = None
) -> tuple[Manifest | None, list[RepositoryProblem]]:
    """Return a version's manifest, where it can be read, and what is wrong with its files and its TensorRT plan.

    `served` says whether the production configuration names it; of other versions no plan is loaded. `plan_target` is
    the TensorRT version and the compute capability that will load the plan; None checks only that the manifest says
    what it was built for.
    """
    name, where = version_dir.parent.name, f"{version_dir.parent.name}/{version_dir.name}"
    fix = (
        f"restore it, export the model again, or serve another version with `deepfake repository rollback {name}`"
        if served
        else "restore it, or export the model again; nothing serves this version"
    )
    manifest: Manifest | None = None
    try:
        manifest = Manifest.read(version_dir)
        damaged = manifest.problems(version_dir)
    except (RepositoryError, OSError) as exc:
        missing = not (version_dir / MANIFEST_NAME).exists()
        what = "is missing, so nothing proves the version intact" if missing else f"cannot be used: {exc}"
        damaged = [(MANIFEST_NAME, what)]
    found = [RepositoryProblem(name, f"{where}/{file}", what, fix) for file, what in damaged]
    if manifest is not None:
        try:
            engine = manifest.engine
            built_for = (engine.tensorrt_version, engine.compute_capability) if engine else ("0", "")
            version, capability = plan_target or built_for
            check_plan(manifest, tensorrt_version=version, compute_capability=capability)
        except RepositoryError as exc:
            what, _, _ = str(exc).partition(f"; {REBUILD}")
            found.append(RepositoryProblem(name, f"{where}/{PLAN_FILE}", what, REBUILD, harmless=not served))
    return manifest, found


def check_config(model_dir: Path, config_name: str) -> tuple[int | None, list[RepositoryProblem]]:
    """Return the version that a configuration serves, None where it names none that is there; and what is wrong."""
    name, path = model_dir.name, model_dir / config_name

    def problems(found: Sequence[str], fix: str) -> list[RepositoryProblem]:
        return [RepositoryProblem(name, f"{name}/{config_name}", what, fix) for what in found]

    newest = max(versions_of(model_dir), default="VERSION")
    rewrite = f"`deepfake repository rollback {name} {newest}` writes it again"
    if not path.exists():
        return None, problems(["is missing"], rewrite)
    try:
        config = read_config(path)
        # Looked for after the configuration was read: an export moves its version in first, and names it then.
        versions = versions_of(model_dir)
        if not versions:
            return None, problems(production_problems(config), "export the model again")
        served = served_version(config, versions, where=path)
    except RepositoryError as exc:
        return None, problems([f"cannot be used: {str(exc).removeprefix(str(path)).strip(' :')}"], rewrite)
    found = production_problems(config)
    try:
        tuned_options(config)
    except RepositoryError as exc:
        found.append(str(exc))
    with contextlib.suppress(RepositoryError):  # a damaged manifest is reported with its version
        manifest = Manifest.read(model_dir / str(served))
        found += contract_problems(config, manifest, config_name=config_name)
        if config.default_model_filename and config.default_model_filename not in manifest.files:
            found.append(f"loads {config.default_model_filename}, which version {served} does not hold")
        engine = manifest.engine
        if config.default_model_filename == PLAN_FILE and engine and config.max_batch_size > engine.max_batch_size:
            found.append(f"forms batches of {config.max_batch_size}, but the plan takes {engine.max_batch_size}")
    return served, problems(found, f"`deepfake repository rollback {name} {served}` writes it again")


def check_leftovers(repository: Path, name: str) -> Iterator[RepositoryProblem]:
    """Yield what a killed change of a model left behind, or what one under way is making."""
    busy = lock_holders(lock_path(repository, name))
    for path in leftovers(repository, name):
        # Triton takes every folder of a repository for a model, and does not start with one that is not.
        harmless = path.parent.absolute() != repository.absolute()
        shown = path.relative_to(repository).as_posix() if path.is_relative_to(repository) else str(path)
        if busy:
            what, fix = f"belongs to a change that process {busy[0]} is making now", "wait for it to end"
        else:
            what = "was left behind by a process that was killed; nothing of it is served"
            what += "" if harmless else ", but NVIDIA's container does not start with it in the repository"
            fix = "the next export of the model clears it away, or delete it"
        yield RepositoryProblem(name, shown, what, fix, harmless)
