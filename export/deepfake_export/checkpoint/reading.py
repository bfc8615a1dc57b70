"""Reads a checkpoint file without ever running code from it.

Pickles go through PyTorch's weights-only loader, which builds tensors and plain data. What it refuses is read once
more by `inert`, where everything unknown is an empty shell.
"""

from __future__ import annotations

import argparse
import codecs
import pickle
import re
import warnings
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from deepfake_export.checkpoint.averages import with_named_averages
from deepfake_export.checkpoint.foreign import describe_foreign, is_safetensors
from deepfake_export.checkpoint.inert import read_inertly
from deepfake_preprocess.errors import CheckpointError

PATH_CLASSES = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")

DAMAGED_SAFETENSORS = "is not a valid safetensors file, or was not copied or downloaded to the end; get it again"

HARMLESS_GLOBALS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"),
    *((PurePosixPath, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in PATH_CLASSES),
    *(
        (function, f"{module}.{name}")
        for module in ("numpy.core", "numpy._core")
        for name, function in (
            ("multiarray.scalar", np.float64(0).__reduce__()[0]),
            ("multiarray._reconstruct", np.zeros(1).__reduce__()[0]),
            ("numeric._frombuffer", np.zeros(1).__reduce_ex__(5)[0]),
        )
    ),
    (codecs.encode, "_codecs.encode"),
]
"""Plain data that training scripts save: arguments (timm does), paths in them, metrics as scalars of NumPy, and its
arrays, whose bytes are pickled as text. PyTorch's documentation allows NumPy's in its example. NumPy 2 reads the
names of both its generations, and Python 3.13 has moved its paths."""


def read_checkpoint(path: Path) -> Any:
    """Return what the file holds, tensors and plain data; `CheckpointError` where it is damaged or refers to code.

    What the file is, its content says; people give either kind the other's suffix. Arrays are returned as tensors,
    and averaged weights by their names.
    """
    if is_safetensors(path):
        return _read_safetensors(path)
    return with_named_averages(path, _with_tensors(_read_pickle(path)))


def _with_tensors(data: Any) -> Any:
    """Return what a file holds with NumPy's arrays of numbers as tensors."""
    if isinstance(data, np.ndarray) and data.dtype.kind in "biuf":
        return torch.tensor(data.astype(data.dtype.newbyteorder("=")))
    if type(data) in (dict, OrderedDict):
        return {key: _with_tensors(value) for key, value in data.items()}
    return [_with_tensors(value) for value in data] if isinstance(data, list | tuple) else data


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS_GLOBALS):
            # Guesses about what is wrong with the file; `_why_unreadable` says it better.
            warnings.simplefilter("ignore", UserWarning)
            with path.open("rb") as file:  # by its path, what is called .safetensors is read as that
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        refused = exc
    # The reader raises a dozen kinds for damaged files (EOFError, KeyError, struct.error, ...).
    except Exception as exc:
        raise CheckpointError(_why_unreadable(path, exc)) from exc
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return read_inertly(path, _harmless_by_name())
    except pickle.UnpicklingError as exc:
        raise CheckpointError(_why_unreadable(path, exc if "Unsupported global" in str(exc) else refused)) from exc
    except Exception as exc:
        raise CheckpointError(_why_unreadable(path, refused)) from exc


def _harmless_by_name() -> dict[str, Any]:
    found = {}
    for item in HARMLESS_GLOBALS:
        value, name = item if isinstance(item, tuple) else (item, f"{item.__module__}.{item.__qualname__}")
        found[name] = value
    return found


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as exc:
        raise CheckpointError(f"{path} {DAMAGED_SAFETENSORS}") from exc


def _why_unreadable(path: Path, exc: Exception) -> str:
    if what := describe_foreign(path):
        return f"{path} is {what}"
    if path.suffix == ".safetensors":
        return f"{path} {DAMAGED_SAFETENSORS}"
    text = str(exc)
    refused = re.search(r"(?i:unsupported global):?\s+(?:GLOBAL\s+)?([\w.]+)", text)
    if refused:
        return (
            f"{path} is refused, because it calls {refused[1]!r} and loading that could run code from the file; "
            "have the weights alone saved where it comes from, with safetensors.torch.save_file(model.state_dict(), "
            "'weights.safetensors')"
        )
    if isinstance(exc, pickle.UnpicklingError | KeyError):
        # What the reader says then (an opcode's number, and advice to switch its safety off) helps nobody.
        return f"{path} is not a file that torch.save wrote, or is damaged; get it again, or save it as .safetensors"
    first_line = next((line.strip() for line in text.splitlines() if line.strip()), type(exc).__name__)
    reason = first_line.split(". ")[0].rstrip(".")
    return f"{path} is not a file that torch.save wrote, or is damaged ({reason}); get it again"
