"""The network of the accurate demo detector: what is most unusual about any patch of the face.

CLIP's image tower is cut off after its tenth block. Of each of its 768 channels the largest and the smallest value
over the patches of the face is taken, and a linear layer weighs these. A mark of a fake is mostly in one place: an
eye, the rim of the mouth. The mean of all patches loses it, and so does the class token, which says what is shown.
"""

from __future__ import annotations

from typing import Final

import torch
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

BLOCKS: Final = 10
WIDTH: Final = 768
SIDE: Final = 14
"""Patches of 16 px along a side of 224."""
FACE: Final = (slice(3, 12), slice(3, 11))
"""Rows and columns of the patches on the face, where a crop has a margin of 0.1 around the detector's box."""


class PatchExtremes(VisionTransformer):
    """FP32 ``[N, 3, 224, 224]`` -> ``[N, 1]``; the names of the tower's weights are timm's."""

    def __init__(self) -> None:
        super().__init__(
            img_size=16 * SIDE,
            patch_size=16,
            embed_dim=WIDTH,
            depth=BLOCKS,
            num_heads=12,
            num_classes=0,
            global_pool="",
            pre_norm=True,
            final_norm=False,
            norm_layer=_Norm,
            act_layer="quick_gelu",
        )
        self.head = nn.Linear(2 * WIDTH, 1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logit of tokens ``[N, 1 + 196, 768]``, or with `pre_logits` what the linear layer weighs."""
        patches = functional.layer_norm(x[:, 1:], (WIDTH,)).reshape(-1, SIDE, SIDE, WIDTH)
        face = patches[:, FACE[0], FACE[1]].flatten(1, 2)
        extremes = torch.cat(
            [functional.normalize(face.amax(1), dim=-1), functional.normalize(-face.amin(1), dim=-1)], dim=-1
        )
        return extremes if pre_logits else self.head(extremes)


class _Norm(LayerNorm):
    """With CLIP's epsilon."""

    def __init__(self, channels: int, **options: object) -> None:
        super().__init__(channels, eps=1e-5)


def build() -> nn.Module:
    """Return the network with random weights."""
    return PatchExtremes()
