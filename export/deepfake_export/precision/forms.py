"""How the embedded server may run what was proved, in order of preference; see `ServedForm`."""

from __future__ import annotations

from collections.abc import Mapping

from deepfake_export.proof.comparison import ArtifactProof, Proof
from deepfake_preprocess.contract.forms import ServedForm, cpu_features, needs_of
from deepfake_preprocess.support.engines import ONNX_RUNTIME


def forms_of(proof: Proof, files: Mapping[str, str]) -> tuple[ServedForm, ...]:
    """Return a form of each accurate artifact whose precision has a file in the version.

    The promoted one is the first, and one that needs nothing of the CPU the last. The others are for
    `deepfake tune`.
    """
    promoted = proof.promoted
    found = [
        ServedForm(item.engine, item.precision, files[item.precision], serving_needs(item))  # type: ignore[arg-type]
        for item in proof.artifacts
        if item.passed and item.precision in files
    ]
    is_first = (promoted.engine, promoted.precision)
    return tuple(sorted(found, key=lambda form: ((form.engine, form.precision) != is_first, _is_last_resort(form))))


def serving_needs(item: ArtifactProof) -> tuple[str, ...]:
    """Return the flags of this machine's CPU without which what was measured here does not hold."""
    return needs_of(item.engine, item.precision, cpu_features())


def _is_last_resort(form: ServedForm) -> bool:
    return form.engine == ONNX_RUNTIME and form.precision == "fp32"
