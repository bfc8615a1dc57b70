"""Imports of optional parts, with a message that names the pip command that installs them."""

from __future__ import annotations

import importlib
from types import ModuleType

from deepfake_preprocess.errors import MissingExtraError


def require_extra(module: str, *, extra: str) -> ModuleType:
    """Import and return `module` (dotted), which the group `extra` of optional dependencies installs."""
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        missing = exc.name or module
        raise MissingExtraError(
            f"{missing!r} is not installed; run: pip install 'deepfake-serving[{extra}]'", name=missing
        ) from exc
