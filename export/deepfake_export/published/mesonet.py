"""Meso4 and MesoInception4.

Sources: Afchar et al., "MesoNet: a Compact Facial Video Forgery Detection Network", WIFS 2018; names, shapes and the
shared batch norms are those of the PyTorch version, github.com/HongguLiu/MesoNet-Pytorch (as in DeepfakeBench).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

INCEPTION = ((1, 4, 4, 2), (2, 4, 4, 2))
"""Channels of the four ways of both inception layers."""


class Meso4(nn.Module):
    """FP32 ``[N, 3, 256, 256]`` -> ``[N, num_logits]``."""

    def __init__(self, num_logits: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(8, 8, 5, padding=2, bias=False)
        self.conv3 = nn.Conv2d(8, 16, 5, padding=2, bias=False)
        self.conv4 = nn.Conv2d(16, 16, 5, padding=2, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(16)
        self.fc1, self.fc2 = nn.Linear(1024, 16), nn.Linear(16, num_logits)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        values = inputs
        convs = (self.conv1, self.conv2, self.conv3, self.conv4)
        norms = (self.bn1, self.bn1, self.bn2, self.bn2)  # each serves two layers
        for conv, norm, window in zip(convs, norms, (2, 2, 2, 4), strict=True):
            values = functional.max_pool2d(norm(conv(values).relu()), window)
        hidden: Tensor = functional.leaky_relu(self.fc1(values.flatten(1)), 0.1)
        logits: Tensor = self.fc2(hidden)
        return logits


class MesoInception4(nn.Module):
    """FP32 ``[N, 3, 256, 256]`` -> ``[N, num_logits]``."""

    def __init__(self, num_logits: int) -> None:
        super().__init__()
        channels = 3
        for number, ways in enumerate(INCEPTION, start=1):
            name = f"Incption{number}"
            self.add_module(f"{name}_conv1", nn.Conv2d(channels, ways[0], 1, bias=False))
            for way, outputs in enumerate(ways[1:], start=1):
                self.add_module(f"{name}_conv{way + 1}_1", nn.Conv2d(channels, outputs, 1, bias=False))
                wide = nn.Conv2d(outputs, outputs, 3, padding=way, dilation=way, bias=False)
                self.add_module(f"{name}_conv{way + 1}_2", wide)
            channels = sum(ways)
            self.add_module(f"{name}_bn", nn.BatchNorm2d(channels))
        self.conv1 = nn.Conv2d(channels, 16, 5, padding=2, bias=False)
        self.conv2 = nn.Conv2d(16, 16, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.fc1, self.fc2 = nn.Linear(1024, 16), nn.Linear(16, num_logits)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        values = inputs
        for number in (1, 2):
            part = {name: module for name, module in self.named_children() if name.startswith(f"Incption{number}_")}
            ways = [part[f"Incption{number}_conv1"](values)]
            for way in (2, 3, 4):
                narrow, wide = (part[f"Incption{number}_conv{way}_{step}"] for step in (1, 2))
                ways.append(wide(narrow(values)))
            values = functional.max_pool2d(part[f"Incption{number}_bn"](torch.cat(ways, 1)), 2)
        for conv, window in ((self.conv1, 2), (self.conv2, 4)):
            values = functional.max_pool2d(self.bn1(conv(values).relu()), window)
        hidden: Tensor = functional.leaky_relu(self.fc1(values.flatten(1)), 0.1)
        logits: Tensor = self.fc2(hidden)
        return logits
