"""What a model repository holds, version by version, and what is wrong with each: `deepfake repository list`."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deepfake_export.repository.staging import begun_models
from deepfake_export.repository.verification import RepositoryProblem, check_config, check_leftovers, check_version
from deepfake_preprocess.contract.forms import ServedForm
from deepfake_preprocess.contract.manifest import MANIFEST_NAME, Manifest
from deepfake_preprocess.contract.model_dir import lock_holders, versions_of
from deepfake_preprocess.contract.repository import CONFIG_NAMES, EXPORT_FIRST, checked_names, model_names
from deepfake_preprocess.contract.triton_config import (
    CONFIG_NAME,
    EMBEDDED_CONFIG_NAME,
    ENGINE_PARAMETER,
    PRECISION_PARAMETER,
    ServingOptions,
    config_parameters,
    read_config,
)
from deepfake_preprocess.errors import RepositoryError
from deepfake_preprocess.support.json_data import JsonData


@dataclass(frozen=True, slots=True)
class VersionInfo(JsonData):
    """One version of a model.

    Attributes:
        served: whether the production configuration names it.
        engine, precision: in which `deepfake serve` runs it: of the served version as its configuration says, of
            others as they were promoted; ``-`` where unknown.
        created: when its manifest was written, as ISO 8601 in UTC; empty where there is none.
        in_use_by: ids of the processes of this machine that serve it now.
    """

    json_properties = ("status",)

    version: int
    served: bool
    engine: str
    precision: str
    size_bytes: int
    created: str
    checkpoint_sha256: str | None
    threshold: float | None
    in_use_by: tuple[int, ...]
    problems: tuple[RepositoryProblem, ...]

    @property
    def status(self) -> str:
        """``ok`` or ``damaged``."""
        return "ok" if all(problem.harmless for problem in self.problems) else "damaged"


@dataclass(frozen=True, slots=True)
class ModelInfo(JsonData):
    """One model of a repository.

    Attributes:
        served: version that the production configuration names; None where it names none that is there.
        versions: in ascending order.
        problems: what is wrong outside of its versions, harmless things included.
    """

    name: str
    served: int | None
    versions: tuple[VersionInfo, ...]
    problems: tuple[RepositoryProblem, ...]

    @property
    def all_problems(self) -> tuple[RepositoryProblem, ...]:
        """What is wrong in its versions and outside of them."""
        return (*(problem for version in self.versions for problem in version.problems), *self.problems)


def inspect_repository(
    repository: str | Path, models: Sequence[str] = (), *, plan_target: tuple[str, str] | None = None
) -> tuple[ModelInfo, ...]:
    """Return a repository's models by name (all, or those named), each file checked against its manifest.

    Damaged and half-made ones are included; `RepositoryError` is raised where the repository or a named model is
    missing. For `plan_target` see `check_version`.
    """
    repository = Path(repository)
    present = sorted({*model_names(repository), *begun_models(repository)})
    return tuple(_inspect_model(repository, name, plan_target) for name in checked_names(repository, models, present))


def size_bytes(directory: Path) -> int:
    """Return the size of all files in a directory."""
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())


def _inspect_model(repository: Path, name: str, plan_target: tuple[str, str] | None) -> ModelInfo:
    model_dir = repository / name
    versions = versions_of(model_dir)
    problems = list(check_leftovers(repository, name))
    production: int | None = None
    if model_dir.is_dir():
        checked = {item: check_config(model_dir, item) for item in CONFIG_NAMES}
        production, _ = checked[CONFIG_NAME]
        for config_name, (other, found) in checked.items():
            problems += found
            if None not in (production, other) and production != other:
                what = f"serves version {other}, but {CONFIG_NAME} version {production}: a change was interrupted"
                fix = f"run `deepfake repository rollback {name} {production}`, or export the model again"
                problems.append(RepositoryProblem(name, f"{name}/{config_name}", what, fix))
        if not versions:
            what = (
                "holds no version: `deepfake serve` passes it over, but NVIDIA's container does not start with it "
                "in the repository"
            )
            problems.append(RepositoryProblem(name, name, what, EXPORT_FIRST))
    return ModelInfo(
        name,
        production,
        tuple(_inspect_version(model_dir / str(item), item == production, plan_target) for item in versions),
        tuple(problems),
    )


def _inspect_version(version_dir: Path, served: bool, plan_target: tuple[str, str] | None) -> VersionInfo:
    created = ""
    with contextlib.suppress(OSError):
        written_s = (version_dir / MANIFEST_NAME).stat().st_mtime
        created = datetime.datetime.fromtimestamp(written_s, datetime.UTC).isoformat(timespec="seconds")
    manifest, problems = check_version(version_dir, served=served, plan_target=plan_target)
    form = _form(version_dir, manifest, served=served) if manifest else None
    return VersionInfo(
        int(version_dir.name),
        served=served,
        engine=form.engine if form else "-",
        precision=form.precision if form else "-",
        size_bytes=size_bytes(version_dir),
        created=created,
        checkpoint_sha256=manifest.spec.checkpoint_sha256 if manifest else None,
        threshold=manifest.spec.threshold if manifest else None,
        in_use_by=lock_holders(version_dir),
        problems=tuple(problems),
    )


def _form(version_dir: Path, manifest: Manifest, *, served: bool) -> ServedForm:
    """Return how the embedded server runs a version, or would."""
    named: dict[str, str] = {}
    if served:
        with contextlib.suppress(RepositoryError):
            named = config_parameters(read_config(version_dir.parent / EMBEDDED_CONFIG_NAME))
    options = ServingOptions(engine=named.get(ENGINE_PARAMETER, ""), precision=named.get(PRECISION_PARAMETER, ""))
    return options.form_of(manifest.served_forms)
