"""Sharpness-aware steps (Foret et al., ICLR 2021): gradients from where the loss near the weights is largest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def uphill(weights: Sequence[Tensor], loss: Tensor, radius: float) -> Iterator[None]:
    """Inside, the weights are where the loss within `radius` of them is largest, to first order."""
    gradients = torch.autograd.grad(loss, weights)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.add_(gradient * (radius / norm.clamp(min=1e-12)))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
