"""Reads YAML mappings, and refuses what no dataclass describes, in the words of `JsonData`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from deepfake_preprocess.errors import SpecError
from deepfake_preprocess.support.text import reason_of


def read_mapping(path: Path) -> Mapping[str, Any]:
    """Read a YAML (or JSON) mapping; a `SpecError` says where that fails."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path}: there is no such spec file; write one as in docs/model-spec.md") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise SpecError(f"{path}: the file cannot be read ({reason_of(exc)})") from exc
    except yaml.YAMLError as exc:
        raise SpecError(f"{path}: the file is not valid YAML: {reason_of(exc)}") from exc
    if not isinstance(data, Mapping):
        raise SpecError(f"{path}: the file must be a YAML mapping, got {type(data).__name__}")
    return data


def refuse(name: str, value: object, allowed: str) -> SpecError:
    """Return the error for a field with a value that is not allowed."""
    return SpecError(f"field '{name}' is {value!r}; allowed: {allowed}")


def check_known(data: Mapping[str, Any], allowed: Collection[str], *, prefix: str = "") -> None:
    """Refuse fields that are not among `allowed`; `prefix` stands before their names in messages."""
    for key in data:
        if key not in allowed:
            raise SpecError(f"field '{prefix}{key}' is unknown; allowed: {', '.join(allowed)}")
