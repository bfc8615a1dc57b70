"""Reads verdicts and outcomes back from the JSON data that `Verdict.to_dict` and `Outcome.to_dict` made."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from deepfake_client.result.outcome import Outcome
from deepfake_client.result.verdict import Timing, Verdict
from deepfake_preprocess import errors


def json_key(kind: Any, field: str) -> str:
    """Return the JSON name of a dataclass's field: the same, but that of times, whose unit is in the name once."""
    if kind is Verdict and field == "timing":
        return "timing_s"
    return field.removesuffix("_s") if kind is Timing else field


def outcome_from_dict(data: Mapping[str, Any]) -> Outcome:
    """Return the outcome that `Outcome.to_dict` described.

    Raises:
        ValueError: `data` is no such description.
    """
    try:
        if "error" in data:
            kind = getattr(errors, data["error"]["type"], errors.DeepfakeError)
            return Outcome(str(data["source"]), error=kind(data["error"]["message"]))
        verdict = verdict_from_dict(data)
        return Outcome(verdict.source, verdict=verdict)
    except (KeyError, TypeError) as exc:
        raise ValueError(f"this is no result of an analysis: {exc!r}") from exc


def verdict_from_dict(data: Mapping[str, Any]) -> Verdict:
    """Return the verdict that `Verdict.to_dict` described.

    Raises:
        ValueError, KeyError, TypeError: `data` is no such description.
    """
    verdict: Verdict = _read(Verdict, data)
    return verdict


def _read(kind: Any, value: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        if value is None:
            return None
        (kind,) = (item for item in get_args(kind) if item is not type(None))
    if get_origin(kind) is tuple:
        item_kinds = get_args(kind)
        repeated = item_kinds[1:] == (...,)
        return tuple(_read(item_kinds[0 if repeated else index], item) for index, item in enumerate(value))
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        names = [field.name for field in dataclasses.fields(kind)]
        return kind(**{name: _read(hints[name], value[json_key(kind, name)]) for name in names})
    if issubclass(kind, Enum):
        return kind(value)
    if kind is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, got {value!r}")
    return value
