"""What a package's root exports, compared with what its public signatures mention."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterator
from types import ModuleType
from typing import Any


def unexported_types(package: ModuleType) -> list[str]:
    """Return the project's types in signatures and attributes of exported members that are not exported."""
    missing = set()
    for name in package.__all__:
        for where, hint in _hints(name, getattr(package, name)):
            for kind in _types_in(hint):
                ours = kind.__module__.startswith("deepfake_") and not kind.__name__.startswith("_")
                if ours and getattr(package, kind.__name__, None) is not kind:
                    missing.add(f"{where}: {kind.__module__}.{kind.__name__}")
    return sorted(missing)


def _hints(name: str, member: Any) -> Iterator[tuple[str, Any]]:
    if inspect.isfunction(member):
        yield from ((name, hint) for hint in typing.get_type_hints(member).values())
    elif inspect.isclass(member):
        if dataclasses.is_dataclass(member):
            hints = typing.get_type_hints(member)
            public = (field.name for field in dataclasses.fields(member) if not field.name.startswith("_"))
            yield from ((f"{name}.{field}", hints[field]) for field in public)
        for key, value in vars(member).items():
            function = getattr(value, "__func__", getattr(value, "fget", value))
            if inspect.isfunction(function) and (not key.startswith("_") or key == "__init__"):
                if key == "__init__" and dataclasses.is_dataclass(member):
                    continue
                yield from ((f"{name}.{key}", hint) for hint in typing.get_type_hints(function).values())


def _types_in(hint: Any) -> Iterator[type]:
    if inspect.isclass(hint) and not typing.get_args(hint):
        yield hint
    for argument in typing.get_args(hint):
        # The arguments of `Callable` are a list.
        for item in argument if isinstance(argument, list) else [argument]:
            yield from _types_in(item)
