"""Changes which version of a model is served, and how: `deepfake repository rollback`.

Only the configurations are written, under the lock that an export takes; servers read them when they start.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from deepfake_export.repository.configs import current_batch_size, refresh_configs
from deepfake_export.repository.locks import locked
from deepfake_export.repository.verification import check_version
from deepfake_preprocess.contract.model_dir import lock_holders, versions_of
from deepfake_preprocess.contract.repository import CONFIG_NAMES, model_dirs, served_in
from deepfake_preprocess.contract.triton_config import (
    CONFIG_NAME,
    ServingOptions,
)
from deepfake_preprocess.errors import RepositoryError
from deepfake_preprocess.support.json_data import JsonData


@dataclass(frozen=True, slots=True)
class Activation(JsonData):
    """What a change of the served version brought about.

    Attributes:
        before: version that was served; None where the configuration did not say.
        served: version that servers serve from their next start or reload on.
        files: configurations that were written, relative to the repository.
        still_used_by: processes of this machine that go on serving another version until they load again.
    """

    model: str
    before: int | None
    served: int
    files: tuple[str, ...]
    still_used_by: tuple[int, ...]


def activate(
    repository: str | Path, model: str, version: int | None = None, *, options: ServingOptions | None = None
) -> Activation:
    """Make another version the one that is served; none is moved or removed.

    All configurations are written for `version` (None: the one before the served one), with its parameters, each in
    one step. Naming the version that is served already repairs damaged ones. `options` are the embedded server's, as
    tuned; later exports and rollbacks keep them, as None does.

    Raises:
        RepositoryError: there is no such version, it is damaged, the repository cannot be written, or another change
            of the model is under way.
    """
    repository = Path(repository)
    (model_dir,) = model_dirs(repository, [model])
    with locked(repository, model, create=False):
        versions = versions_of(model_dir)
        present = ", ".join(map(str, versions))
        before: int | None = None
        with contextlib.suppress(RepositoryError):
            before = served_in(model_dir)
        if version is None:
            if before is None:
                raise RepositoryError(f"{model_dir / CONFIG_NAME} names no version; name one to serve ({present})")
            version = max((item for item in versions if item < before), default=None)
            if version is None:
                raise RepositoryError(f"{model_dir} holds no version before the served {before}, only: {present}")
        if version not in versions:
            raise RepositoryError(f"{model_dir} holds no version {version}, only: {present}")
        manifest, problems = check_version(model_dir / str(version), served=False)
        for damage in (problem for problem in problems if not problem.harmless):
            others = ", ".join(str(item) for item in versions if item != version)
            another = f"serve another one ({others}), or " if others else ""
            raise RepositoryError(
                f"version {version} of {model!r} cannot be served: {damage.file} {damage.what}; {another}"
                "export the model again"
            )
        assert manifest is not None  # or it would be among the problems
        refresh_configs(model_dir, manifest, max_batch_size=current_batch_size(model_dir, manifest), options=options)
        users = {pid for number in versions if number != version for pid in lock_holders(model_dir / str(number))}
        files = tuple(f"{model}/{name}" for name in CONFIG_NAMES)
        return Activation(model, before, version, files, still_used_by=tuple(sorted(users)))
