"""F3Net and UCF as DeepfakeBench trains them, on timm's Xception.

Sources: Yan et al., "DeepfakeBench", NeurIPS 2023, github.com/SCLBD/DeepfakeBench (names and shapes); Qian et al.,
"Thinking in Frequency", ECCV 2020 (F3Net; the benchmark trains its FAD branch alone); Yan et al., "UCF: Uncovering
Common Features", ICCV 2023, section 3 (the shared features decide).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deepfake_preprocess.support.extras import require_extra

FREQUENCY_PX = 256
"""Input size that the filters of F3Net are made for."""
FEATURES = 512


class BandFilter(nn.Module):
    """A fixed mask of frequencies and a learned one beside it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.zeros(size, size), requires_grad=False)
        self.learnable = nn.Parameter(torch.zeros(size, size))

    def forward(self, spectrum: Tensor) -> Tensor:
        """Filter ``[N, 3, size, size]``."""
        return spectrum * (self.base + 2 * self.learnable.sigmoid() - 1)


class FrequencyHead(nn.Module):
    """Splits pictures into four bands of their cosine transform; the transform and the masks come from the file."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._DCT_all = nn.Parameter(torch.zeros(size, size), requires_grad=False)
        self._DCT_all_T = nn.Parameter(torch.zeros(size, size), requires_grad=False)
        self.filters = nn.ModuleList(BandFilter(size) for _ in range(4))

    def forward(self, inputs: Tensor) -> Tensor:
        """FP32 ``[N, 3, size, size]`` -> ``[N, 12, size, size]``."""
        forward, backward = self._DCT_all, self._DCT_all_T
        spectrum = forward @ inputs @ backward
        return torch.cat([backward @ band(spectrum) @ forward for band in self.filters], dim=1)


class F3Net(nn.Module):
    """Xception on the four frequency bands; FP32 ``[N, 3, 256, 256]`` -> ``[N, num_logits]``."""

    def __init__(self, num_logits: int) -> None:
        super().__init__()
        self.FAD_head = FrequencyHead(FREQUENCY_PX)
        self.backbone: Any = _xception(in_chans=12, num_classes=num_logits)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        result: Tensor = self.backbone(self.FAD_head(inputs))
        return result


class SharedFeatures(nn.Module):
    """UCF's way at inference: the encoder of forgeries, its shared half, and the head on that."""

    def __init__(self, num_logits: int) -> None:
        super().__init__()
        self.encoder_f: Any = _xception(num_classes=0)
        self.encoder_f.act4 = nn.Identity()  # the features are taken before the last activation
        self.encoder_f.adjust_channel = nn.Sequential(
            nn.Conv2d(2048, FEATURES, 1), nn.BatchNorm2d(FEATURES), nn.ReLU()
        )
        half = FEATURES // 2
        pointwise: list[nn.Module] = [nn.Conv2d(FEATURES, half, 1)]
        for _ in range(2):
            pointwise += [nn.LeakyReLU(), nn.Conv2d(half, half, 1)]
        self.block_sha = nn.ModuleDict({"conv2d": nn.Sequential(*pointwise)})
        mlp = nn.Sequential(nn.Linear(half, FEATURES), nn.LeakyReLU(), nn.Linear(FEATURES, num_logits))
        self.head_sha = nn.ModuleDict({"mlp": mlp})

    def forward(self, inputs: Tensor) -> Tensor:
        """FP32 ``[N, 3, H, W]`` -> ``[N, num_logits]``."""
        features = self.encoder_f.adjust_channel(self.encoder_f.forward_features(inputs))
        shared = self.block_sha["conv2d"](features)
        result: Tensor = self.head_sha["mlp"](shared.mean((2, 3)))
        return result


def renamed_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn the names of the benchmark's Xception into timm's: its head has another name, and dropout before it."""
    return {
        name.replace("last_linear.1.", "fc.").replace("last_linear.", "fc."): value for name, value in tensors.items()
    }


def _xception(**options: int) -> nn.Module:
    timm = require_extra("timm", extra="export")
    network: nn.Module = timm.create_model("legacy_xception", pretrained=False, **options)
    return network
