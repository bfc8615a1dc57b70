"""NPR: the first half of a ResNet-50 on how pixels differ from their neighbors.

Source: Tan et al., "Rethinking the Up-Sampling Operations in CNN-based Generative Network for Generalizable Deepfake
Detection", CVPR 2024; names and shapes of github.com/chuangchuangtan/NPR-DeepfakeDetection.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from deepfake_preprocess.support.extras import require_extra

SCALE = 2 / 3
"""What the authors multiply the differences by."""


class NeighboringPixels(nn.Module):
    """FP32 ``[N, 3, H, W]``, of even H and W, -> ``[N, num_logits]``."""

    def __init__(self, num_logits: int) -> None:
        super().__init__()
        resnet: Any = require_extra("torchvision.models.resnet", extra="export")
        whole: Any = resnet.ResNet(resnet.Bottleneck, [3, 4, 1, 1], num_classes=1)
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1, self.layer2 = whole.layer1, whole.layer2
        self.fc1 = nn.Linear(512, num_logits)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        coarse = functional.interpolate(inputs[..., ::2, ::2], scale_factor=2.0, mode="nearest")
        values = self.bn1(self.conv1((inputs - coarse) * SCALE)).relu()
        values = functional.max_pool2d(values, 3, stride=2, padding=1)
        logits: Tensor = self.fc1(self.layer2(self.layer1(values)).mean((2, 3)))
        return logits
