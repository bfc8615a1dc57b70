"""`MetaModel`: the logistic regression that combines the members of an ensemble, in plain numbers.

scikit-learn's own files are pickles, which run whatever they say. They are never opened here; `pickled_meta_model`
converts one, for a command of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deepfake_preprocess.contract.fields import check_choice, check_known, read_mapping, refuse
from deepfake_preprocess.errors import SpecError
from deepfake_preprocess.support.json_data import JsonData

FEATURES = ("probability", "logit")
NUMBERS = ("mean", "scale", "coef", "intercept")
FIELDS = ("features", "fake_index", "file", *NUMBERS)
FILE_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class MetaModel(JsonData):
    """Logistic regression with its scaler: logit = ``((x - mean) / scale) @ coef + intercept``.

    Attributes:
        coef: one weight per member, towards `fake_index`.
        intercept: added at the end.
        mean: of the scaler, per member.
        scale: of the scaler, per member; nowhere 0.
        features: what x is: each member's fake `probability`, or its `logit`.
        fake_index: class of the regression that means fake.
    """

    coef: tuple[float, ...]
    intercept: float
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    features: Literal["probability", "logit"] = "probability"
    fake_index: Literal[0, 1] = 1

    @classmethod
    def from_numbers(cls, data: Mapping[str, Any], num_members: int, **meaning: Any) -> MetaModel:
        """Return the meta-model of `coef` and `intercept`, and of `mean` and `scale` where there is a scaler.

        Args:
            data: the numbers by name.
            num_members: how many of each but `intercept` there must be.
            meaning: `features` and `fake_index`.

        Raises:
            SpecError: a number is missing, not finite, or a scale is 0; or there are too many or too few.
        """
        for key in ("coef", "intercept"):
            if key not in data:
                raise SpecError(f"field '{key}' is missing; a logistic regression needs coef and intercept")
        (intercept,) = _vector("intercept", data["intercept"], 1)
        scale = _vector("scale", data.get("scale", [1.0] * num_members), num_members)
        if min(scale) <= 0:
            raise refuse("scale", list(scale), "numbers above 0")
        return cls(
            _vector("coef", data["coef"], num_members),
            intercept,
            _vector("mean", data.get("mean", [0.0] * num_members), num_members),
            scale,
            **meaning,
        )

    def folded(self) -> tuple[list[float], float]:
        """Return weights and constant of the fake logit, with the scaler multiplied in."""
        sign = 1.0 if self.fake_index == 1 else -1.0
        weights = [sign * coef / scale for coef, scale in zip(self.coef, self.scale, strict=True)]
        shift = math.fsum(weight * mean for weight, mean in zip(weights, self.mean, strict=True))
        return weights, sign * self.intercept - shift


def read_meta_model(data: object, base: Path, num_members: int) -> MetaModel:
    """Read the field `meta_model` of an ensemble.

    Args:
        data: path of a YAML or JSON file with the numbers; or a mapping with them, or with such a `file`.
        base: directory that paths are relative to.
        num_members: members of the ensemble.

    Raises:
        SpecError: a field or the file is wrong.
    """
    if isinstance(data, str):
        data = {"file": data}
    if not isinstance(data, Mapping):
        raise refuse("meta_model", data, f"the path of a file, or a mapping with {', '.join(FIELDS)}")
    check_known(data, FIELDS, prefix="meta_model.")
    meaning = {"features": data.get("features", "probability"), "fake_index": data.get("fake_index", 1)}
    check_choice("meta_model.features", meaning["features"], FEATURES)
    check_choice("meta_model.fake_index", meaning["fake_index"], (0, 1))
    numbers = {key: data[key] for key in NUMBERS if key in data}
    if ("file" in data) == bool(numbers):
        raise SpecError("field 'meta_model' needs either a 'file', or 'coef' and 'intercept'")
    where = "field 'meta_model'"
    if not numbers:
        numbers, where = _read_file(data["file"], base)
    try:
        check_known(numbers, NUMBERS)
        return MetaModel.from_numbers(numbers, num_members, **meaning)
    except SpecError as exc:
        raise SpecError(f"{where}: {exc}") from None


def _read_file(name: object, base: Path) -> tuple[dict[str, Any], str]:
    if not isinstance(name, str):
        raise refuse("meta_model.file", name, "the path of a file")
    path = base / name
    if path.suffix not in FILE_SUFFIXES:
        raise refuse(
            "meta_model.file",
            name,
            f"a {', '.join(FILE_SUFFIXES)} file with {', '.join(NUMBERS)}; `deepfake convert-meta-model` makes one "
            "from a pickled scikit-learn model",
        )
    return dict(read_mapping(path)), str(path)


def _vector(name: str, value: Any, length: int) -> tuple[float, ...]:
    try:
        numbers = tuple(_flat(value))
    except (TypeError, ValueError):
        raise refuse(name, value, f"{length} number(s)") from None
    if len(numbers) != length:
        per = "" if name == "intercept" else ", one per member"
        raise SpecError(f"field '{name}' holds {len(numbers)} number(s); allowed: {length}{per}")
    if not all(map(math.isfinite, numbers)):
        raise refuse(name, list(numbers), "finite numbers")
    return numbers


def _flat(value: Any) -> Iterator[float]:
    """Yield the numbers of nested lists: scikit-learn's `coef_` has a row per class."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield float(value)
