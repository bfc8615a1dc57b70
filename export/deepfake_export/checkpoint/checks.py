"""Checks of a loaded network, before anything is exported from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from deepfake_export.blame import blamed_line
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import CheckpointError

SIZES = (224, 256, 299, 320, 336, 380, 384, 448, 512, 192, 160, 128, 112, 96, 64, 48, 32)
"""Input sizes that networks are commonly made for, the most common first."""
STEADY = 1e-3
"""How far outputs of the same crop may lie apart; rounding in batches of other sizes is a hundredth of that."""
SHOWN = 4
"""How many names of each kind a message shows."""


def check_values(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that tensors hold plain numbers; `CheckpointError` for quantized ones and those of the meta device."""
    empty = tuple(name for name, value in tensors.items() if value.is_meta)
    if empty:
        raise CheckpointError(
            f"{path} holds no values in {len(empty)} tensor(s) ({first_names(empty)}), only their shapes: it was "
            "saved from the meta device; save it once the weights are loaded"
        )
    packed = tuple(name for name, value in tensors.items() if value.is_quantized or value.layout != torch.strided)
    if packed:
        raise CheckpointError(
            f"{path} holds quantized or sparse weights in {len(packed)} tensor(s) ({first_names(packed)}); take the "
            "checkpoint from before that: the export makes its own INT8"
        )


def check_finite(path: Path, network: nn.Module) -> None:
    """Check that all weights are numbers; `CheckpointError` where some are NaN or Inf."""
    broken = tuple(
        name
        for name, value in network.state_dict().items()
        if value.is_floating_point() and not value.isfinite().all()
    )
    if broken:
        raise CheckpointError(
            f"{path} holds NaN or Inf in {len(broken)} tensor(s) ({first_names(broken)}); the training diverged, "
            "so take an earlier checkpoint"
        )


def check_outputs(path: Path, network: nn.Module, spec: ModelSpec, in_channels: int) -> None:
    """Run two crops through the network, and one alone: what cannot be served is a `CheckpointError` here already.

    That is a wrong input size or head, and outputs that depend on chance or on the other crops of a batch.
    """
    noise = torch.rand(
        in_channels, spec.input_height_px, spec.input_width_px, generator=torch.Generator().manual_seed(0)
    )
    crops = torch.stack((2 * noise - 1, noise))  # of another mean and contrast
    try:
        with torch.inference_mode():
            outputs = network(crops)
    except Exception as exc:
        raise CheckpointError(
            f"{path}: the network does not run on {spec.input_width_px}x{spec.input_height_px} px crops "
            f"({_reason(exc)}); {_why_not_run(network, in_channels, exc)}"
        ) from exc
    allowed = [(2, spec.head.num_logits)] + ([(2,)] if spec.head.num_logits == 1 else [])
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else None
    if shape not in allowed:
        fitting = {(2,): "sigmoid", (2, 1): "sigmoid", (2, 2): "softmax"}.get(shape or ())
        fix = "return that from a module around the network (docs/export.md shows one)"
        if fitting:
            fix = f"write 'head: {{kind: {fitting}}}' in the spec"
        raise CheckpointError(
            f"{path}: for 2 crops the network gives {_shown_output(outputs)}, but head {spec.head.kind!r} needs "
            f"{[2, spec.head.num_logits]}; {fix}"
        )
    _check_steady(path, network, crops, outputs)


def _check_steady(path: Path, network: nn.Module, crops: Tensor, outputs: Tensor) -> None:
    """Check that a crop's outputs are the same once more, and alone."""
    if not outputs.isfinite().all():  # the proof refuses that
        return
    try:
        with torch.inference_mode():
            alone = network(crops[:1])
            if _alike(alone, outputs[0]):
                return
            again = network(crops)
    except Exception as exc:
        raise CheckpointError(
            f"{path}: the network runs on 2 crops and not on one ({_reason(exc)}{blamed_line(exc)}); take fixed "
            "batch sizes out of its forward(), and squeeze() without a dimension, which takes a batch of one away"
        ) from exc
    if not torch.equal(again, outputs):
        raise CheckpointError(
            f"{path}: the network gives the same crop another score each time; dropout or noise in its forward() is "
            "active where it should not be: write F.dropout(x, training=self.training)"
        )
    raise CheckpointError(
        f"{path}: the network's score of a crop depends on the other crops of its batch; take statistics of each "
        "crop alone, as x.mean((1, 2, 3)) for x.mean(), and batch norm with running statistics"
    )


def _alike(some: Tensor, others: Tensor) -> bool:
    """Return whether outputs are the same but for rounding, in whatever shape."""
    some, others = some.float().flatten(), others.float().flatten()
    return some.shape == others.shape and torch.allclose(some, others, rtol=STEADY, atol=STEADY)


def _reason(exc: Exception) -> str:
    return f"{type(exc).__name__}: {str(exc).strip().splitlines()[-1]}" if str(exc).strip() else type(exc).__name__


def _why_not_run(network: nn.Module, in_channels: int, exc: Exception) -> str:
    """Say whether another input size helps, which is tried without computing, or where the code fails."""
    network.to("meta")
    running = []
    for size in SIZES:
        try:
            with torch.inference_mode():
                network(torch.empty(2, in_channels, size, size, device="meta"))
        # Whatever a network's own code raises at a size that it cannot take.
        except Exception:
            continue
        running.append(size)
    if running:
        sizes = " or ".join(map(str, running[:SHOWN]))
        return f"it runs at {sizes} px: set the input size that it was trained with in the spec"
    return (
        f"it runs at no usual size, so the code of the network is the cause{blamed_line(exc)}; put a module "
        f"around it that takes [N, {in_channels}, H, W] and returns "
        "logits (docs/export.md shows one)"
    )


def _shown_output(outputs: object) -> str:
    if isinstance(outputs, Tensor):
        return f"a tensor of shape {list(outputs.shape)}"
    entries: list[tuple[str, object]] = []
    if isinstance(outputs, Mapping):
        entries = [(f"{key!r}: ", value) for key, value in outputs.items()]
    elif isinstance(outputs, tuple | list):
        entries = [("", value) for value in outputs]
    held = ", ".join(
        name + (str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__)
        for name, value in entries
    )
    return f"a {type(outputs).__name__}" + (f" with {held}" if held else "")


def first_names(names: tuple[str, ...]) -> str:
    """Return the first names, for a message, and how many more there are."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f", and {rest} more" if rest > 0 else "")
