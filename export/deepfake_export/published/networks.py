"""What ``architecture: published:NAME`` can name: how each network is built, and how its file's names become ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from deepfake_export.published.clip import ClipProbe, renamed_openai, renamed_transformers
from deepfake_export.published.cvit import CViT
from deepfake_export.published.deepfakebench import F3Net, SharedFeatures, renamed_head
from deepfake_export.published.efficientnet import (
    NATIVE_PX,
    AutoAttention,
    efficientnet,
    renamed_attention,
    renaming,
)
from deepfake_export.published.mesonet import Meso4, MesoInception4
from deepfake_export.published.npr import NeighboringPixels

CLIP_DIMENSION = 768
"""Dimension of CLIP ViT-L/14's space of pictures and texts."""


@dataclass(frozen=True, slots=True)
class PublishedNetwork:
    """A network of others.

    Attributes:
        build: from the number of logits to the network, FP32 ``[N, 3, H, W]`` -> ``[N, num_logits]``.
        renamed: from tensors by the names in the authors' files to those by the network's own.
    """

    build: Callable[[int], nn.Module]
    renamed: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict


PUBLISHED: Mapping[str, PublishedNetwork] = {
    **{
        f"efficientnet_pytorch_{version}": PublishedNetwork(partial(efficientnet, version), renaming(version))
        for version in NATIVE_PX
    },
    "deepfakebench_efficientnet_b4": PublishedNetwork(partial(efficientnet, "b4", pad_stem=False), renaming("b4")),
    "efficientnet_autoatt_b4": PublishedNetwork(
        lambda num_logits: AutoAttention(efficientnet("b4", num_logits)), renamed_attention
    ),
    "f3net": PublishedNetwork(F3Net, renamed_head),
    "ucf": PublishedNetwork(SharedFeatures),
    "meso4": PublishedNetwork(Meso4),
    "mesoinception4": PublishedNetwork(MesoInception4),
    "cvit": PublishedNetwork(CViT),
    "npr": PublishedNetwork(NeighboringPixels),
    "universal_fake_detect": PublishedNetwork(partial(ClipProbe, projected=CLIP_DIMENSION), renamed_openai),
    "gend_clip_l14": PublishedNetwork(partial(ClipProbe, normalized=True), renamed_transformers),
}
