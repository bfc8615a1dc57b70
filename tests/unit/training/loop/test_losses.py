"""What a batch is asked for beside its labels."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from deepfake_training.loop.losses import alignment, pair_loss, uniformity

FEATURES = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0], [0.0, 5.0]])
"""At 0, 90, 180 and 90 degrees: squared distances of 2 between neighbors, 4 across, 0 between second and fourth."""


def test_the_pair_loss_looks_at_pairs_alone() -> None:
    logit = torch.tensor([[0.0], [2.0], [5.0], [5.0], [1.0]])
    labels = torch.tensor([[0.0], [1.0], [1.0], [1.0], [0.0]])
    assert float(pair_loss(logit, labels)) == pytest.approx(0.126928, abs=1e-5)
    assert float(pair_loss(logit[:1], labels[:1])) == 0.0


def test_alignment_is_the_distance_within_classes() -> None:
    labels = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    assert float(alignment(FEATURES, labels)) == pytest.approx((4 + 0) / 2)
    assert float(alignment(FEATURES, torch.tensor([[0.0], [0.0], [1.0], [1.0]]))) == pytest.approx(2.0)
    assert float(alignment(FEATURES[:2], torch.tensor([[0.0], [1.0]]))) == 0.0, "no two of a class"


def test_uniformity_falls_as_features_move_apart() -> None:
    assert float(uniformity(FEATURES)) == pytest.approx(log((4 * exp(-4) + exp(-8) + 1) / 6), abs=1e-5)
    assert float(uniformity(torch.ones(3, 4))) == pytest.approx(0.0, abs=1e-5)
    assert float(uniformity(FEATURES[:1])) == 0.0, "the last batch of an epoch may have one crop"
    assert float(uniformity(FEATURES[[0, 2]])) < float(uniformity(FEATURES[[0, 1]]))


def test_steps_lead_towards_aligned_and_even_features() -> None:
    torch.manual_seed(0)
    features = torch.randn(8, 4, requires_grad=True)
    labels = torch.tensor([[0.0], [1.0]]).repeat(4, 1)
    before = float((alignment(features, labels) + uniformity(features)).detach())
    optimizer = torch.optim.SGD([features], lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        torch.autograd.backward(alignment(features, labels) + uniformity(features))
        optimizer.step()
    assert float((alignment(features, labels) + uniformity(features)).detach()) < before
