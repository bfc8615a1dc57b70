"""Small networks for the tests of explanations; import as ``explain_nets`` (see conftest.py)."""

from __future__ import annotations

import torch
from torch import nn

from deepfake_explain import CheckpointExplainer
from deepfake_preprocess.contract.spec import Head, ModelSpec

SIDE_PX = 48
SHA = "ab" * 32
OTHER_SHA = "cd" * 32


def spec_of(architecture: str = "python:tests:tiny", **changes: object) -> ModelSpec:
    """A spec for crops of `SIDE_PX`."""
    values = {"input_height_px": SIDE_PX, "input_width_px": SIDE_PX, "checkpoint_sha256": SHA} | changes
    return ModelSpec("tiny", architecture, **values)  # type: ignore[arg-type]


def tiny_network(outputs: int = 1, *, seed: int = 0) -> nn.Module:
    """Two convolutions, the last with an activation in place, pooling and a linear head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(inplace=True),
            nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, outputs),
        )  # fmt: skip
        nn.init.uniform_(network[7].weight, -2, 2)
    return network.eval()


def tiny_explainer(**options: object) -> CheckpointExplainer:
    """An explainer of `tiny_network`."""
    return CheckpointExplainer(tiny_network(), spec_of(), **options)  # type: ignore[arg-type]


SOFTMAX = Head("softmax", 0)
