"""Checks a model repository before it is served.

A version is served only when its files match its manifest and its configuration says what the manifest says.
The repository itself is never written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepfake_preprocess.contract import triton_config
from deepfake_preprocess.contract.config_check import contract_problems
from deepfake_preprocess.contract.forms import cpu_features
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.model_dir import served_version, versions_of
from deepfake_preprocess.contract.repository import model_dirs
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.contract.version_files import MODEL_FILE, PLAN_FILE
from deepfake_preprocess.errors import RepositoryError
from deepfake_serve._forms import choose_form


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """One checked model version.

    Attributes:
        spec: its contract.
        version_dir: its folder.
        config: its embedded configuration, a ``ModelConfig``, with the form that is served here.
        note: why that form is not the one that the repository names, as a sentence; empty where it is.
    """

    spec: ModelSpec
    version_dir: Path
    config: Any
    note: str = ""


def check_repository(repository: Path, models: Sequence[str] = ()) -> list[CheckedModel]:
    """Return of each model named, or of all that have a version, the one that its configuration serves, checked.

    Raises:
        RepositoryError: nothing to serve, a version does not match its manifest, or a configuration is missing or
            differs from the manifest; names the model and the file.
    """
    return [_check_model(model_dir) for model_dir in model_dirs(repository, models)]


def _check_model(model_dir: Path) -> CheckedModel:
    path = model_dir / triton_config.EMBEDDED_CONFIG_NAME
    config = triton_config.read_config(path)
    version_dir = model_dir / str(served_version(config, versions_of(model_dir), where=path))
    manifest = Manifest.read(version_dir)
    if MODEL_FILE not in manifest.files:
        lacks = "only a TensorRT plan, which the embedded server cannot run" if PLAN_FILE in manifest.files else ""
        raise RepositoryError(
            f"{version_dir} has no {MODEL_FILE}, {lacks or 'which the embedded server runs'}; export the model to "
            "ONNX, or serve it with NVIDIA's container (`docker compose up`)"
        )
    manifest.verify(version_dir)
    # Batching and instances may be tuned by hand; what the contract fixes may not.
    for problem in contract_problems(config, manifest, config_name=triton_config.EMBEDDED_CONFIG_NAME):
        raise RepositoryError(f"{path}: {problem}; export the model again, or restore the file")
    form, note = choose_form(manifest, config, cpu_features())
    triton_config.set_form(config, form)
    return CheckedModel(manifest.spec, version_dir, config, note)
