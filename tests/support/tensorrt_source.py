"""Finds, in this project's source, every use of TensorRT: which attribute of which class, called with what.

Types are followed as a type checker would: from parameters whose annotation names a class (or the module
itself), through attributes, calls and assignments. What a call gives back is read from the signature that the
real bindings carry in their docstrings, so no list is kept by hand that could go stale.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Use:
    """One attribute of TensorRT that our source names, for example ``Builder.create_network``."""

    where: str
    owner: str
    name: str


@dataclass(frozen=True)
class Problem:
    where: str
    text: str


class Reader:
    """Reads one source file against one bindings module.

    Attributes:
        uses: what was found.
        problems: names that the bindings lack, and calls that their signatures do not allow.
    """

    def __init__(self, path: Path, bindings: ModuleType, *, rtx: bool) -> None:
        self._path = path
        self._bindings = bindings
        self._rtx = rtx
        self.uses: list[Use] = []
        self.problems: list[Problem] = []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                self._read_function(node)

    def _read_function(self, function: ast.FunctionDef) -> None:
        types: dict[str, Any] = {}
        arguments = function.args
        parameters = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        if not self._rtx and any(_is_named(item.annotation, "TensorRTRTX") for item in parameters):
            return
        for item in parameters:
            types[item.arg] = self._of_annotation(item.annotation)
        # In the order of the text, so that a name is known before it is used; nested functions see the outer names.
        for node in _in_order(function):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                types[node.target.id] = self._of_annotation(node.annotation)
            elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                name, value = node.targets[0].id, self._type_of(node.value, types)
                if value is not None or name not in types:
                    types[name] = value
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                self._type_of(node.targets[0], types)
            if isinstance(node, ast.expr) and isinstance(node, ast.Attribute | ast.Call):
                self._type_of(node, types)

    def _of_annotation(self, annotation: ast.expr | None) -> Any:
        if not isinstance(annotation, ast.Name):
            return None
        if annotation.id in ("TensorRT", "TensorRTRTX"):
            return self._bindings
        found = getattr(self._bindings, annotation.id, None)
        return found if inspect.isclass(found) else None

    def _type_of(self, node: ast.expr, types: dict[str, Any]) -> Any:
        """Return the module, class or function (with its owner) that an expression stands for, or None."""
        if isinstance(node, ast.Name):
            return types.get(node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, self._type_of(node.value, types))
        if isinstance(node, ast.Call):
            called = self._type_of(node.func, types)
            if called is None:
                return None
            if inspect.isclass(called):
                self._check_arguments(node, called.__init__, called.__name__)
                return _Instance(called)
            name = node.func.attr if isinstance(node.func, ast.Attribute) else "?"
            if not name.startswith("__"):  # those are called with `self` in their arguments
                self._check_arguments(node, called, name)
            return self._returned(called)
        return None

    def _attribute(self, node: ast.Attribute, owner: Any) -> Any:
        if owner is None:
            return None
        cls = owner.cls if isinstance(owner, _Instance) else owner
        title = "tensorrt" if cls is self._bindings else cls.__name__
        if not (inspect.isclass(cls) or inspect.ismodule(cls)):
            return None
        where = f"{self._path.name}:{node.lineno}"
        use = Use(where, title, node.attr)
        if use not in self.uses:
            self.uses.append(use)
            if not hasattr(cls, node.attr):
                self.problems.append(Problem(where, f"{title} has no {node.attr!r}"))
        found = getattr(cls, node.attr, None)
        if isinstance(found, property):
            return self._returned(found.fget)
        return found if callable(found) else None

    def _returned(self, function: Any) -> Any:
        match = re.search(r"-> ([\w.:]+)", (getattr(function, "__doc__", None) or "").partition("\n\n\n")[0])
        if not match:
            return None
        # C++ names where the binding of the class was made later: nvonnxparser::IParserError.
        name = re.split(r"[.:]+", match[1])[-1]
        for candidate in (name, name.removeprefix("I")):
            found = getattr(self._bindings, candidate, None)
            if inspect.isclass(found):
                return _Instance(found)
        return None

    def _check_arguments(self, call: ast.Call, function: Any, name: str) -> None:
        signatures = _signatures(getattr(function, "__doc__", None) or "")
        if not signatures or any(isinstance(item, ast.Starred) for item in call.args):
            return
        keywords = {item.arg for item in call.keywords}
        if not any(_accepts(parameters, len(call.args), keywords) for parameters in signatures):
            where = f"{self._path.name}:{call.lineno}"
            given = f"{len(call.args)} positional and {sorted(keywords)} by name"
            problem = Problem(where, f"{name} takes {signatures}, and not {given}")
            if problem not in self.problems:
                self.problems.append(problem)


@dataclass(frozen=True)
class _Instance:
    cls: Any


@dataclass(frozen=True)
class Parameter:
    name: str
    required: bool


def _signatures(doc: str) -> list[list[Parameter]]:
    """Return the parameters without `self` of each overload in a docstring of pybind11."""
    found = []
    for line in doc.splitlines():
        match = re.match(r"(?:\d+\. )?\w+\((.*)\) -> ", line)
        if match and not match[1].startswith("*args"):
            # Commas within brackets and angle brackets belong to types and defaults.
            text, previous = match[1], None
            while text != previous:
                text, previous = re.sub(r"\[[^\[\]]*\]|<[^<>]*>", "", text), text
            parts = [part.strip() for part in text.split(",") if part.strip()]
            parameters = [Parameter(part.split(":")[0].strip(), "=" not in part) for part in parts]
            found.append([item for item in parameters if item.name not in ("self", "arg0")])
    return found


def _accepts(parameters: list[Parameter], positional: int, keywords: set[str | None]) -> bool:
    if positional > len(parameters):
        return False
    rest = parameters[positional:]
    names = {item.name for item in rest}
    return keywords <= names and {item.name for item in rest if item.required} <= keywords


def _is_named(annotation: ast.expr | None, name: str) -> bool:
    return isinstance(annotation, ast.Name) and annotation.id == name


def _in_order(function: ast.FunctionDef) -> Iterator[ast.AST]:
    nodes = [node for node in ast.walk(function) if hasattr(node, "lineno")]
    # An assignment comes after the expressions of its own line, and before those of the next ones.
    return iter(sorted(nodes, key=lambda node: (node.lineno, node.col_offset)))


def main(bindings_name: str, *paths: str) -> None:
    """Print, as JSON, what the source files use and what of it the bindings lack; run in a process of its own."""
    bindings = importlib.import_module(bindings_name)
    uses, problems = [], []
    for path in paths:
        reader = Reader(Path(path), bindings, rtx="rtx" in bindings_name)
        uses += reader.uses
        problems += reader.problems
    data = {"version": bindings.__version__, "uses": uses, "problems": problems}
    print(json.dumps(data, default=dataclasses.asdict))


if __name__ == "__main__":
    main(*sys.argv[1:])
