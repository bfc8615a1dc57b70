"""The accurate demo's network: a layer on the extremes of CLIP's patches, which are those of the face."""

from __future__ import annotations

import torch

from deepfake_export.demo.patch_extremes import FACE, SIDE, WIDTH, build


def test_only_patches_on_the_face_decide() -> None:
    network = build().eval()
    tokens = torch.randn(2, 1 + SIDE * SIDE, WIDTH)
    before = network.forward_head(tokens)
    assert before.shape == (2, 1)
    grid = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    grid[FACE] = True
    elsewhere = tokens.clone()
    elsewhere[:, 1:][:, ~grid.flatten()] *= -3
    elsewhere[:, 0] += 1
    assert torch.equal(network.forward_head(elsewhere), before)
    on_it = tokens.clone()
    on_it[:, 1:][:, grid.flatten()] *= -1
    assert not torch.allclose(network.forward_head(on_it), before)


def test_features_have_the_same_length_whatever_the_crop() -> None:
    features = build().eval().forward_head(torch.randn(3, 1 + SIDE * SIDE, WIDTH), pre_logits=True)
    assert features.shape == (3, 2 * WIDTH)
    assert torch.allclose(features.norm(dim=-1), torch.full((3,), 2**0.5), atol=1e-4)
