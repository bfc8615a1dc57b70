"""Adds a version of a model that differs from the served one in threshold, temperature and calibration alone.

No checkpoint and no PyTorch are needed: the files of the served version are copied, and the temperature is put into
the copy of the graph. So whatever reads the served probability, this client or another one, reads the same figure.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

from deepfake_export.graph.temperature import recalibrated
from deepfake_export.repository.configs import current_batch_size
from deepfake_export.repository.locks import locked, writing
from deepfake_export.repository.staging import publish, staged
from deepfake_preprocess.contract.manifest import MANIFEST_NAME, Manifest, file_hashes
from deepfake_preprocess.contract.repository import model_dirs, served_in
from deepfake_preprocess.contract.spec import Calibration, ModelSpec
from deepfake_preprocess.contract.version_files import ENGINE_SOURCE, MODEL_FILE, PLAN_FILE
from deepfake_preprocess.errors import RepositoryError
from deepfake_preprocess.support.json_data import JsonData

RECALIBRATED = "recalibrated"
"""Key of a manifest's `parity`: the version it was made of, and how far probabilities lie from what they should be.
"""


@dataclass(frozen=True, slots=True)
class Recalibration(JsonData):
    """What was added.

    Attributes:
        model: its name.
        before: version that it was made of.
        version: the new one, which is served from the next start or reload on.
        spec: of the new version.
        notes: what is left to do, as sentences.
    """

    model: str
    before: int
    version: int
    spec: ModelSpec
    notes: tuple[str, ...]


def check_served(repository: str | Path, served: ModelSpec) -> None:
    """Check that the version which a repository serves is the one that was measured; `RepositoryError` otherwise."""
    (model_dir,) = model_dirs(Path(repository), [served.name])
    version = served_in(model_dir)
    found = Manifest.read(model_dir / str(version)).spec
    if found != served:
        raise RepositoryError(
            f"the clips were scored by version {served.version} of {served.name!r}, but {repository} serves version "
            f"{version} with another spec; name the repository of that server with `repository`, or reload the server"
        )


def recalibrate(
    repository: str | Path,
    served: ModelSpec,
    *,
    threshold: float,
    temperature: float,
    calibration: Calibration | None,
) -> Recalibration:
    """Add a version with another threshold, temperature and calibration, and serve it.

    Args:
        repository: model repository; it must serve `served`.
        served: spec of the version that was measured.
        threshold: FAKE at or above it, in (0, 1).
        temperature: divisor of the network's logit, 0.01 to 100.
        calibration: when verdicts are left open; None decides always.

    Raises:
        RepositoryError: another version is served, it is damaged, the repository cannot be written, or another change
            of the model is under way.
        ExportError: the graph cannot be given the temperature.
        SpecError: a figure is out of its range.
    """
    repository = Path(repository)
    with locked(repository, served.name, create=False):
        check_served(repository, served)
        model_dir = repository / served.name
        source = model_dir / str(served.version)
        manifest = Manifest.read(source)
        manifest.verify(source)
        batch_size = current_batch_size(model_dir, manifest)
        with staged(repository, served.name) as made:
            spec = dataclasses.replace(
                served,
                version=int(made.name),
                threshold=threshold,
                temperature=temperature,
                calibration=calibration,
            )
            added, notes = _copied(source, made, manifest, spec)
            added.write(made)
            publish(repository, added, max_batch_size=batch_size)
    return Recalibration(served.name, served.version, spec.version, spec, notes)


def _copied(source: Path, made: Path, manifest: Manifest, spec: ModelSpec) -> tuple[Manifest, tuple[str, ...]]:
    """Fill a new version's directory, and return its manifest, still to be written, and what is left to do."""
    # A plan is compiled code; with another temperature it would give the old probabilities.
    keeps_plan = manifest.spec.temperature == spec.temperature
    worst = 0.0
    with writing(made):
        for name in manifest.files:
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            if name in (MODEL_FILE, ENGINE_SOURCE):
                worst = max(worst, recalibrated(source / name, made / name, manifest.spec, spec))
            elif name != PLAN_FILE or keeps_plan:
                shutil.copyfile(source / name, made / name)
    assert MANIFEST_NAME not in manifest.files  # it does not hold its own hash
    proof = {"from_version": manifest.spec.version, "max_difference": worst}
    dropped = PLAN_FILE in manifest.files and not keeps_plan
    added = dataclasses.replace(
        manifest,
        spec=spec,
        files=file_hashes(made),
        parity={**manifest.parity, RECALIBRATED: proof},
        engine=None if dropped else manifest.engine,
    )
    notes = ("the TensorRT plan had the old temperature and was left out: `deepfake build-engines` builds a new one",)
    return added, notes if dropped else ()
