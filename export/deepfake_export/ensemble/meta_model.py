"""`MetaModel`: the logistic regression that combines the members of an ensemble, in plain numbers.

scikit-learn's own files are pickles, which can execute arbitrary code. They are never opened here;
`pickled_meta_model` converts one, for a command of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from deepfake_preprocess.contract.fields import read_mapping, refuse
from deepfake_preprocess.errors import SpecError
from deepfake_preprocess.support.json_data import Bounds, JsonData

FILE_SUFFIXES = (".yaml", ".yml", ".json")
Number = Annotated[float, Bounds(ge=-1e9, le=1e9)]
Scale = Annotated[float, Bounds(gt=0, le=1e9)]


@dataclass(frozen=True, slots=True)
class MetaModel(JsonData):
    """Logistic regression with its scaler: logit = ``((x - mean) / scale) @ coef + intercept``.

    Attributes:
        coef: one weight per member, towards `fake_index`.
        intercept: added at the end.
        mean: of the scaler, per member; zeros where not given.
        scale: of the scaler, per member; ones where not given.
        features: what x is: each member's fake `probability`, or its `logit`.
        fake_index: class of the regression that means fake.
    """

    json_error = SpecError

    coef: tuple[Number, ...]
    intercept: Number
    mean: tuple[Number, ...] = ()
    scale: tuple[Scale, ...] = ()
    features: Literal["probability", "logit"] = "probability"
    fake_index: Literal[0, 1] = 1

    def __post_init__(self) -> None:
        self.check_fields()
        for name, neutral in (("mean", 0.0), ("scale", 1.0)):
            values = getattr(self, name) or (neutral,) * len(self.coef)
            if len(values) != len(self.coef):
                raise refuse(name, list(values), f"a list of {len(self.coef)} numbers, one per entry of coef")
            object.__setattr__(self, name, values)

    def folded(self) -> tuple[list[float], float]:
        """Return weights and constant of the fake logit, with the scaler multiplied in."""
        sign = 1.0 if self.fake_index == 1 else -1.0
        weights = [sign * coef / scale for coef, scale in zip(self.coef, self.scale, strict=True)]
        shift = math.fsum(weight * mean for weight, mean in zip(weights, self.mean, strict=True))
        return weights, sign * self.intercept - shift


def read_meta_model(data: object, base: Path, num_members: int) -> MetaModel:
    """Read the field `meta_model` of an ensemble; `SpecError` where a field or the file is wrong.

    It is the path, relative to `base`, of a YAML or JSON file with the numbers; or a mapping with them, or with such
    a `file`.
    """
    where = "meta_model"
    if isinstance(data, str):
        data = {"file": data}
    if not isinstance(data, Mapping):
        raise refuse("meta_model", data, "the path of a file, or a mapping with a file, or with coef and intercept")
    if "file" in data:
        numbers, path = _read_file(data["file"], base)
        where = str(path)
        data = {**numbers, **{key: value for key, value in data.items() if key != "file"}}
    meta_model = MetaModel.from_dict(data, where=where)
    if len(meta_model.coef) != num_members:
        raise SpecError(
            f"{where}: field 'coef' holds {len(meta_model.coef)} number(s); allowed: {num_members}, one per member"
        )
    return meta_model


def _read_file(name: object, base: Path) -> tuple[Mapping[str, Any], Path]:
    if not isinstance(name, str) or Path(name).suffix not in FILE_SUFFIXES:
        raise refuse(
            "meta_model.file",
            name,
            f"the path of a {', '.join(FILE_SUFFIXES)} file with coef and intercept; `deepfake convert-meta-model` "
            "makes one from a pickled scikit-learn model",
        )
    return read_mapping(base / name), base / name
