"""Ready specs of published detectors read files of their authors' formats; the weights are made up."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deepfake_export import load_network
from deepfake_export.checkpoint.guessing import guess_spec, recipe_guess
from deepfake_export.published.networks import PUBLISHED
from deepfake_export.published.recipes import RECIPES
from deepfake_preprocess.contract.spec import ModelSpec

Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def light(shapes: Shapes) -> dict[str, Tensor]:
    """Return tensors of these shapes that take no place in memory or in a file."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def shapes_of(make: Callable[[], nn.Module], prefix: str = "") -> Shapes:
    with torch.device("meta"):
        network = make()
    return {prefix + name: tuple(value.shape) for name, value in network.state_dict().items()}


def norm(name: str, channels: int) -> Shapes:
    named = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return named | {f"{name}.num_batches_tracked": ()}


def xception(prefix: str, head: str, channels: int = 3, outputs: int = 2) -> Shapes:
    """Names of Cadene's Xception, which the authors took over."""
    body = shapes_of(lambda: timm.create_model("legacy_xception", num_classes=0, in_chans=channels), prefix)
    assert f"{prefix}block12.rep.5.bias" in body
    return body | {f"{prefix}{head}.weight": (outputs, 2048), f"{prefix}{head}.bias": (outputs,)}


def adjusted(prefix: str) -> Shapes:
    convolution = {f"{prefix}adjust_channel.0.weight": (512, 2048, 1, 1), f"{prefix}adjust_channel.0.bias": (512,)}
    return convolution | norm(f"{prefix}adjust_channel.1", 512)


def efficientnet_b4(prefix: str) -> Shapes:
    """Names and shapes of `efficientnet_pytorch`, from the table of the EfficientNet paper."""
    shapes = {f"{prefix}_conv_stem.weight": (48, 3, 3, 3)} | norm(f"{prefix}_bn0", 48)
    stages = (
        (1, 3, 24, 2),
        (6, 3, 32, 4),
        (6, 5, 56, 4),
        (6, 3, 112, 6),
        (6, 5, 160, 6),
        (6, 5, 272, 8),
        (6, 3, 448, 2),
    )
    inputs, number = 48, 0
    for expand, kernel, outputs, count in stages:
        for _ in range(count):
            block, wide, narrow = f"{prefix}_blocks.{number}.", inputs * expand, max(1, inputs // 4)
            if expand != 1:
                shapes |= {f"{block}_expand_conv.weight": (wide, inputs, 1, 1)} | norm(f"{block}_bn0", wide)
            shapes |= {f"{block}_depthwise_conv.weight": (wide, 1, kernel, kernel)} | norm(f"{block}_bn1", wide)
            shapes |= {f"{block}_se_reduce.weight": (narrow, wide, 1, 1), f"{block}_se_reduce.bias": (narrow,)}
            shapes |= {f"{block}_se_expand.weight": (wide, narrow, 1, 1), f"{block}_se_expand.bias": (wide,)}
            shapes |= {f"{block}_project_conv.weight": (outputs, wide, 1, 1)} | norm(f"{block}_bn2", outputs)
            inputs, number = outputs, number + 1
    return shapes | {f"{prefix}_conv_head.weight": (1792, 448, 1, 1)} | norm(f"{prefix}_bn1", 1792)


def linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def frequency_head() -> Shapes:
    masks = {f"FAD_head.filters.{band}.{kind}": (256, 256) for band in range(4) for kind in ("base", "learnable")}
    return {"FAD_head._DCT_all": (256, 256), "FAD_head._DCT_all_T": (256, 256), **masks}


def ucf() -> Shapes:
    shapes: Shapes = {}
    for encoder in ("encoder_f.", "encoder_c."):
        shapes |= xception(encoder, "last_linear") | adjusted(encoder)
    for kind, outputs in (("spe", 5), ("sha", 2)):
        for layer, inputs in ((0, 512), (2, 256), (4, 256)):
            name = f"block_{kind}.conv2d.{layer}"
            shapes |= {f"{name}.weight": (256, inputs, 1, 1), f"{name}.bias": (256,)}
        shapes |= linear(f"head_{kind}.mlp.0", 512, 256) | linear(f"head_{kind}.mlp.2", outputs, 512)
    return shapes | {"con_gan.conv_last.weight": (3, 64, 1, 1), "con_gan.conv_last.bias": (3,)}


def openai_clip() -> Shapes:
    """Vision and a little of the text half of OpenAI's ViT-L/14."""
    vision: Shapes = {"conv1.weight": (1024, 3, 14, 14), "class_embedding": (1024,), "proj": (1024, 768)}
    vision |= {"positional_embedding": (257, 1024)}
    for name in ("ln_pre", "ln_post"):
        vision |= {f"{name}.weight": (1024,), f"{name}.bias": (1024,)}
    for block in (f"transformer.resblocks.{number}" for number in range(24)):
        for name in ("ln_1", "ln_2"):
            vision |= {f"{block}.{name}.weight": (1024,), f"{block}.{name}.bias": (1024,)}
        vision |= {f"{block}.attn.in_proj_weight": (3072, 1024), f"{block}.attn.in_proj_bias": (3072,)}
        vision |= linear(f"{block}.attn.out_proj", 1024, 1024)
        vision |= linear(f"{block}.mlp.c_fc", 4096, 1024) | linear(f"{block}.mlp.c_proj", 1024, 4096)
    text: Shapes = {"positional_embedding": (77, 768), "text_projection": (768, 768), "logit_scale": ()}
    text |= {"token_embedding.weight": (49408, 768), "ln_final.weight": (768,), "ln_final.bias": (768,)}
    text |= {"transformer.resblocks.0.ln_1.weight": (768,), "transformer.resblocks.0.attn.in_proj_bias": (2304,)}
    return {f"visual.{name}": shape for name, shape in vision.items()} | text


def transformers_clip(prefix: str) -> Shapes:
    shapes: Shapes = {f"{prefix}embeddings.class_embedding": (1024,)}
    shapes |= {f"{prefix}embeddings.patch_embedding.weight": (1024, 3, 14, 14)}
    shapes |= {f"{prefix}embeddings.position_embedding.weight": (257, 1024)}
    norms = ["pre_layrnorm", "post_layernorm"]
    for number in range(24):
        layer = f"encoder.layers.{number}"
        norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{prefix}{layer}.self_attn.{part}", 1024, 1024)
        shapes |= linear(f"{prefix}{layer}.mlp.fc1", 4096, 1024) | linear(f"{prefix}{layer}.mlp.fc2", 1024, 4096)
    return shapes | {f"{prefix}{name}.{part}": (1024,) for name in norms for part in ("weight", "bias")}


def published(name: str, outputs: int) -> Shapes:
    """Names of a network of ours that are the authors' own."""
    return shapes_of(lambda: PUBLISHED[name].build(outputs))


def whole_module(weights: dict[str, Tensor]) -> nn.Module:
    """Return the authors' module as FaceForensics++ pickles it, of a class that is gone when it is read."""
    theirs = types.ModuleType("network.models")
    exec("from torch import nn\nclass TransferModel(nn.Module):\n    modelchoice = 'xception'", theirs.__dict__)
    theirs.TransferModel.__module__ = "network.models"
    sys.modules["network.models"] = theirs
    root = theirs.TransferModel()
    for name, value in weights.items():
        *modules, leaf = name.split(".")
        place = root
        for part in modules:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place._modules[part]
        kept = leaf.startswith(("running", "num"))
        place.register_buffer(leaf, value) if kept else place.register_parameter(leaf, nn.Parameter(value))
    return root


def _files() -> Iterator[tuple[str, Callable[[], object], str]]:
    """Yield recipe, content of the authors' file, and its name."""
    yield "faceforensics_xception", lambda: whole_module(light(xception("model.", "last_linear.1"))), "full_c23.p"
    yield "faceforensics_xception", lambda: light(xception("module.model.", "last_linear")), "resaved.pth"
    encoder = "module.encoder."
    b7 = shapes_of(lambda: timm.create_model("tf_efficientnet_b7"), encoder) | linear("module.fc", 1, 2560)
    winner = {"epoch": 40, "state_dict": light(b7), "bce_best": np.float64(0.1)}
    yield "dfdc_winner", lambda: winner, "final_111_DeepFakeClassifier_tf_efficientnet_b7_ns_0_36"
    bench = xception("backbone.", "last_linear.1") | adjusted("backbone.")
    yield "deepfakebench_xception", lambda: light(bench), "xception_best.pth"
    names = efficientnet_b4("backbone.efficientnet.") | linear("backbone.last_layer", 2, 1792)
    yield "deepfakebench_efficientnet_b4", lambda: light(names), "effnb4_best.pth"
    filtered = frequency_head() | xception("backbone.", "last_linear.1", 12) | adjusted("backbone.")
    yield "f3net", lambda: light(filtered), "f3net_best.pth"
    yield "ucf", lambda: light(ucf()), "ucf_best.pth"
    blended = efficientnet_b4("net.") | linear("net._fc", 2, 1792)
    yield "sbi", lambda: {"model": light(blended), "optimizer": {"state": {}}, "epoch": 99}, "FFc23.tar"
    attention = efficientnet_b4("efficientnet.") | linear("classifier", 1, 1792)
    attention |= {"efficientnet.attconv.weight": (1, 56, 1, 1), "efficientnet.attconv.bias": (1,)}
    yield "efficientnet_autoatt_b4", lambda: light(attention), "EfficientNetAutoAttB4_DFDC_bestval-72ed969b.pth"
    yield "efficientnet_autoatt_b4", lambda: {"net": light(attention), "iter": 10}, "bestval.pth"
    yield "meso4", lambda: light(published("meso4", 2)), "Meso4_deepfake.pkl"
    yield "mesoinception4", lambda: light(published("mesoinception4", 2)), "best.pkl"
    yield (
        "cvit",
        lambda: {"epoch": 50, "state_dict": light(published("cvit", 2))},
        "cvit2_deepfake_detection_ep_50.pth",
    )
    yield "npr", lambda: light({f"module.{name}": shape for name, shape in published("npr", 1).items()}), "NPR.pth"
    probe = {f"model.{name}": shape for name, shape in openai_clip().items()} | linear("fc", 1, 768)
    trained = {"model": light(probe), "optimizer": {}, "total_steps": 1}
    yield "universal_fake_detect", lambda: trained, "model_epoch_best.pth"
    joined = {f"body.{name}": shape for name, shape in openai_clip().items()} | linear("head", 1, 768)
    yield "universal_fake_detect", lambda: light(joined), "whole.pt"  # as the message about fc_weights.pth says
    tuned = transformers_clip("feature_extractor.vision_model.") | linear("model.linear", 2, 1024)
    tuned |= {"feature_extractor.visual_projection.weight": (768, 1024)}
    yield "gend", lambda: {"state_dict": light(tuned), "hyper_parameters": {"lr": 1e-4}}, "last.ckpt"


@pytest.mark.parametrize(
    ("recipe", "make", "name"), list(_files()), ids=lambda item: item if isinstance(item, str) else ""
)
def test_a_file_of_the_authors_is_recognized_and_fits(recipe, make, name, monkeypatch):
    for module in ("network", "network.models"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.save(make(), name, _use_new_zipfile_serialization=not name.endswith(".p"))
    sys.modules.pop("network.models")
    guess = guess_spec(name)
    assert (guess.recipe, guess.spec) == (recipe, RECIPES[recipe].spec)
    Path("spec.yaml").write_text(guess.to_yaml())
    assert ModelSpec.from_yaml("spec.yaml") == guess.spec


@pytest.mark.parametrize("recipe", ["meso4", "mesoinception4", "npr"])
def test_small_ones_are_loaded_and_run(recipe):
    torch.manual_seed(0)
    spec = RECIPES[recipe].spec
    network = PUBLISHED[spec.architecture_name].build(spec.head.num_logits).eval()
    torch.save({"state_dict": network.state_dict()}, "c.pth")
    crops = torch.rand(2, 3, spec.input_height_px, spec.input_width_px)
    with torch.inference_mode():
        assert torch.equal(load_network("c.pth", spec).network(crops), network(crops))


def test_own_trainings_of_these_networks_are_recognized():
    names = published("meso4", 1) | {"center": (3,)}
    torch.save(light(names), "own.pth")
    guess = guess_spec("own.pth")
    assert (guess.recipe, guess.spec.architecture, guess.spec.head.kind) == ("", "published:meso4", "sigmoid")
    assert (guess.spec.name, guess.spec.ignore_keys) == ("own", ("center",))
    torch.save(light(efficientnet_b4("") | linear("_fc", 1, 1792)), "own.pth")
    spec = guess_spec("own.pth").spec
    assert (spec.architecture, spec.input_width_px) == ("published:efficientnet_pytorch_b4", 380)


def test_every_recipe_is_a_spec_that_can_be_read():
    for name in RECIPES:
        Path("spec.yaml").write_text(recipe_guess(name).to_yaml())
        assert ModelSpec.from_yaml("spec.yaml") == RECIPES[name].spec
        assert "Source: " in Path("spec.yaml").read_text()


def test_safetensors_of_gend():
    tuned = transformers_clip("feature_extractor.vision_model.") | linear("model.linear", 2, 1024)
    few = {name: shape for name, shape in tuned.items() if "encoder.layers" not in name or ".layers.0." in name}
    save_file({name: torch.zeros(shape, dtype=torch.float16) for name, shape in few.items()}, "model.safetensors")
    guess = guess_spec("model.safetensors")  # 23 blocks are missing: nothing is claimed
    assert not guess.recognized
