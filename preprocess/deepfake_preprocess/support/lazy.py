"""Packages whose public names are imported on first use, by a stub that lists them.

The package's ``__init__.pyi`` is its one list of public names, for type checkers, for people and at run time, as in
scientific Python's SPEC 1 (https://scientific-python.org/specs/spec-0001/).
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attach_stub(package: str, file: str) -> tuple[Callable[[str], Any], list[str]]:
    """Return the `__getattr__` (PEP 562) and the `__all__` of a package, given its `__name__` and `__file__`.

    Of the stub next to it, only ``from module import name, ...`` matters here.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    module_of = {
        alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }

    def get(name: str) -> Any:
        module = module_of.get(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(module), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, list(module_of)
