"""What a batch is asked for beside its labels: of pairs a larger logit, of features where on the sphere they lie."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def pair_loss(logit: Tensor, labels: Tensor) -> Tensor:
    """Return the mean logistic loss of the logits' difference between neighbors, real and fake; 0 without any.

    Both are float ``[N, 1]``, labels 1 for fake; in a batch a fake follows the picture it was made from.
    """
    even = len(logit) // 2 * 2
    difference = logit[1:even:2] - logit[0:even:2]
    is_pair = (labels[1:even:2] == 1) & (labels[0:even:2] == 0)
    return (functional.softplus(-difference) * is_pair).sum() / is_pair.sum().clamp(min=1)


def alignment(features: Tensor, labels: Tensor) -> Tensor:
    """Return the mean squared distance between the features of crops of one class; 0 without two of a class.

    With `uniformity` from Wang and Isola (ICML 2020), for crops of one class as Yermakov et al. (arXiv 2508.06248).

    Args:
        features: float ``[N, F]``, of any length; their directions are compared.
        labels: float ``[N, 1]``.
    """
    directions = functional.normalize(features, dim=-1)
    squared = 2 - 2 * directions @ directions.T
    same = labels == labels.T
    same.fill_diagonal_(False)
    return (squared * same).sum() / same.sum().clamp(min=1)


def uniformity(features: Tensor) -> Tensor:
    """Return how unevenly the directions of features ``[N, F]`` lie on the sphere; falls as they move apart.

    The logarithm of the mean of exp(-2 d^2), d the distance of two of them: 0 where all are one, or there is but one.
    """
    directions = functional.normalize(features, dim=-1)
    if len(directions) < 2:
        return directions.sum() * 0
    return torch.pdist(directions).square().mul(-2).exp().mean().log()
