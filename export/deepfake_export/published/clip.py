"""Linear probes on CLIP ViT-L/14: UniversalFakeDetect and GenD, on timm's vision transformer.

Sources: Ojha et al., "Towards Universal Fake Image Detectors that Generalize Across Generative Models", CVPR 2023,
github.com/WisconsinAIVision/UniversalFakeDetect (OpenAI's names); Yermakov et al., "Deepfake Detection that
Generalizes Across Benchmarks", github.com/yermandy/GenD (the names of Hugging Face's transformers).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepfake_preprocess.support.extras import require_extra

VISION = "vit_large_patch14_clip_quickgelu_224"
"""CLIP was trained with the quick form of GELU."""

_OPENAI = (
    (r"conv1\.weight$", "patch_embed.proj.weight"), (r"class_embedding$", "cls_token"),
    (r"positional_embedding$", "pos_embed"), (r"ln_pre\.", "norm_pre."), (r"ln_post\.", "norm."),
    (r"transformer\.resblocks\.(\d+)\.ln_1\.", r"blocks.\1.norm1."),
    (r"transformer\.resblocks\.(\d+)\.ln_2\.", r"blocks.\1.norm2."),
    (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_", r"blocks.\1.attn.qkv."),
    (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"blocks.\1.mlp.fc1."),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"blocks.\1.mlp.fc2."),
)  # fmt: skip
_TRANSFORMERS = (
    (r"embeddings\.patch_embedding\.weight$", "patch_embed.proj.weight"),
    (r"embeddings\.class_embedding$", "cls_token"), (r"embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"pre_layrnorm\.", "norm_pre."), (r"post_layernorm\.", "norm."),
    (r"encoder\.layers\.(\d+)\.layer_norm([12])\.", r"blocks.\1.norm\2."),
    (r"encoder\.layers\.(\d+)\.mlp\.", r"blocks.\1.mlp."),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"blocks.\1.attn.proj."),
)  # fmt: skip


class ClipProbe(nn.Module):
    """FP32 ``[N, 3, 224, 224]`` -> ``[N, num_logits]``.

    `projected` puts CLIP's projection into the space of texts before the probe, and `normalized` scales features to
    unit length.
    """

    def __init__(self, num_logits: int, *, projected: int = 0, normalized: bool = False, **options: Any) -> None:
        super().__init__()
        timm = require_extra("timm", extra="export")
        self.vision: Any = timm.create_model(VISION, pretrained=False, num_classes=0, **options)
        width = self.vision.num_features
        self.projection = nn.Linear(width, projected, bias=False) if projected else nn.Identity()
        self.fc = nn.Linear(projected or width, num_logits)
        self.normalized = normalized

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        features = self.projection(self.vision(inputs))
        logits: Tensor = self.fc(functional.normalize(features, dim=1) if self.normalized else features)
        return logits


def renamed_openai(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn the names of OpenAI's CLIP, whatever stands before ``visual.``, and ``fc.`` into `ClipProbe`'s."""
    found = {}
    for name, value in tensors.items():
        match = re.fullmatch(r"(?:\w+\.)*?visual\.(.*)", name)
        if match and match[1] == "proj":
            found["projection.weight"] = value.T
        elif match:
            found |= _as_vision(match[1], value, _OPENAI)
        else:
            found[re.sub(r"^(module\.)?fc\.", "fc.", name)] = value
    return found


def renamed_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn the names of transformers' CLIP, and ``model.linear.`` for the probe, into `ClipProbe`'s."""
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        match = re.fullmatch(r"(?:module\.)?(?:feature_extractor\.)?vision_model\.(.*)", name)
        if not match:
            found[re.sub(r"^(module\.)?model\.linear\.", "fc.", name)] = value
            continue
        attention = re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(\w+)", match[1])
        if attention:
            whole = f"vision.blocks.{attention[1]}.attn.qkv.{attention[3]}"
            parts.setdefault(whole, {})[attention[2]] = value
        else:
            found |= _as_vision(match[1], value, _TRANSFORMERS)
    for whole, three in parts.items():
        if len(three) == 3:
            found[whole] = torch.cat([three[part] for part in "qkv"])
    return found


def _as_vision(name: str, value: Tensor, rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """Return a tensor of CLIP's vision transformer by timm's name, with timm's dimensions."""
    for pattern, replacement in rules:
        new, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return {
                f"vision.{new}": value.reshape(1, -1, value.shape[-1]) if new in ("cls_token", "pos_embed") else value
            }
    return {f"vision.{name}": value}
