"""Finds the layer that a heatmap is made of: the last one that still knows where in the picture things are.

Nothing is looked up by the architecture's name. One blank crop runs through the network, and the shapes say which
layers have a map: ``[N, C, h, w]`` of convolutions, ``[N, h, w, C]`` of Swin, ``[N, tokens, C]`` of ViT.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepfake_preprocess.errors import ExplainError, OptionError

MAX_PREFIX_TOKENS = 8
"""Class, distillation and register tokens that may stand before the picture's own (DINOv2 has five)."""

SHOWN = 12
"""How many layers a message lists."""

Reshape = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class TargetLayer:
    """A layer whose output is a map of the picture."""

    name: str  # as in `nn.Module.named_modules`
    module: nn.Module
    reshape: Reshape | None  # from the layer's output to ``[N, C, h, w]``; None where it is that already
    tokens: bool  # whether the output is ``[N, tokens, C]``


def spatial_layers(network: nn.Module, sample: Tensor) -> tuple[TargetLayer, ...]:
    """Return every layer whose output is a map of a blank ``[1, C, H, W]`` sample, in the order in which they finish.

    Layers that run several times in one pass are left out: which of their outputs is meant would be a guess.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise ExplainError(
            "a TorchScript network cannot be explained, because its layers cannot be listened to; export the same "
            "weights as a state dict with 'architecture: timm:NAME' or 'python:package.module:factory' in the spec"
        )
    outputs: list[tuple[str, nn.Module, object]] = []
    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: outputs.append((name, module, output)))
        for name, module in network.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            network(sample)
    finally:
        for handle in handles:
            handle.remove()
    calls = Counter(name for name, _, _ in outputs)
    size_hw = (int(sample.shape[2]), int(sample.shape[3]))
    found = []
    for name, module, output in outputs:
        if calls[name] == 1 and isinstance(output, Tensor):
            is_map, reshape = _layout(output, size_hw)
            if is_map:
                found.append(TargetLayer(name, module, reshape, tokens=output.ndim == 3))
    return tuple(found)


def find_target_layer(layers: tuple[TargetLayer, ...], name: str | None) -> TargetLayer:
    """Return the layer of that name, or without one the last of the convolutional (or attention) part.

    That is what the network pools over: the last map of a network with convolutions, after its norm and activation
    (`bn2` of timm's EfficientNet, `features.8` of torchvision's, `stages.3` of ConvNeXt, `norm` of Swin). For a ViT,
    whose last output is read at the class token only, it is the norm before the last attention, through which the
    picture's tokens still reach the score.
    """
    if name is not None:
        for layer in layers:
            if layer.name == name:
                return layer
        raise OptionError(f"`layer` is {name!r}; allowed: {list_names(layers, near=name)}")
    if not layers:
        raise ExplainError(
            "the network has no layer with a map of the picture, so a heatmap cannot be made; that is the case for "
            "networks that flatten the picture at once"
        )
    maps = [layer for layer in layers if not layer.tokens and not _passes_on(layer.module)]
    # What comes after the last map: nothing in a network of convolutions, all blocks of a ViT.
    after = layers[layers.index(maps[-1]) + 1 :] if maps else layers
    norms = [layer for layer in after if layer.tokens and re.search(r"(^|\.)(norm1|ln_1)$", layer.name)]
    return (norms or maps or layers)[-1]


def list_names(layers: tuple[TargetLayer, ...], *, near: str = "") -> str:
    """Return the layers' names for a message: the last ones, and those that are spelled like `near`."""
    names = [layer.name for layer in layers]
    shown = difflib.get_close_matches(near, names, n=3, cutoff=0.6) if near else []
    shown += [name for name in reversed(names) if name not in shown][: SHOWN - len(shown)]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f", and {rest} more" if rest > 0 else "")


def _layout(output: Tensor, size_hw: tuple[int, int]) -> tuple[bool, Reshape | None]:
    """Return whether an output is a map of the picture, and what reshapes it where it needs that."""
    shape = tuple(int(length) for length in output.shape)
    if len(shape) == 4:
        if _is_grid(shape[2:], size_hw):
            return True, None
        if _is_grid(shape[1:3], size_hw):
            return True, lambda values: values.permute(0, 3, 1, 2)
    if len(shape) == 3:
        reshape = _token_reshape(shape[1], size_hw)
        return reshape is not None, reshape
    return False, None


def _is_grid(sides: tuple[int, ...], size_hw: tuple[int, int]) -> bool:
    """Whether rows and columns are those of the picture, scaled down, up to one that was rounded away."""
    rows, columns = sides
    return (
        1 < rows <= size_hw[0] and 1 < columns <= size_hw[1] and abs(rows * size_hw[1] - columns * size_hw[0])
        <= max(size_hw)
    )  # fmt: skip


def _token_reshape(tokens: int, size_hw: tuple[int, int]) -> Reshape | None:
    for prefix in range(MAX_PREFIX_TOKENS + 1):
        rows = round(((tokens - prefix) * size_hw[0] / size_hw[1]) ** 0.5) if tokens > prefix else 0
        columns = (tokens - prefix) // rows if rows else 0
        if rows * columns == tokens - prefix and rows and _is_grid((rows, columns), size_hw):
            return _tokens_to_map(prefix, rows, columns)
    return None


def _tokens_to_map(prefix: int, rows: int, columns: int) -> Reshape:
    return lambda tokens: tokens[:, prefix:].reshape(len(tokens), rows, columns, -1).permute(0, 3, 1, 2)


def _passes_on(module: nn.Module) -> bool:
    """Whether a layer only hands on or pools what another one made; the other one has the better name."""
    return type(module) is nn.Sequential or any(
        word in type(module).__name__ for word in ("Identity", "Drop", "Pool", "Permute", "Flatten")
    )
