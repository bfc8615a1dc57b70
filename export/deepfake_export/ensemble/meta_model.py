"""Reads a logistic-regression meta-model (and its scaler) into plain numbers.

Weights come from YAML, JSON or safetensors, which hold nothing else. scikit-learn's own files are pickles, and a
pickle runs whatever it says: one is opened only where the user has said that its source is trusted.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepfake_export.ensemble.spec import MetaModel, read_yaml
from deepfake_preprocess.errors import CheckpointError, MissingExtraError, SpecError
from deepfake_preprocess.support.extras import require_extra

FloatArray = npt.NDArray[np.float64]

TEXT_SUFFIXES = (".yaml", ".yml", ".json")
CONVERSION_LIMIT = 1e-9
"""Largest difference of a probability between scikit-learn and the converted weights: both compute in double."""


@dataclass(frozen=True, slots=True)
class LinearWeights:
    """Logistic regression with its scaler: fake logit = ``((x - mean) / scale) @ coef + intercept``.

    Attributes:
        coef: one weight per member, towards fake.
        intercept: added at the end.
        mean: of the scaler, per member.
        scale: of the scaler, per member; nowhere 0.
        source: where it came from, for people.
    """

    coef: FloatArray
    intercept: float
    mean: FloatArray
    scale: FloatArray
    source: str

    def folded(self) -> tuple[FloatArray, float]:
        """Return weights and constant with the scaler multiplied in."""
        weights = self.coef / self.scale
        return weights, float(self.intercept - (weights * self.mean).sum())

    def to_dict(self) -> dict[str, Any]:
        """Return plain data in the form that a YAML file of weights has."""
        return {
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "coef": self.coef.tolist(),
            "intercept": self.intercept,
        }


def load_meta_model(meta: MetaModel, num_features: int, *, trust_pickle: bool = False) -> LinearWeights:
    """Read a meta-model's weights.

    Args:
        meta: what the ensemble's YAML says.
        num_features: number of members.
        trust_pickle: open files that are pickles. This runs whatever they say.

    Raises:
        CheckpointError: a file is a pickle and not trusted, is damaged, or holds no logistic regression.
        SpecError: numbers are missing, too many or too few, not finite, or a scale is 0.
        MissingExtraError: joblib or scikit-learn is not installed.
    """
    if meta.file is None:
        return _from_numbers(meta.weights, meta.fake_index, num_features, "field 'meta_model'")
    source = meta.file.name
    if meta.file.suffix in TEXT_SUFFIXES:
        numbers: Mapping[str, Any] = read_yaml(meta.file)
    elif meta.file.suffix == ".safetensors":
        numbers = _read_safetensors(meta.file)
    else:
        numbers = _read_pickles(meta, num_features, trusted=trust_pickle)
    if meta.scaler is not None and meta.file.suffix in (*TEXT_SUFFIXES, ".safetensors"):
        raise SpecError(
            f"field 'meta_model.scaler' is {meta.scaler.name!r}; put 'mean' and 'scale' into {source} instead"
        )
    return _from_numbers(numbers, meta.fake_index, num_features, str(meta.file))


def _from_numbers(data: Mapping[str, Any], fake_index: int, num_features: int, where: str) -> LinearWeights:
    for key in data:
        if key not in ("mean", "scale", "coef", "intercept"):
            raise SpecError(f"{where}: field '{key}' is unknown; allowed: mean, scale, coef, intercept")
    for key in ("coef", "intercept"):
        if key not in data:
            raise SpecError(f"{where}: field '{key}' is missing; a logistic regression needs coef and intercept")
    coef = _vector(data["coef"], "coef", num_features, where)
    intercept = _vector(data["intercept"], "intercept", 1, where)[0]
    mean = _vector(data.get("mean", [0.0] * num_features), "mean", num_features, where)
    scale = _vector(data.get("scale", [1.0] * num_features), "scale", num_features, where)
    if not (scale > 0).all():
        raise SpecError(f"{where}: field 'scale' is {scale.tolist()}; allowed: numbers above 0")
    sign = 1.0 if fake_index == 1 else -1.0
    return LinearWeights(sign * coef, sign * float(intercept), mean, scale, where)


def _vector(value: Any, name: str, length: int, where: str) -> FloatArray:
    try:
        array = np.asarray(value, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise SpecError(f"{where}: field '{name}' is {value!r}; allowed: {length} number(s)") from None
    if len(array) != length:
        per = "" if name == "intercept" else ", one per member"
        raise SpecError(f"{where}: field '{name}' holds {len(array)} number(s); allowed: {length}{per}")
    if not np.isfinite(array).all():
        raise SpecError(f"{where}: field '{name}' is {array.tolist()}; allowed: finite numbers")
    return array


def _read_safetensors(path: Path) -> dict[str, Any]:
    safetensors = require_extra("safetensors", extra="export")
    numpy_io = require_extra("safetensors.numpy", extra="export")
    try:
        return dict(numpy_io.load_file(path))
    except (safetensors.SafetensorError, OSError, ValueError) as exc:
        raise CheckpointError(f"{path} is no valid safetensors file ({exc})") from exc


def _read_pickles(meta: MetaModel, num_features: int, *, trusted: bool) -> dict[str, Any]:
    """Return the numbers of scikit-learn objects, and check that they give what scikit-learn gives."""
    assert meta.file is not None
    files = [file for file in (meta.file, meta.scaler) if file is not None]
    if not trusted:
        raise CheckpointError(
            f"{files[0]} is refused, because it is a pickle and loading one can run any code; put mean, scale, coef "
            "and intercept into a YAML file where it comes from, or pass --trust-pickle if you trust its source as "
            "you trust a program"
        )
    models, scalers = [], []
    for file in files:
        for part in _parts(_unpickle(file)):
            kind = type(part).__name__
            if kind in ("LogisticRegression", "LogisticRegressionCV"):
                models.append(part)
            elif kind == "StandardScaler":
                scalers.append(part)
            else:
                raise CheckpointError(
                    f"{file} holds a {kind}, and a meta-model is a LogisticRegression after at most a StandardScaler"
                )
    if len(models) != 1 or len(scalers) > 1:
        raise CheckpointError(
            f"{' and '.join(file.name for file in files)}: found {len(models)} LogisticRegression and {len(scalers)} "
            "StandardScaler object(s); a meta-model is one regression, and at most one scaler"
        )
    model, scaler = models[0], scalers[0] if scalers else None
    try:
        numbers = _numbers(model, scaler)
    except AttributeError as exc:
        raise CheckpointError(f"{meta.file}: the meta-model is not trained ({exc})") from exc
    if len(model.classes_) != 2:
        raise CheckpointError(f"{meta.file} tells {len(model.classes_)} classes apart; a detector has two")
    weights = _from_numbers(numbers, 1, num_features, str(meta.file))
    _check_conversion(meta.file, model, scaler, weights)
    return numbers


def _unpickle(file: Path) -> Any:
    joblib = require_extra("joblib", extra="ensemble")
    require_extra("sklearn", extra="ensemble")
    try:
        with warnings.catch_warnings():
            # Another scikit-learn wrote it; whether that matters is checked by `_check_conversion`.
            warnings.simplefilter("ignore")
            return joblib.load(file)
    except ModuleNotFoundError as exc:
        raise MissingExtraError(
            f"{file} needs the module {exc.name!r}, which is not installed", name=exc.name
        ) from exc
    # A pickle raises whatever the code in it raises.
    except Exception as exc:
        raise CheckpointError(f"{file} cannot be loaded ({type(exc).__name__}: {exc})") from exc


def _parts(found: Any) -> list[Any]:
    """Return the single objects in what training code may save: a pipeline, a mapping, a sequence, or one object."""
    if hasattr(found, "steps"):
        return [part for _, step in found.steps for part in _parts(step)]
    if isinstance(found, Mapping):
        return [part for value in found.values() if hasattr(value, "get_params") for part in _parts(value)]
    if isinstance(found, list | tuple):
        return [part for value in found for part in _parts(value)]
    return [found]


def _numbers(model: Any, scaler: Any) -> dict[str, Any]:
    numbers = {"coef": model.coef_, "intercept": model.intercept_}
    if scaler is not None:
        if scaler.with_mean:
            numbers["mean"] = scaler.mean_
        if scaler.with_std:
            numbers["scale"] = scaler.scale_
    return numbers


def _check_conversion(file: Path, model: Any, scaler: Any, weights: LinearWeights) -> None:
    features = np.random.default_rng(0).normal(0.5, 1.0, (64, len(weights.coef)))
    linear, constant = weights.folded()
    ours = 1 / (1 + np.exp(-(features @ linear + constant)))
    theirs = model.predict_proba(scaler.transform(features) if scaler is not None else features)[:, 1]
    difference = float(np.abs(ours - theirs).max())
    if not difference <= CONVERSION_LIMIT:
        raise CheckpointError(
            f"{file}: the converted weights differ from the meta-model's own probabilities by {difference:.1e}; it "
            "is no plain logistic regression"
        )
