"""Converts a meta-model that scikit-learn saved into plain numbers, and checks them against scikit-learn itself.

Its files are pickles. Loading one can execute arbitrary code: nothing but `deepfake convert-meta-model` comes here.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from deepfake_export.ensemble.meta_model import FILE_SUFFIXES, MetaModel
from deepfake_preprocess.errors import CheckpointError, MissingExtraError, OptionError
from deepfake_preprocess.support.extras import require_extra
from deepfake_preprocess.support.files import writing

CONVERSION_LIMIT = 1e-9
"""Largest difference of a probability between scikit-learn and the converted weights: both compute in double."""


def convert_meta_model(pickles: Sequence[str | Path], output: str | Path) -> MetaModel:
    """Write the numbers of a pickled meta-model to a ``.yaml`` or ``.json`` file that an ensemble can name.

    The pickles hold one LogisticRegression, and at most one StandardScaler before it: as a pipeline, in a mapping or
    sequence, or in a file each.

    Raises:
        OptionError: `output` has another suffix, or cannot be written.
        CheckpointError: a file cannot be loaded, or holds something else.
        MissingExtraError: joblib or scikit-learn is not installed.
    """
    output = Path(output)
    if output.suffix not in FILE_SUFFIXES:
        raise OptionError(f"`output` is {str(output)!r}; allowed: a name that ends in {', '.join(FILE_SUFFIXES)}")
    meta_model = _read_pickles(pickles)
    data = meta_model.to_dict()
    text = json.dumps(data, indent=2) if output.suffix == ".json" else yaml.safe_dump(data, sort_keys=False)
    with writing(output, "name another file"):
        output.write_text(text, encoding="utf-8")
    return meta_model


def _read_pickles(pickles: Sequence[str | Path]) -> MetaModel:
    names = " and ".join(map(str, pickles))
    parts = [part for file in pickles for part in _parts(_unpickle(Path(file)))]
    models = [part for part in parts if type(part).__name__ in ("LogisticRegression", "LogisticRegressionCV")]
    scalers = [part for part in parts if type(part).__name__ == "StandardScaler"]
    if len(models) != 1 or len(scalers) > 1 or len(parts) > len(models) + len(scalers):
        kinds = ", ".join(type(part).__name__ for part in parts) or "neither"
        raise CheckpointError(
            f"{names}: a meta-model is one LogisticRegression after at most one StandardScaler; found {kinds}"
        )
    model, scaler = models[0], scalers[0] if scalers else None
    try:
        num_classes = len(model.classes_)
        coef, intercept = model.coef_.ravel().tolist(), float(model.intercept_[0])
        mean = scaler.mean_.tolist() if scaler is not None and scaler.with_mean else ()
        scale = scaler.scale_.tolist() if scaler is not None and scaler.with_std else ()
    except AttributeError as exc:
        raise CheckpointError(f"{names}: the meta-model is not trained ({exc})") from exc
    if num_classes != 2:
        raise CheckpointError(f"{names} distinguishes {num_classes} classes; a detector has two")
    meta_model = MetaModel(tuple(coef), intercept, tuple(mean), tuple(scale))
    _check_conversion(names, model, scaler, meta_model)
    return meta_model


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


def _check_conversion(names: str, model: Any, scaler: Any, meta_model: MetaModel) -> None:
    features = np.random.default_rng(0).normal(0.5, 1.0, (64, len(meta_model.coef)))
    linear, constant = meta_model.folded()
    ours = 1 / (1 + np.exp(-(features @ linear + constant)))
    theirs = model.predict_proba(scaler.transform(features) if scaler is not None else features)[:, 1]
    difference = float(np.abs(ours - theirs).max())
    if not difference <= CONVERSION_LIMIT:
        raise CheckpointError(
            f"{names}: the converted weights differ from the meta-model's own probabilities by {difference:.1e}; it "
            "is not a plain logistic regression"
        )
