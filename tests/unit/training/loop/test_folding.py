"""Folded normalizations: what a network computes and learns stays the same."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from deepfake_training.loop.folding import fold_frozen_norms


def moved_statistics(network: nn.Module) -> nn.Module:
    """Return the network in eval mode, with normalizations that do something."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data.add_(0.2 * torch.rand(tensor.shape, generator=generator))
    return network.eval()


@pytest.mark.parametrize(("name", "norms"), [("efficientnet_b0", 49), ("resnet18", 20), ("convnext_atto", 0)])
def test_a_folded_network_gives_the_same_scores_and_gradients(name: str, norms: int) -> None:
    torch.manual_seed(0)
    plain = moved_statistics(timm.create_model(name, num_classes=1)).double()
    folded = copy.deepcopy(plain)
    assert fold_frozen_norms(folded) == norms
    assert fold_frozen_norms(folded) == 0, "folded already"
    pictures = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    for network in (plain, folded):
        network(pictures).sum().backward()
    torch.testing.assert_close(folded(pictures), plain(pictures))
    assert list(folded.state_dict()) == list(plain.state_dict())
    for ours, theirs in zip(folded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_copy_is_folded_with_its_own_weights() -> None:
    network = moved_statistics(timm.create_model("resnet18", num_classes=1))
    fold_frozen_norms(network)
    twin = copy.deepcopy(network)
    pictures = torch.rand(1, 3, 64, 64)
    before = twin(pictures)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    assert torch.equal(twin(pictures), before)
    assert not torch.allclose(network(pictures), before)


class Branching(nn.Module):
    """The convolution's output is used twice, so that it must not be normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        seen = self.conv(pictures)
        return self.norm(seen) + seen


class Untraceable(Branching):
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(pictures)) if pictures.sum() > 0 else pictures


@pytest.mark.parametrize("kind", [Branching, Untraceable])
def test_what_cannot_be_folded_is_left_alone(kind: type[nn.Module]) -> None:
    network = moved_statistics(kind())
    pictures = torch.rand(1, 3, 8, 8)
    before = network(pictures)
    assert fold_frozen_norms(network) == 0
    assert torch.equal(network(pictures), before)
