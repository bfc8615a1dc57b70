"""The loss of pairs, and the step of sharpness-aware minimization."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def pair_loss(logit: Tensor, labels: Tensor) -> Tensor:
    """Return the mean logistic loss of the logits' difference between neighbors, real and fake; 0 without any.

    Args:
        logit: float ``[N, 1]``, of a batch in which a fake follows the picture it was made from.
        labels: float ``[N, 1]``, 1 for fake.
    """
    even = len(logit) // 2 * 2
    difference = logit[1:even:2] - logit[0:even:2]
    is_pair = (labels[1:even:2] == 1) & (labels[0:even:2] == 0)
    return (nn.functional.softplus(-difference) * is_pair).sum() / is_pair.sum().clamp(min=1)


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
