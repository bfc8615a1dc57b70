"""CViT: convolutions, and a vision transformer on their features.

Source: Wodajo and Atnafu, "Deepfake Video Detection Using Convolutional Vision Transformer", 2021 (arXiv 2102.11126);
names and shapes of `model/cvit.py` in github.com/erprogs/CViT (CViT2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PATCH = 7
DIMENSION, HIDDEN, HEADS, DEPTH = 1024, 2048, 8, 6
STAGES = ((32, 3), (64, 3), (128, 3), (256, 4), (512, 4))
"""Channels and convolutions between two poolings."""


class Attention(nn.Module):
    """Attention of all tokens to all, scaled by the whole dimension as the authors do."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(DIMENSION, 3 * DIMENSION, bias=False)
        self.to_out = nn.Linear(DIMENSION, DIMENSION)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``[N, T, D]`` for ``[N, T, D]``."""
        parts = self.to_qkv(tokens).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        weights = (query @ key.transpose(-2, -1) * DIMENSION**-0.5).softmax(-1)
        mixed: Tensor = self.to_out((weights @ value).transpose(1, 2).flatten(2))
        return mixed


class FeedForward(nn.Module):
    """Two linear layers under the name that the file has for them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(DIMENSION, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, DIMENSION))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``[N, T, D]`` for ``[N, T, D]``."""
        result: Tensor = self.net(tokens)
        return result


class Normed(nn.Module):
    """A layer norm before a part, as ``fn.norm`` and ``fn.fn``."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.fn = nn.ModuleDict({"norm": nn.LayerNorm(DIMENSION), "fn": part})

    def forward(self, tokens: Tensor) -> Tensor:
        """Add the part's result to its input."""
        result: Tensor = tokens + self.fn["fn"](self.fn["norm"](tokens))
        return result


class CViT(nn.Module):
    """FP32 ``[N, 3, 224, 224]`` -> ``[N, num_logits]``."""

    def __init__(self, num_logits: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for outputs, count in STAGES:
            for _ in range(count):
                layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                channels = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pos_embedding = nn.Parameter(torch.zeros(1, (224 // PATCH) ** 2 + 1, DIMENSION))
        self.patch_to_embedding = nn.Linear(channels * PATCH**2, DIMENSION)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIMENSION))
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(
            nn.ModuleList([Normed(Attention()), Normed(FeedForward())]) for _ in range(DEPTH)
        )
        self.mlp_head = nn.Sequential(nn.Linear(DIMENSION, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_logits))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        maps = self.features(inputs)
        patches = maps.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH)).permute(0, 2, 4, 3, 5, 1)
        tokens = self.patch_to_embedding(patches.flatten(3).flatten(1, 2))
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], 1)
        tokens = tokens + self.pos_embedding[:, : tokens.shape[1]]
        for part in self.transformer.modules():
            if isinstance(part, Normed):
                tokens = part(tokens)
        logits: Tensor = self.mlp_head(tokens[:, 0])
        return logits
