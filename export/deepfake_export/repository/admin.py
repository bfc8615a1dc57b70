"""The library behind `deepfake repository`: what a model repository holds, whether it is whole, and what is served.

Works on files alone, without PyTorch, and on repositories in any state: what is damaged is reported, not hidden.
Every change is made under the lock that an export takes, by renames, and leaves running servers alone.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deepfake_export.repository import layout as repo
from deepfake_preprocess.contract.config_check import contract_problems, production_problems
from deepfake_preprocess.contract.manifest import MANIFEST_NAME, Manifest
from deepfake_preprocess.contract.model_dir import claimed_versions, lock_holders, served_version, versions_of
from deepfake_preprocess.contract.plan_info import PLAN_FILE, REBUILD, check_plan, engine_of
from deepfake_preprocess.contract.triton_config import (
    CONFIG_NAME,
    EMBEDDED_BACKEND,
    EMBEDDED_CONFIG_NAME,
    PRODUCTION_MAX_BATCH_SIZE,
    ServingOptions,
    read_config,
    tuned_options,
)
from deepfake_preprocess.errors import OptionError, RepositoryError

CONFIG_NAMES = (CONFIG_NAME, EMBEDDED_CONFIG_NAME)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong in a repository.

    Attributes:
        model: name of the model.
        file: path relative to the repository; a folder where the whole of it is meant.
        what: what is wrong with it.
        fix: what to do.
        harmless: True where serving is not affected, as by what a killed export left behind.
    """

    model: str
    file: str
    what: str
    fix: str
    harmless: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "model": self.model,
            "file": self.file,
            "what": self.what,
            "fix": self.fix,
            "harmless": self.harmless,
        }


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version of a model.

    Attributes:
        version: its number.
        served: whether the production configuration names it.
        precision: as the proof of its export says; ``-`` where unknown.
        size_bytes: of all its files.
        created: when its manifest was written, as ISO 8601 in UTC; empty where there is none.
        checkpoint_sha256: hash of its checkpoint; None where unknown.
        threshold: decision threshold; None where unknown.
        in_use_by: ids of the processes of this machine that serve it now.
        problems: why it is damaged; empty where it is whole.
    """

    version: int
    served: bool
    precision: str
    size_bytes: int
    created: str
    checkpoint_sha256: str | None
    threshold: float | None
    in_use_by: tuple[int, ...]
    problems: tuple[Problem, ...]

    @property
    def status(self) -> str:
        """``ok`` or ``damaged``."""
        return "ok" if all(problem.harmless for problem in self.problems) else "damaged"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "version": self.version,
            "served": self.served,
            "status": self.status,
            "precision": self.precision,
            "size_bytes": self.size_bytes,
            "created": self.created,
            "checkpoint_sha256": self.checkpoint_sha256,
            "threshold": self.threshold,
            "in_use_by": list(self.in_use_by),
            "problems": [problem.to_dict() for problem in self.problems],
        }


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model of a repository.

    Attributes:
        name: its name.
        served: version that the production configuration names; None where it names none that is there.
        versions: in ascending order.
        problems: what is wrong outside of its versions, harmless things included.
    """

    name: str
    served: int | None
    versions: tuple[VersionInfo, ...]
    problems: tuple[Problem, ...]

    @property
    def all_problems(self) -> tuple[Problem, ...]:
        """What is wrong in its versions and outside of them."""
        return (*(problem for version in self.versions for problem in version.problems), *self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "name": self.name,
            "served": self.served,
            "versions": [version.to_dict() for version in self.versions],
            "problems": [problem.to_dict() for problem in self.problems],
        }


@dataclass(frozen=True, slots=True)
class Rollback:
    """What a rollback brought about.

    Attributes:
        model: name of the model.
        before: version that was served; None where that could not be told.
        served: version that is served from the next start of a server on.
        files: configurations that were written, relative to the repository.
        still_used_by: processes of this machine that go on serving another version until they are started again.
    """

    model: str
    before: int | None
    served: int
    files: tuple[str, ...]
    still_used_by: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "model": self.model,
            "before": self.before,
            "served": self.served,
            "files": list(self.files),
            "still_used_by": list(self.still_used_by),
        }


@dataclass(frozen=True, slots=True)
class Pruning:
    """What a pruning removes, or did.

    Attributes:
        model: name of the model.
        served: versions that a configuration names, which are never removed.
        kept: versions that stay.
        removed: versions that go.
        freed_bytes: size of those.
        done: False where nothing was changed: a dry run, or it was not confirmed.
    """

    model: str
    served: tuple[int, ...]
    kept: tuple[int, ...]
    removed: tuple[int, ...]
    freed_bytes: int
    done: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "model": self.model,
            "served": list(self.served),
            "kept": list(self.kept),
            "removed": list(self.removed),
            "freed_bytes": self.freed_bytes,
            "done": self.done,
        }


def inspect_repository(
    repository: str | Path, models: Sequence[str] = (), *, plan_target: tuple[str, str] | None = None
) -> tuple[ModelInfo, ...]:
    """Look at every model of a repository, or at some, and check each file against its manifest.

    Args:
        repository: the model repository; only read.
        models: names of the models; all of them where empty.
        plan_target: TensorRT version and compute capability that shall load the plans; None checks only that the
            manifests say what plans were built for.

    Returns:
        The models by name. Damaged and half ones are among them, and say what is wrong.

    Raises:
        RepositoryError: the repository or a named model is not there.
    """
    repository = Path(repository)
    present = _model_names(repository)
    for name in models:
        if name not in present:
            raise _no_such_model(repository, name, present)
    return tuple(_inspect_model(repository, name, plan_target) for name in (dict.fromkeys(models) or present))


def rollback(repository: str | Path, model: str, *, to: int | None = None) -> Rollback:
    """Make an older version the one that is served; newer ones stay where they are.

    Both configurations are written for that version, with its parameters, each in one step. Servers read them when
    they start. Named as `to`, the version that is served already gets its configurations written again, which
    repairs damaged ones.

    Args:
        repository: the model repository.
        model: name of the model.
        to: version to serve; the one before the served one where None.

    Raises:
        RepositoryError: there is no such version, it is damaged, the repository cannot be written, or another change
            of the model is under way.
    """
    repository = Path(repository)
    model_dir = _existing_model(repository, model)
    with repo.locked(repository, model, create=False):
        versions = versions_of(model_dir)
        before: int | None = None
        with contextlib.suppress(RepositoryError):
            before = repo.served_in(model_dir)
        target = _rollback_target(model_dir, versions, before, to)
        version_dir = model_dir / str(target)
        damage = _version_problems(repository, model, target, served=False)
        if damage:
            raise RepositoryError(
                f"version {target} of {model!r} cannot be served: {damage[0].file} {damage[0].what}; name "
                f"another one with --to ({', '.join(map(str, versions))}), or export the model again"
            )
        manifest = Manifest.read(version_dir)
        repo.refresh_configs(
            model_dir,
            manifest,
            max_batch_size=_max_batch_size(model_dir, manifest),
        )
        users = {pid for number in versions if number != target for pid in lock_holders(model_dir / str(number))}
        files = tuple(f"{model}/{name}" for name in CONFIG_NAMES)
        return Rollback(model, before, target, files, still_used_by=tuple(sorted(users)))


def write_serving_options(repository: str | Path, model: str, options: ServingOptions) -> Path:
    """Write how the embedded server batches and runs a model; every later export and rollback keeps it.

    Args:
        repository: the model repository.
        model: name of the model.
        options: as tuned; batches no larger than were proved for the served version.

    Returns:
        The embedded configuration.

    Raises:
        RepositoryError: nothing is served, the repository cannot be written, or another change is under way.
    """
    repository = Path(repository)
    model_dir = _existing_model(repository, model)
    with repo.locked(repository, model, create=False):
        manifest = Manifest.read(model_dir / str(repo.served_in(model_dir)))
        repo.refresh_configs(
            model_dir, manifest, max_batch_size=_max_batch_size(model_dir, manifest), options=options
        )
    return model_dir / EMBEDDED_CONFIG_NAME


def prune(
    repository: str | Path,
    model: str,
    *,
    keep: int,
    dry_run: bool = False,
    confirm: Callable[[Pruning], bool] = lambda plan: True,
) -> Pruning:
    """Remove old versions of a model, but never one that a configuration or a running server names.

    They are first moved aside, each in one step, and then deleted: a crash leaves no half version.

    Args:
        repository: the model repository.
        model: name of the model.
        keep: how many of the newest versions stay, from 1; the served one stays besides.
        dry_run: only say what would be removed.
        confirm: called with the plan, when nothing can come between any more; False leaves all as it is.

    Raises:
        OptionError: `keep` is below 1.
        RepositoryError: it cannot be told which version is served, one that would go is in use, the repository cannot
            be written, or another change of the model is under way.
    """
    if keep < 1:
        raise OptionError(f"keep is {keep}; allowed: a whole number from 1")
    repository = Path(repository)
    model_dir = _existing_model(repository, model)
    if dry_run:
        return _pruning_plan(model_dir, keep)
    with repo.locked(repository, model, create=False), repo.writing(repository):
        plan = _pruning_plan(model_dir, keep)
        paths = [model_dir / str(version) for version in plan.removed]
        with claimed_versions(paths):
            if not confirm(plan):
                return plan
            repo.clear_leftovers(repository, model)
            if paths:
                aside = repo.removed_dir(model_dir)
                aside.mkdir()
                for path in paths:
                    path.rename(aside / path.name)
        repo.clear_leftovers(repository, model)
        return replace(plan, done=True)


def _model_names(repository: Path) -> list[str]:
    """Return the names of all models, those included of which there is only what a killed export left."""
    if not repository.is_dir():
        what = "this is a file, no model repository" if repository.exists() else "there is no such model repository"
        raise RepositoryError(f"{repository}: {what}; `deepfake export` makes one, or name another with --repository")
    try:
        names = {path.name for path in repository.iterdir() if path.is_dir()}
        here, prefix = repository.absolute(), f".{repository.absolute().name}."
        beside = {path.name.removeprefix(prefix) for path in here.parent.glob(f"{prefix}*.partial") if path.is_dir()}
    except OSError as exc:
        raise RepositoryError(f"{repository} cannot be read ({exc.strerror}); change its permissions") from exc
    models = {name for name in names if not name.startswith(".")}
    begun = {name.removeprefix(".") for name in names if name.startswith(".") and name.endswith(".partial")} | beside
    return sorted(models | {name.removesuffix(".partial") for name in begun})


def _no_such_model(repository: Path, name: str, present: Sequence[str]) -> RepositoryError:
    return RepositoryError(f"{repository} holds no model {name!r}, only: {', '.join(present) or 'nothing'}")


def _existing_model(repository: Path, name: str) -> Path:
    present = [found for found in _model_names(repository) if (repository / found).is_dir()]
    if name not in present:
        raise _no_such_model(repository, name, present)
    if not versions_of(repository / name):
        raise RepositoryError(f"{repository / name} holds no version; put a model there with `deepfake export`")
    return repository / name


def _inspect_model(repository: Path, name: str, plan_target: tuple[str, str] | None) -> ModelInfo:
    model_dir = repository / name
    versions = versions_of(model_dir)
    problems = list(_leftover_problems(repository, name))
    served: dict[str, int | None] = {}
    if model_dir.is_dir():
        for config_name in CONFIG_NAMES:
            served[config_name], found = _inspect_config(repository, name, config_name, versions)
            problems += found
        numbers = {number for number in served.values() if number is not None}
        if len(numbers) > 1:
            production, embedded = (served[config_name] for config_name in CONFIG_NAMES)
            what = f"serves version {embedded}, but {CONFIG_NAME} version {production}: a change was interrupted"
            fix = f"run `deepfake repository rollback {name} --to {production}`, or export the model again"
            problems.append(Problem(name, f"{name}/{EMBEDDED_CONFIG_NAME}", what, fix))
        if not versions:
            what = "holds no version, so there are no weights, and Triton does not start with it"
            problems.append(Problem(name, name, what, "put a model there with `deepfake export`"))
    now = served.get(CONFIG_NAME)
    return ModelInfo(
        name,
        now,
        tuple(
            _inspect_version(repository, name, version, served=version == now, plan_target=plan_target)
            for version in versions
        ),
        tuple(problems),
    )


def _inspect_version(
    repository: Path, name: str, version: int, *, served: bool, plan_target: tuple[str, str] | None
) -> VersionInfo:
    version_dir = repository / name / str(version)
    manifest: Manifest | None = None
    created = ""
    with contextlib.suppress(OSError):
        written_s = (version_dir / MANIFEST_NAME).stat().st_mtime
        created = datetime.datetime.fromtimestamp(written_s, datetime.UTC).isoformat(timespec="seconds")
    with contextlib.suppress(RepositoryError):
        manifest = Manifest.read(version_dir)
    return VersionInfo(
        version,
        served=served,
        precision=manifest.precision if manifest else "-",
        size_bytes=_size_bytes(version_dir),
        created=created,
        checkpoint_sha256=manifest.spec.checkpoint_sha256 if manifest else None,
        threshold=manifest.spec.threshold if manifest else None,
        in_use_by=lock_holders(version_dir),
        problems=(
            *_version_problems(repository, name, version, served=served),
            *(_plan_problems(name, manifest, plan_target, served=served) if manifest else ()),
        ),
    )


def _version_problems(repository: Path, name: str, version: int, *, served: bool) -> list[Problem]:
    version_dir = repository / name / str(version)
    where = f"{name}/{version}"
    fix = (
        f"restore it, export the model again, or serve another version with `deepfake repository rollback {name}`"
        if served
        else "restore it, or export the model again; nothing serves this version"
    )
    try:
        manifest = Manifest.read(version_dir)
        damaged = manifest.problems(version_dir)
    except (RepositoryError, OSError) as exc:
        missing = not (version_dir / MANIFEST_NAME).exists()
        what = "is missing, so the version cannot be proved whole" if missing else f"cannot be used: {exc}"
        return [Problem(name, f"{where}/{MANIFEST_NAME}", what, fix)]
    found = [Problem(name, f"{where}/{file}", what, fix) for file, what in damaged]
    if (manifest.spec.name, manifest.spec.version) != (name, version):
        what = f"is that of {manifest.spec.name!r} version {manifest.spec.version}: the folder was copied or renamed"
        again = "give the folder its name back, or export the model again"
        found.append(Problem(name, f"{where}/{MANIFEST_NAME}", what, again))
    return found


def _plan_problems(
    name: str, manifest: Manifest, target: tuple[str, str] | None, *, served: bool
) -> Iterator[Problem]:
    """Yield why the version's TensorRT plan cannot be loaded; only what is served is loaded at all."""
    try:
        engine = engine_of(manifest)
        version, capability = target or (
            (engine.tensorrt_version, engine.compute_capability) if engine else ("0", "")
        )
        check_plan(manifest, tensorrt_version=version, compute_capability=capability)
    except RepositoryError as exc:
        what, _, _ = str(exc).partition(f"; {REBUILD}")
        yield Problem(name, f"{name}/{manifest.spec.version}/{PLAN_FILE}", what, REBUILD, harmless=not served)


def _inspect_config(
    repository: Path, name: str, config_name: str, versions: Sequence[int]
) -> tuple[int | None, list[Problem]]:
    """Return the version that a configuration serves, and what is wrong with the configuration."""
    path, where = repository / name / config_name, f"{name}/{config_name}"
    target = versions[-1] if versions else "VERSION"
    fix = f"`deepfake repository rollback {name} --to {target}` writes it again"
    if not path.exists():
        return None, [Problem(name, where, "is missing", fix)]
    try:
        config = read_config(path)
        # Looked for after the configuration was read: an export moves its version in first, and names it then.
        versions = versions_of(repository / name)
        if not versions:
            again = "export the model again"
            return None, [Problem(name, where, what, again) for what in production_problems(config)]
        served = served_version(config, versions, where=path)
    except RepositoryError as exc:
        return None, [Problem(name, where, f"cannot be used: {str(exc).removeprefix(str(path)).strip(' :')}", fix)]
    fix = f"`deepfake repository rollback {name} --to {served}` writes it again"
    found = production_problems(config)
    try:
        tuned_options(config)
    except RepositoryError as exc:
        found.append(str(exc))
    if (config.backend == EMBEDDED_BACKEND) != (config_name == EMBEDDED_CONFIG_NAME):
        found.append(f"has the backend {config.backend!r}, which belongs into the other configuration")
    with contextlib.suppress(RepositoryError):  # a damaged manifest is named where the version is looked at
        manifest = Manifest.read(repository / name / str(served))
        found += contract_problems(config, manifest)
        if config.default_model_filename and config.default_model_filename not in manifest.files:
            found.append(f"loads {config.default_model_filename}, which version {served} does not hold")
        engine = engine_of(manifest)
        if config.default_model_filename == PLAN_FILE and engine and config.max_batch_size > engine.max_batch_size:
            found.append(f"forms batches of {config.max_batch_size}, but the plan takes {engine.max_batch_size}")
    return served, [Problem(name, where, what, fix) for what in found]


def _leftover_problems(repository: Path, name: str) -> Iterator[Problem]:
    busy = lock_holders(repo.lock_path(repository, name))
    for path in repo.leftovers(repository, name):
        # Triton takes every folder of a repository for a model, and does not start with one that is none.
        harmless = path.parent.absolute() != repository.absolute()
        shown = path.relative_to(repository).as_posix() if path.is_relative_to(repository) else str(path)
        if busy:
            what = f"belongs to a change that process {busy[0]} is making now"
            yield Problem(name, shown, what, "wait for it to end", harmless)
        else:
            what = "was left behind by a process that was killed; nothing of it is served"
            if not harmless:
                what += ", but Triton does not start beside it"
            yield Problem(name, shown, what, "the next export of the model clears it away, or delete it", harmless)


def _rollback_target(model_dir: Path, versions: Sequence[int], before: int | None, to: int | None) -> int:
    present = ", ".join(map(str, versions))
    if to is not None:
        if to not in versions:
            raise RepositoryError(f"{model_dir} holds no version {to}, only: {present}")
        return to
    if before is None:
        raise RepositoryError(
            f"{model_dir / CONFIG_NAME} does not say which version is served; name one with --to ({present})"
        )
    older = [version for version in versions if version < before]
    if not older:
        raise RepositoryError(f"{model_dir} holds no version before the served {before}, only: {present}")
    return older[-1]


def _max_batch_size(model_dir: Path, manifest: Manifest) -> int:
    """Return the batch size of the configuration that is there, but no more than was proved for the version."""
    sizes = [int(size) for size in manifest.parity.get("batch_sizes") or ()]
    with contextlib.suppress(RepositoryError):
        current = int(read_config(model_dir / CONFIG_NAME).max_batch_size)
        if current >= 1:
            return min([current, *([max(sizes)] if sizes else [])])
    return max(sizes) if sizes else PRODUCTION_MAX_BATCH_SIZE


def _pruning_plan(model_dir: Path, keep: int) -> Pruning:
    versions = versions_of(model_dir)
    there = [name for name in CONFIG_NAMES if (model_dir / name).exists()] or [CONFIG_NAME]
    served = {repo.served_in(model_dir, name) for name in there}
    kept = sorted({*versions[-keep:], *served})
    removed = [version for version in versions if version not in kept]
    freed_bytes = sum(_size_bytes(model_dir / str(version)) for version in removed)
    return Pruning(model_dir.name, tuple(sorted(served)), tuple(kept), tuple(removed), freed_bytes, done=False)


def _size_bytes(directory: Path) -> int:
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())
