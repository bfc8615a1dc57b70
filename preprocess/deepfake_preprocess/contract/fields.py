"""Reads YAML mappings and checks their fields, so that every file is refused with the same sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from deepfake_preprocess.errors import SpecError


def read_mapping(path: Path) -> Mapping[str, Any]:
    """Read a YAML (or JSON) mapping.

    Raises:
        SpecError: the file is missing, cannot be read, or is not a mapping.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path}: there is no such spec file; write one as in docs/model-spec.md") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise SpecError(f"{path}: the file cannot be read: {exc}") from exc
    except yaml.YAMLError as exc:
        raise SpecError(f"{path}: the file is not valid YAML: {' '.join(str(exc).split())}") from exc
    if not isinstance(data, Mapping):
        raise SpecError(f"{path}: the file must be a YAML mapping, got {type(data).__name__}")
    return data


def refuse(name: str, value: object, allowed: str) -> SpecError:
    """Return the error for a field with a value that is not allowed."""
    return SpecError(f"field '{name}' is {value!r}; allowed: {allowed}")


def field_names(cls: type) -> tuple[str, ...]:
    """Return the names of a dataclass's fields."""
    return tuple(item.name for item in dataclasses.fields(cls))


def check_known(data: Mapping[str, Any], allowed: Collection[str], *, prefix: str = "") -> None:
    """Refuse fields that are not among `allowed`; `prefix` stands before their names in messages."""
    for key in data:
        if key not in allowed:
            raise SpecError(f"field '{prefix}{key}' is unknown; allowed: {', '.join(allowed)}")


def keywords_of(cls: type, data: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Return `data` as keyword arguments of dataclass `cls`, refusing unknown and missing fields."""
    check_known(data, field_names(cls), prefix=prefix)
    for item in dataclasses.fields(cls):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and item.name not in data:
            raise SpecError(f"field '{prefix}{item.name}' is missing; it has no default")
    return dict(data)


def check_choice(name: str, value: object, allowed: Collection[object]) -> None:
    """Refuse a value that is not one of `allowed`."""
    if isinstance(value, bool) or value not in allowed:
        raise refuse(name, value, ", ".join(repr(item) for item in allowed))


def check_int(name: str, value: object, low: int, high: int) -> None:
    """Refuse what is not a whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise refuse(name, value, f"a whole number from {low} to {high}")


def check_number(name: str, value: object, low: float, high: float) -> float:
    """Return a number from `low` to `high`, and refuse everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise refuse(name, value, f"a number from {low:g} to {high:g}")
    return float(value)
