"""Which form of a version runs here: the one that its configuration names, where the CPU and the engine allow it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from deepfake_preprocess.contract.forms import ENGINE_NAMES, ServedForm
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.triton_config import ENGINE_PARAMETER, PRECISION_PARAMETER, config_parameters
from deepfake_preprocess.errors import RepositoryError
from deepfake_preprocess.support.engines import ONNX_RUNTIME, is_installed
from deepfake_preprocess.support.extras import install_command


def choose_form(manifest: Manifest, config: Any, features: Collection[str]) -> tuple[ServedForm, str]:
    """Return the form to run on a CPU with `features`, and a sentence where it is not the one that is configured.

    What takes its place is the last form, which needs nothing: other figures were not measured on this CPU.

    Raises:
        RepositoryError: the version has no form that runs here.
    """
    forms, parameters = manifest.served_forms, config_parameters(config)
    named = (parameters[ENGINE_PARAMETER], parameters[PRECISION_PARAMETER])
    wanted = next(item for item in forms if (item.engine, item.precision) == named)
    if not (reason := _obstacle(wanted, features)):
        return wanted, ""
    instead = forms[-1]
    what = f"{manifest.spec.name} version {manifest.spec.version}"
    if obstacle := _obstacle(instead, features):
        raise RepositoryError(
            f"{what} cannot run here: {wanted} is not possible because {reason}, and {instead} because {obstacle}; "
            "export the model on this machine"
        )
    advice = "" if wanted.needs and not set(wanted.needs) <= set(features) else _advice(wanted)
    return instead, f"{what} is served by {instead} instead of {wanted}: {reason}{advice}"


def _obstacle(form: ServedForm, features: Collection[str]) -> str:
    """Return why a form does not run here, as a clause; empty where it does."""
    if missing := [name for name in form.needs if name not in features]:
        return f"it was measured on a CPU with {', '.join(missing)}, which this one lacks"
    return "" if is_installed(form.engine) else f"{ENGINE_NAMES[form.engine]} is not installed"


def _advice(form: ServedForm) -> str:
    return "" if form.engine == ONNX_RUNTIME else f"; run: {install_command(form.engine)}"
