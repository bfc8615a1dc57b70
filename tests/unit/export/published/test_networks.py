"""Networks of published detectors compute what the authors' do, as far as their papers and names say it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dct
from torch import Tensor, nn

from deepfake_export.published import cvit, deepfakebench, npr
from deepfake_export.published.clip import ClipProbe, renamed_openai, renamed_transformers
from deepfake_export.published.efficientnet import PaddedConv, efficientnet

WIDTH, HEADS, PX = 16, 2, 28


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Block(nn.Module):
    """A block of OpenAI's vision transformer, with its names."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, 4 * WIDTH), "c_proj": nn.Linear(4 * WIDTH, WIDTH)})

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.ln_1(tokens)
        tokens = tokens + self.attn(normed, normed, normed, need_weights=False)[0]
        hidden = self.mlp["c_fc"](self.ln_2(tokens))
        return tokens + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))


class Vision(nn.Module):
    """CLIP's vision transformer of one block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 14, 14, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn(5, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList([Block()])})
        self.proj = nn.Parameter(torch.randn(WIDTH, 8))

    def forward(self, crops: Tensor) -> Tensor:
        patches = self.conv1(crops).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(crops), 1, -1), patches], 1) + self.positional_embedding
        tokens = self.transformer["resblocks"][0](self.ln_pre(tokens))
        return self.ln_post(tokens[:, 0])


def small(**options: object) -> ClipProbe:
    return ClipProbe(1, embed_dim=WIDTH, depth=1, num_heads=HEADS, img_size=PX, **options).eval()


def test_a_probe_on_openai_clip():
    vision, probe = Vision().eval(), nn.Linear(8, 1)
    theirs = {f"model.visual.{name}": value for name, value in vision.state_dict().items()}
    theirs |= {f"fc.{name}": value for name, value in probe.state_dict().items()}
    network = small(projected=8)
    network.load_state_dict(renamed_openai(theirs))
    crops = torch.randn(2, 3, PX, PX)
    with torch.inference_mode():
        torch.testing.assert_close(network(crops), probe(vision(crops) @ vision.proj))


def test_a_normalized_probe_on_the_clip_of_transformers():
    vision, probe = Vision().eval(), nn.Linear(WIDTH, 1)
    weights = dict(vision.state_dict())
    layer = "encoder.layers.0."
    names = {
        "conv1.weight": "embeddings.patch_embedding.weight", "class_embedding": "embeddings.class_embedding",
        "positional_embedding": "embeddings.position_embedding.weight", "ln_pre.": "pre_layrnorm.",
        "ln_post.": "post_layernorm.", "transformer.resblocks.0.ln_1.": f"{layer}layer_norm1.",
        "transformer.resblocks.0.ln_2.": f"{layer}layer_norm2.",
        "transformer.resblocks.0.attn.out_proj.": f"{layer}self_attn.out_proj.",
        "transformer.resblocks.0.mlp.c_fc.": f"{layer}mlp.fc1.",
        "transformer.resblocks.0.mlp.c_proj.": f"{layer}mlp.fc2.",
    }  # fmt: skip
    theirs = {f"model.linear.{name}": value for name, value in probe.state_dict().items()}
    for name, value in weights.items():
        for old, new in names.items():
            if name.startswith(old):
                theirs[f"feature_extractor.vision_model.{new}{name.removeprefix(old)}"] = value
    for kind in ("weight", "bias"):
        whole = weights[f"transformer.resblocks.0.attn.in_proj_{kind}"]
        for part, value in zip("qkv", whole.chunk(3), strict=True):
            theirs[f"feature_extractor.vision_model.{layer}self_attn.{part}_proj.{kind}"] = value
    network = small(normalized=True)
    network.load_state_dict(renamed_transformers(theirs))
    crops = torch.randn(2, 3, PX, PX)
    with torch.inference_mode():
        torch.testing.assert_close(network(crops), probe(nn.functional.normalize(vision(crops))))


def test_padding_is_that_of_the_size_an_efficientnet_was_made_for():
    with torch.device("meta"):
        network = efficientnet("b4", 2)
        unpadded = efficientnet("b4", 2, pad_stem=False)
    sides = [module.sides[:2] for module in network.modules() if isinstance(module, PaddedConv)]
    # 380 -> 190 -> 95 -> 48 -> 24 -> 12 pixels under kernels of 3, 3, 5, 3 and 5.
    assert sides == [(0, 1), (0, 1), (2, 2), (0, 1), (1, 2)]
    assert unpadded.conv_stem.sides == (0, 0, 0, 0)


def test_bands_of_f3net_add_up():
    head = deepfakebench.FrequencyHead(16)
    matrix = torch.from_numpy(dct(np.eye(16, dtype=np.float32), axis=0, norm="ortho"))
    head._DCT_all.data, head._DCT_all_T.data = matrix, matrix.T
    # The benchmark's bands of the sum of both frequencies: low, middle, high, all.
    bounds = ((0, 16 // 2.82), (16 // 2.82, 8), (8, 32), (0, 32))
    frequency = torch.arange(16)[:, None] + torch.arange(16)
    for filtered, (low, high) in zip(head.filters, bounds, strict=True):
        filtered.base.data = ((frequency >= low) & (frequency <= high)).float()
    crops = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        bands = head(crops).unflatten(1, (4, 3))
    torch.testing.assert_close(bands[:, 3], crops)
    smooth = torch.ones(1, 3, 16, 16)
    with torch.inference_mode():
        bands = head(smooth).unflatten(1, (4, 3))
    torch.testing.assert_close(bands[:, 0], smooth)
    assert float(bands[:, 2].abs().max()) < 1e-5


def test_attention_of_cvit_is_scaled_by_the_whole_dimension():
    attention = cvit.Attention().eval()
    tokens = torch.randn(1, 3, 1024)
    query, key, value = attention.to_qkv(tokens).chunk(3, dim=-1)
    heads = []
    for start in range(0, 1024, 128):
        part = slice(start, start + 128)
        weights = torch.softmax(query[..., part] @ key[..., part].transpose(1, 2) / 32, -1)
        heads.append(weights @ value[..., part])
    torch.testing.assert_close(attention(tokens), attention.to_out(torch.cat(heads, -1)))


def test_cvit_takes_any_batch_when_it_is_exported(monkeypatch):
    small = {"STAGES": ((4, 1),) * 5, "DIMENSION": 16, "HIDDEN": 32, "HEADS": 2, "DEPTH": 2}
    for name, value in small.items():
        monkeypatch.setattr(cvit, name, value)
    network = cvit.CViT(2).eval()
    batch = ({0: torch.export.Dim("batch", min=1, max=8)},)
    program = torch.export.export(network, (torch.randn(2, 3, 224, 224),), dynamic_shapes=batch)
    crops = torch.randn(3, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(crops), network(crops))


def test_npr_sees_differences_alone():
    network = npr.NeighboringPixels(1).eval()
    with torch.inference_mode():
        dark, bright = network(torch.zeros(1, 3, 32, 32)), network(torch.ones(1, 3, 32, 32))
        noisy = network(torch.rand(1, 3, 32, 32))
    assert torch.equal(dark, bright)
    assert not torch.allclose(dark, noisy)
