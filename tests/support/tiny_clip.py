"""A small CLIP image tower: class token, norm before the blocks, quick GELU. Import it before a spec names it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

from deepfake_export.checkpoint.architectures import build_network
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_preprocess.contract.spec import Head, ModelSpec

SIDE_PX = 64
SPEC = ModelSpec(
    "clip",
    "timm:tiny_clip_quickgelu",
    head=Head(layers=("normalize", "linear:1")),
    input_height_px=SIDE_PX,
    input_width_px=SIDE_PX,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)


@register_model
def tiny_clip_quickgelu(num_classes: int = 1, **_about_weights: Any) -> VisionTransformer:
    """As timm's `vit_base_patch16_clip_quickgelu_224`, with three blocks of 64."""
    return VisionTransformer(
        img_size=SIDE_PX,
        patch_size=8,
        embed_dim=64,
        depth=3,
        num_heads=2,
        pre_norm=True,
        norm_layer="layernorm",
        act_layer="quick_gelu",
        num_classes=num_classes,
    )


def tiny_clip(crops: NDArray[np.uint8], seed: int = 0) -> torch.nn.Module:
    """The network of `SPEC`, random, with logits of these crops that are spread by 2 around a gap at 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(SPEC).eval()
        for name, value in network.named_parameters():
            if value.ndim > 1 and "embed" not in name:
                torch.nn.init.normal_(value, std=0.12)
    head = network.get_submodule("head.1")
    detector = ServedDetector(network, SPEC).eval()
    with torch.no_grad():
        logit = detector(torch.from_numpy(crops))[1]
        head.weight.mul_(2 / logit.std())
        logits = np.sort(detector(torch.from_numpy(crops))[1][:, 0].numpy())
        quarter = len(logits) // 4
        gap = int(np.diff(logits[quarter:-quarter]).argmax()) + quarter
        head.bias.sub_(float(logits[gap] + logits[gap + 1]) / 2)
    return network
