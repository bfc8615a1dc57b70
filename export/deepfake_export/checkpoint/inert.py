"""Reads pickles that hold objects of unknown classes (whole modules, settings) without importing or running them.

As Python's documentation restricts globals: a name in a pickle is either on the list here, or becomes an inert class
that keeps attributes and does nothing, also when it is called.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

ATTACK = re.compile(
    r"(posix|nt|os|sys|subprocess|shutil|socket|pty|ctypes|runpy|importlib|webbrowser)\..*"
    r"|builtins\.(eval|exec|compile|open|__import__)"
)
"""What no training script puts into a checkpoint. It would not run here either, but such a file is no checkpoint."""


class Inert(dict[Any, Any]):
    """Stands for an object of a class that is not loaded."""

    path = ""

    def __init__(self, *arguments: object) -> None:
        if ATTACK.fullmatch(self.path):
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {self.path}")
        vars(self).update({str(index): item for index, item in enumerate(arguments)})

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            vars(self).update(state)


class ModuleTensors(dict[str, Tensor]):
    """The tensors of a pickled module by their names in its state dict."""

    def __init__(self, module: Inert) -> None:
        super().__init__(_named_tensors(module))
        self.class_name = module.path


def read_inertly(path: Path, harmless: Mapping[str, Any]) -> Any:
    """Return what a file of `torch.save` holds, with modules as `ModuleTensors` and other objects left out.

    Args:
        path: the file.
        harmless: what may be loaded besides tensors, by its name.
    """
    rebuild = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state")
    allowed = {
        **harmless,
        **{f"torch._utils.{name}": getattr(torch._utils, name) for name in rebuild},
        **{f"{kind.__module__}.{kind.__name__}": kind for kind in (OrderedDict, set, bytearray, complex)},
        **{str(kind): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)},
        "torch.nn.parameter.Parameter": torch.nn.Parameter,
        "torch.Tensor": Tensor,
        "torch.Size": torch.Size,
        "torch.device": torch.device,
    }

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str, /) -> Any:
            full = f"{'builtins' if module == '__builtin__' else module}.{name}"
            return allowed[full] if full in allowed else type(name, (Inert,), {"path": full})

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    reader = SimpleNamespace(__name__="inert", Unpickler=Unpickler, load=load)
    with path.open("rb") as file:
        return _plain(torch.load(file, map_location="cpu", pickle_module=reader, weights_only=False), set())


def _plain(value: Any, seen: set[int]) -> Any:
    """Return modules as `ModuleTensors`, other objects as mappings of what they hold; each of them once."""
    if isinstance(value, Inert):
        if "_modules" in vars(value):
            return ModuleTensors(value)
        if id(value) in seen:  # objects may hold each other
            return None
        seen.add(id(value))
        held = {key: _plain(item, seen) for key, item in {**value, **vars(value)}.items()}
        return {key: item for key, item in held.items() if item is not None} or None
    if isinstance(value, dict):
        return {key: _plain(item, seen) for key, item in value.items()}
    return [_plain(item, seen) for item in value] if isinstance(value, list | tuple) else value


def _named_tensors(module: Inert, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    state = vars(module)
    passing = state.get("_non_persistent_buffers_set", ())
    for group in ("_parameters", "_buffers"):
        for name, value in state.get(group, {}).items():
            if isinstance(value, Tensor) and name not in passing:
                yield f"{prefix}{name}", value.detach()
    for name, child in state.get("_modules", {}).items():
        if isinstance(child, Inert):
            yield from _named_tensors(child, f"{prefix}{name}.")
