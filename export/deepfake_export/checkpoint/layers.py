"""Heads (and small networks) that a spec writes out layer by layer, in the words of `head.layers`; where heads are.

Each entry is one entry of the training code's `nn.Sequential`: the numbers in the checkpoint's names
(``classifier.0.weight``, ``classifier.3.weight``) are those of the list. Layers are built for the shape that reaches
them; nothing here knows of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import CheckpointError, SpecError


class Normalize(nn.Module):
    """Gives the features of each crop the length 1."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the features ``[N, F]``, divided by their L2 norm."""
        # In FP32 whatever the network computes in: half precision has neither the squares nor the smallest norm.
        return nn.functional.normalize(features.float(), dim=-1).to(features.dtype)


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "tanh": nn.Tanh,
    "dropout": nn.Dropout,
    "flatten": nn.Flatten,
    "identity": nn.Identity,
    "avgpool": lambda: nn.AdaptiveAvgPool2d(1),
    "normalize": Normalize,
}


class Layers(nn.Sequential):
    """What `build_layers` returns; a type of its own, by which `head_path` finds it inside a network."""


def build_layers(layers: Sequence[str], input_shape: Sequence[int]) -> Layers:
    """Build the network of `Head.layers` for samples of the shape ``[features]`` or ``[channels, H, W]``.

    Raises:
        SpecError: an entry cannot take what reaches it; the message says which and what reaches it.
    """
    network = Layers()
    # Two samples: batch norm needs more than one value per channel even to be built by some versions.
    sample = torch.zeros(2, *input_shape)
    for index, entry in enumerate(layers):
        try:
            layer = _build_layer(entry, tuple(sample.shape[1:])).eval()
            with torch.no_grad():
                sample = layer(sample)
        except (RuntimeError, ValueError) as exc:
            raise SpecError(
                f"field 'head.layers' is {list(layers)}, whose entry {index} ({entry!r}) cannot take what reaches it "
                f"({list(sample.shape[1:])} per crop); put 'avgpool' and 'flatten' before the first 'linear' of a "
                "spatial input"
            ) from exc
        network.append(layer)
    return network


def attach_head(network: nn.Module, spec: ModelSpec) -> None:
    """Replace the network's last linear layer by `spec.head.layers`; `SpecError` if that cannot be done."""
    path = head_path(network)
    last = network.get_submodule(path) if path else None
    if not isinstance(last, nn.Linear):
        raise SpecError(
            f"field 'head.layers' cannot be used with {spec.architecture!r}, which does not end with a linear layer; "
            "write a function that builds the network, and name it as 'architecture: python:package.module:factory'"
        )
    network.set_submodule(path, build_layers(spec.head.layers, (last.in_features,)))


def head_path(network: nn.Module) -> str:
    """Return the name of the module that is the network's head; empty where it is the network itself."""
    for name, module in network.named_modules():
        if isinstance(module, Layers):
            return str(name)
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    named = config.get("classifier")
    if isinstance(named, str) and any(name == named for name, _ in network.named_modules()):
        return str(named)
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else ""


def last_linear(network: nn.Module) -> tuple[str, nn.Linear]:
    """Return the layer of a network's head that gives the logit, with its name in the network.

    Raises:
        CheckpointError: the head has no linear layer.
    """
    path = head_path(network)
    found = [
        (".".join(filter(None, (path, name))), module)
        for name, module in network.get_submodule(path).named_modules()
        if isinstance(module, nn.Linear)
    ]
    if not found:
        raise CheckpointError(f"the head of {type(network).__name__} has no linear layer; take one that ends in one")
    return found[-1]


def _build_layer(entry: str, shape: tuple[int, ...]) -> nn.Module:
    name, _, size = entry.partition(":")
    if name == "linear":
        if len(shape) != 1:
            raise ValueError("a linear layer takes one value per feature")
        return nn.Linear(shape[0], int(size))
    if name == "conv":
        return nn.Conv2d(shape[0], int(size), 3, padding=1)
    if name == "maxpool":
        return nn.MaxPool2d(int(size))
    if name == "batchnorm":
        return nn.BatchNorm1d(shape[0]) if len(shape) == 1 else nn.BatchNorm2d(shape[0])
    if name == "layernorm":
        return nn.LayerNorm(shape[-1])
    return PLAIN[name]()
