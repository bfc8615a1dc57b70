"""Reads a checkpoint file without ever running code from it.

Pickles go through PyTorch's weights-only loader, which builds tensors and plain data and refuses everything else.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from deepfake_preprocess.errors import CheckpointError

PATH_CLASSES = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")

HARMLESS_GLOBALS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
    *((PurePosixPath, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in PATH_CLASSES),
    *((np.float64(0).__reduce__()[0], f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")),
]
"""Plain data that training scripts save with the weights: arguments (timm does), paths in them, metrics as NumPy
scalars. PyTorch's documentation allows NumPy's in its example. NumPy 2 reads the names of both its generations, and
Python 3.13 has moved its paths."""


def read_checkpoint(path: Path) -> Any:
    """Return what the file holds, tensors and plain data; `CheckpointError` where it is damaged or refers to code."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS_GLOBALS):
            # Guesses about what is wrong with the file; `_why_unreadable` says it better.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    # The reader raises a dozen kinds for damaged files (EOFError, KeyError, struct.error, UnpicklingError, ...).
    except Exception as exc:
        raise CheckpointError(_why_unreadable(path, exc)) from exc


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as exc:
        raise CheckpointError(f"{path} is not a valid safetensors file ({exc})") from exc


def _why_unreadable(path: Path, exc: Exception) -> str:
    text = str(exc)
    if "TorchScript archive" in text:
        return f"{path} is a TorchScript file; set 'architecture: torchscript' in the spec"
    refused = re.search(r"(?i:unsupported global):?\s+(?:GLOBAL\s+)?([\w.]+)", text)
    if refused:
        return (
            f"{path} is refused, because it refers to {refused[1]!r} and loading that could run code from the file; "
            "have the weights alone saved where it comes from, with safetensors.torch.save_file(model.state_dict(), "
            "'weights.safetensors'). Only if you trust the file as you trust a program: "
            f"torch.save(torch.load({path.name!r}, weights_only=False)['state_dict'], 'weights.pt') runs that code"
        )
    if isinstance(exc, pickle.UnpicklingError | KeyError):
        # What the reader says then (an opcode's number, and advice to switch its safety off) helps nobody.
        return f"{path} is not a file that torch.save wrote, or is damaged; get it again, or save it as .safetensors"
    first_line = next((line.strip() for line in text.splitlines() if line.strip()), type(exc).__name__)
    reason = first_line.split(". ")[0].rstrip(".")
    return f"{path} is not a file that torch.save wrote, or is damaged ({reason}); get it again"
