"""Checkpoints of a run: written whole or not at all, so that a kill or a full disk leaves the last good one.

``last.pt`` holds what the next epoch needs, ``best.safetensors`` and ``best.yaml`` the averaged weights with the best
validation AUC and their contract, as `deepfake export` takes them. Random numbers need no place in it: those of an
epoch follow from seed and epoch alone.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from deepfake_preprocess.errors import CheckpointError, OptionError, TrainingError
from deepfake_preprocess.spec import ModelSpec

LAST = "last.pt"
BEST = "best.safetensors"
BEST_SPEC = "best.yaml"
FORMAT = "deepfake-training-1"


def save_last(directory: Path, state: dict[str, Any], *, keep_epoch: int | None = None) -> None:
    """Replace ``last.pt``.

    Args:
        directory: of the run.
        state: plain data and tensors.
        keep_epoch: also keep it under the number of this epoch, to resume from there later.

    Raises:
        TrainingError: it cannot be written; the one before is untouched.
    """
    content = {"format": FORMAT, **state}
    write_whole(directory / LAST, lambda path: torch.save(content, path))
    if keep_epoch is not None:
        write_whole(directory / f"epoch_{keep_epoch:04d}.pt", lambda path: torch.save(content, path))


def save_best(directory: Path, network: nn.Module, spec: ModelSpec) -> None:
    """Replace ``best.safetensors`` and ``best.yaml`` by these weights.

    Raises:
        TrainingError: they cannot be written; the ones before are untouched.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_whole(directory / BEST, lambda path: save_file(weights, path))
    write_whole(directory / BEST_SPEC, lambda path: path.write_text(spec.to_yaml(), encoding="utf-8"))


def load_state(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of a run, without running code from it.

    Raises:
        OptionError: there is no such file.
        CheckpointError: it is damaged, or was not written by `save_last`.
    """
    path = Path(path)
    if path.is_dir():
        path = path / LAST
    if not path.is_file():
        raise OptionError(f"{path}: there is no such checkpoint to resume from; start without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as exc:
        raise CheckpointError(f"{path} is damaged ({exc}); resume from another epoch") from exc
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by 'deepfake train'; name the {LAST} of a run")
    return state


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, then put it in the place of `path` in one step.

    Raises:
        TrainingError: it cannot be written; `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    # PyTorch and safetensors report a full disk as errors of their own.
    except Exception as exc:
        partial.unlink(missing_ok=True)
        good = f"the last good one ({path}) is untouched" if path.exists() else "there is none before it"
        raise TrainingError(
            f"{path} cannot be written ({exc}); {good}; free space, then go on with --resume {path.parent}"
        ) from exc
