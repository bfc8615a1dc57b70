"""Batch normalization with frozen statistics, computed within the convolution before it.

With its statistics frozen, a batch normalization is a scale and a shift per channel. Applied to the convolution's
weights instead of its output, forward and backward, they cost next to nothing. Function, parameters, gradients and
checkpoints stay what they were, but for rounding.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, fx, nn


class _FoldingConv(nn.Conv2d):
    """A convolution that does the work of a normalization as well."""

    folded: tuple[nn.BatchNorm2d]  # in a tuple, or it would become a part of this module

    def forward(self, input: Tensor) -> Tensor:
        (norm,) = self.folded
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        if self.bias is not None:
            shift = shift + self.bias * scale
        result: Tensor = self._conv_forward(input, self.weight * scale[:, None, None, None], shift)
        return result


class _FoldedNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return input


class _FoldedNormAct(BatchNormAct2d):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.act(self.drop(x))
        return result


_FOLDED: Final[dict[type[nn.Module], type[nn.Module]]] = {nn.BatchNorm2d: _FoldedNorm, BatchNormAct2d: _FoldedNormAct}


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in _FOLDED or super().is_leaf_module(m, module_qualified_name)


def fold_frozen_norms(network: nn.Module) -> int:
    """Let convolutions do the work of the batch normalizations behind them, whose statistics must stay frozen.

    Only where nothing but the normalization uses a convolution's output. A copy of the network is folded, too.
    Returns how many were folded; 0 where PyTorch cannot trace the network.
    """
    try:
        nodes = list(_Tracer().trace(network).nodes)
    except Exception:  # tracing runs the network's own code, which may do anything with what it is given
        return 0
    modules: dict[Any, nn.Module] = dict(network.named_modules())
    calls = [node.target for node in nodes if node.op == "call_module"]
    count = 0
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        conv, norm = modules[before.target], modules[node.target]
        used_once = calls.count(before.target) == calls.count(node.target) == 1
        if type(conv) is nn.Conv2d and type(norm) in _FOLDED and used_once:
            norm.__class__ = _FOLDED[type(norm)]
            conv.__class__ = _FoldingConv
            conv.__dict__["folded"] = (norm,)
            count += 1
    return count
