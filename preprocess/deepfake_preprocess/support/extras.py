"""Imports of optional parts, with a message that names the pip command that installs them."""

from __future__ import annotations

import importlib
import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from types import ModuleType
from urllib.parse import unquote, urlsplit

from deepfake_preprocess.errors import MissingExtraError

_DISTRIBUTION = "deepfake-serving"


def require_extra(module: str, *, extra: str) -> ModuleType:
    """Import and return `module` (dotted), which the group `extra` of optional dependencies installs."""
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise _missing(exc.name or module, extra) from exc


def check_extra(module: str, *, extra: str) -> None:
    """Raise as `require_extra` does, without importing `module`: what another process needs takes no memory here."""
    if find_spec(module) is None:
        raise _missing(module, extra)


def _missing(module: str, extra: str) -> MissingExtraError:
    return MissingExtraError(f"{module!r} is not installed; run: {install_command(extra)}", name=module)


def install_command(extra: str) -> str:
    """Return the command that installs `extra` from where this project came from: a checkout, or an index."""
    try:
        # PEP 610: what pip wrote down about an install from a folder.
        origin = json.loads(distribution(_DISTRIBUTION).read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        origin = {}
    url = urlsplit(origin.get("url", ""))
    if url.scheme != "file" or "dir_info" not in origin:
        return f"pip install '{_DISTRIBUTION}[{extra}]'"
    editable = "-e " if origin["dir_info"].get("editable") else ""
    return f"pip install {editable}{shlex.quote(f'{unquote(url.path)}[{extra}]')}"
