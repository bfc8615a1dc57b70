"""EfficientNets of `efficientnet_pytorch`, and detectors made of them, on timm's networks.

Sources: L. Melas-Kyriazi, github.com/lukemelas/EfficientNet-PyTorch 0.7.1 (names, and padding that is fixed for the
size each network was made for); EfficientNetAutoAttB4: Bonettini et al., "Video Face Manipulation Detection Through
Ensemble of CNNs", ICPR 2020, github.com/polimi-ispl/icpr2020dfdc; EfficientNet-B4 of github.com/SCLBD/DeepfakeBench.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from deepfake_preprocess.support.extras import require_extra

NATIVE_PX = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600}
STAGES = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of each stage of B0; a deeper one has `DEPTHS` times as many, rounded up."""
DEPTHS = {"b0": 1.0, "b1": 1.1, "b2": 1.2, "b3": 1.4, "b4": 1.8, "b5": 2.2, "b6": 2.6, "b7": 3.1}
ATTENTION_AFTER = (2, -1)
"""Stage and block of the attention of EfficientNetAutoAttB4: block 9 of all."""

_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_INSIDE = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand", "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
_FIRST_STAGE = {**_INSIDE, "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Blocks of the first stage expand nothing."""


class PaddedConv(nn.Conv2d):
    """A convolution that pads its input by fixed numbers of zeros first."""

    sides = (0, 0, 0, 0)

    def forward(self, inputs: Tensor) -> Tensor:
        """Convolve ``[N, C, H, W]``."""
        return super().forward(functional.pad(inputs, self.sides))


class AutoAttention(nn.Module):
    """EfficientNet-B4 whose features after the tenth block are multiplied by an attention of one channel."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body: Any = body
        self.attconv = nn.Conv2d(56, 1, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """FP32 ``[N, 3, H, W]`` -> ``[N, 1]``."""
        values = self.body.bn1(self.body.conv_stem(inputs))
        for stage, blocks in enumerate(self.body.blocks):
            values = blocks(values)
            if stage == ATTENTION_AFTER[0]:
                values = values * self.attconv(values).sigmoid()
        values = self.body.bn2(self.body.conv_head(values))
        result: Tensor = self.body.forward_head(values)
        return result


def efficientnet(version: str, num_logits: int, *, pad_stem: bool = True) -> nn.Module:
    """Build the timm network of an `efficientnet_pytorch` version (``b4``), with that package's padding."""
    timm = require_extra("timm", extra="export")
    network: nn.Module = timm.create_model(f"tf_efficientnet_{version}", pretrained=False, num_classes=num_logits)
    size = NATIVE_PX[version]
    for name, module in list(network.named_modules()):
        if not isinstance(module, nn.Conv2d) or module.stride[0] == 1:
            continue
        kernel = module.kernel_size[0]
        total = max((-(-size // 2) - 1) * 2 + kernel - size, 0)
        if name == "conv_stem" and not pad_stem:
            total = 0
        network.set_submodule(name, _padded(module, total // 2, total - total // 2))
        size = -(-size // 2)
    return network


def _padded(conv: nn.Conv2d, before: int, after: int) -> PaddedConv:
    """Return a convolution of the same shape with this padding."""
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    padded = PaddedConv(conv.in_channels, conv.out_channels, kernel, stride, groups=conv.groups, bias=False)
    padded.sides = (before, after, before, after)
    return padded


def renaming(version: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return what turns names of `efficientnet_pytorch`, with whatever prefix, into timm's."""
    places = list(_places(version))

    def renamed(name: str) -> str:
        match = re.fullmatch(r"(.*?)_blocks\.(\d+)\.(_\w+)\.(\w+)", name)
        if match and int(match[2]) < len(places):
            stage, block = places[int(match[2])]
            inner = (_FIRST_STAGE if stage == 0 else _INSIDE).get(match[3], match[3])
            return f"{match[1]}blocks.{stage}.{block}.{inner}.{match[4]}"
        match = re.fullmatch(r"(.*?)(_\w+?)\.(\w+)", name)
        if match and match[2] in _OUTSIDE:
            return f"{match[1]}{_OUTSIDE[match[2]]}.{match[3]}"
        return name

    return lambda tensors: {renamed(name): value for name, value in tensors.items()}


def renamed_attention(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn the names of EfficientNetAutoAttB4 into those of `AutoAttention`."""
    found = {}
    for name, value in renaming("b4")(tensors).items():
        inner = re.sub(r"efficientnet\.(?!attconv)", "body.", name, count=1)
        inner = inner.replace("efficientnet.attconv.", "attconv.")
        found[re.sub(r"^(module\.)?classifier\.", r"\1body.classifier.", inner)] = value
    return found


def _places(version: str) -> Iterator[tuple[int, int]]:
    for stage, count in enumerate(STAGES):
        yield from ((stage, block) for block in range(-int(-count * DEPTHS[version] // 1)))
