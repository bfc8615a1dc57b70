"""Checkpoints of a run: written completely or not at all; a kill or a full disk leaves the last good one.

``last.pt`` holds what the next epoch needs, ``best.safetensors`` and ``best.yaml`` the averaged weights with the best
validation AUC and their contract, as `deepfake export` takes them.
"""

from __future__ import annotations

import dataclasses
import pickle
from math import log
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deepfake_export.checkpoint.architectures import build_network
from deepfake_export.checkpoint.layers import last_linear
from deepfake_preprocess.contract.manifest import sha256_file
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import CheckpointError, OptionError, TrainingError
from deepfake_preprocess.support.files import Content, write_whole
from deepfake_preprocess.support.text import reason_of
from deepfake_training.loop.initial import with_positions

LAST = "last.pt"
BEST = "best.safetensors"
BEST_SPEC = "best.yaml"
FORMAT = "deepfake-training-1"


def save_last(directory: Path, state: dict[str, Any], *, keep_epoch: int | None = None) -> None:
    """Replace ``last.pt`` by plain data and tensors; a `TrainingError` leaves the one before untouched.

    It is also kept under the number of `keep_epoch`, to resume from there later.
    """
    content = {"format": FORMAT, **state}
    save_whole(directory / LAST, lambda path: torch.save(content, path))
    if keep_epoch is not None:
        save_whole(directory / f"epoch_{keep_epoch:04d}.pt", lambda path: torch.save(content, path))


def save_best(directory: Path, network: nn.Module, spec: ModelSpec) -> None:
    """Replace ``best.safetensors`` and ``best.yaml``; a `TrainingError` leaves the ones before untouched."""
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    save_whole(directory / BEST, lambda path: save_file(weights, path))
    save_whole(directory / BEST_SPEC, spec.to_yaml())


def best_of(run: str | Path) -> tuple[Path, ModelSpec]:
    """Return the file of a run's best weights, and their spec."""
    path = Path(run) / BEST
    if not path.is_file():
        raise OptionError(f"{run} holds no {BEST}; name the directory of a run that ended an epoch")
    return path, ModelSpec.from_yaml(path.with_name(BEST_SPEC))


def unjudged(spec: ModelSpec) -> ModelSpec:
    """Return the spec of other weights: without temperature and threshold, which are to be found for them."""
    return dataclasses.replace(
        spec,
        temperature=1.0,
        threshold=0.5,
        calibration=None,
        checkpoint_sha256=None,
        training_data="",
        caution="",
    )


def load_state(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of a run, without running code from it."""
    path = Path(path)
    if path.is_dir():
        path = path / LAST
    if not path.is_file():
        raise OptionError(f"{path}: there is no such checkpoint to resume from")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as exc:
        raise CheckpointError(f"{path} is damaged ({reason_of(exc)}); resume from another epoch") from exc
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by a training run; name the {LAST} of a run")
    return state


def save_whole(path: Path, content: Content) -> None:
    """Replace a file in one step (`write_whole`); a `TrainingError` leaves it as it was."""
    try:
        write_whole(path, content)
    # PyTorch and safetensors report a full disk as errors of their own.
    except Exception as exc:
        good = f"the last good one ({path}) is untouched" if path.exists() else "there is none before it"
        raise TrainingError(
            f"{path} cannot be written ({reason_of(exc)}); {good}; free space, then resume the run in {path.parent}"
        ) from exc


def _same(value: Tensor, known: Tensor | None) -> bool:
    """Return whether two weights are the same as they are published, in half precision."""
    return known is not None and value.shape == known.shape and torch.equal(value.half(), known.half())


def _move_scores(weights: dict[str, Tensor], spec: ModelSpec, half_at: float) -> None:
    """Change the bias of the last linear layer, in place, so that the score `half_at` becomes 0.5."""
    if not 0 < half_at < 1:
        raise OptionError(f"`half_at` is {half_at:g}; name a score between 0 and 1, both excluded")
    bias = f"{last_linear(build_network(spec))[0]}.bias"
    if spec.head.kind != "sigmoid" or len(weights.get(bias, ())) != 1:
        raise OptionError("scores can be moved where a linear layer gives one logit at the end; leave `half_at` out")
    weights[bias] = weights[bias] - log(half_at / (1 - half_at))


def publish(
    run: str | Path,
    out: str | Path,
    *,
    training_data: str = "",
    base: str | Path | None = None,
    half_at: float | None = None,
    input_px: int | None = None,
    margin: float | None = None,
) -> tuple[Path, ModelSpec]:
    """Write the best weights of a run in half precision, with their spec in a file of the same name.

    Half precision keeps ten bits of each weight, which is enough for weights that are read back as float32, and
    halves the file. Evaluate the published file to know what it is worth.

    Args:
        run: directory of the run.
        out: the ``.safetensors`` file to write.
        training_data: for the spec: what the detector was trained on and what its scores are worth.
        base: weights that everybody can get; those that are still the same in half precision are left out. A network
            of which only the norms and the head were trained becomes a file of some hundred kB, which works with
            `base` alone.
        half_at: the score, in (0, 1), that becomes 0.5, such as the threshold of a calibration: all logits are moved
            by as much, so no order changes, and who takes 0.5 for the threshold is right.
        input_px: side of the crops, instead of that of the training; smaller ones cost less. A vision transformer's
            positions are laid out anew for it.
        margin: of the crops (`Crop.margin`), instead of that of the training.

    Returns:
        Path of the spec, and the spec with the hash of the file.

    Raises:
        OptionError: the run has no best weights, `out` is not a ``.safetensors`` file, or scores cannot be moved.
        SpecError: the network takes no crops of this size, or there is no such margin.
        CheckpointError: a weight does not fit into half precision.
        TrainingError: the files cannot be written.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise OptionError(f"{out} must end in .safetensors")
    best, spec = best_of(run)
    weights = load_file(best)
    if margin is not None:
        spec = dataclasses.replace(spec, crop=dataclasses.replace(spec.crop, margin=margin))
    if input_px is not None:
        spec = dataclasses.replace(spec, input_height_px=input_px, input_width_px=input_px)
        weights = with_positions(weights, build_network(spec))
    if half_at is not None:
        _move_scores(weights, spec, half_at)
    if base is not None:
        known = load_file(base)
        weights = {name: value for name, value in weights.items() if not _same(value, known.get(name))}
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    infinite = [name for name, value in half.items() if not value.isfinite().all()]
    if infinite:
        raise CheckpointError(f"{best}: {infinite[0]} does not fit into half precision; export {BEST} itself")
    out.parent.mkdir(parents=True, exist_ok=True)
    save_whole(out, lambda path: save_file(half, path))
    spec = dataclasses.replace(
        spec, checkpoint_sha256=sha256_file(out), training_data=training_data or spec.training_data
    )
    spec_path = out.with_suffix(".yaml")
    save_whole(spec_path, spec.to_yaml())
    return spec_path, spec
