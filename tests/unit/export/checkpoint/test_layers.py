"""Heads of several layers, wherever training code keeps them in its checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from deepfake_export.checkpoint.architectures import build_network
from deepfake_export.checkpoint.loading import load_checkpoint
from deepfake_preprocess.contract.spec import Head, ModelSpec
from deepfake_preprocess.errors import CheckpointError, SpecError

LAYERS = ("linear:32", "relu", "dropout", "linear:2")


def spec_of(architecture="timm:test_efficientnet", layers=LAYERS, size=64, kind="softmax") -> ModelSpec:
    return ModelSpec(
        name="tiny",
        architecture=architecture,
        head=Head(kind, layers=layers),
        input_height_px=size,
        input_width_px=size,
    )


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def head(features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 2))


def in_place(name="test_efficientnet") -> nn.Module:
    network = timm.create_model(name, num_classes=2)
    path = network.pretrained_cfg["classifier"]
    network.set_submodule(path, head(network.get_submodule(path).in_features))
    return network


class Wrapped(nn.Module):
    """What most training scripts write: a backbone without classifier, and a head beside it."""

    def __init__(self, name="test_efficientnet"):
        super().__init__()
        self.backbone = timm.create_model(name, num_classes=0)
        self.fc = head(self.backbone.num_features)

    def forward(self, crops):
        return self.fc(self.backbone(crops))


def torchvision_whole() -> nn.Module:
    network = torchvision.models.efficientnet_b0(weights=None)
    network.classifier = head(1280)
    return network


def torchvision_last() -> nn.Module:
    network = torchvision.models.efficientnet_b0(weights=None)
    network.classifier[1] = head(1280)
    return network


@pytest.mark.parametrize(
    ("architecture", "make"),
    [
        ("timm:test_efficientnet", in_place),
        ("timm:test_efficientnet", Wrapped),
        ("timm:test_convnext", lambda: in_place("test_convnext")),
        ("timm:test_convnext", lambda: Wrapped("test_convnext")),
        ("torchvision:efficientnet_b0", torchvision_whole),
        ("torchvision:efficientnet_b0", torchvision_last),
    ],
    ids=["timm", "wrapped", "timm-nested", "wrapped-nested", "torchvision-whole", "torchvision-last"],
)
def test_a_head_of_several_layers_gives_what_training_gave(architecture, make):
    network = make().eval()
    torch.save({"state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}}, "c.pt")
    loaded, _ = load_checkpoint(Path("c.pt"), spec_of(architecture))
    crops = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(crops), network(crops))


def test_what_was_taken_is_said():
    torch.save(Wrapped().state_dict() | {"loss.weight": torch.ones(2)}, "c.pt")
    _, reading = load_checkpoint(Path("c.pt"), spec_of())
    assert (reading.prefix, reading.renamed_head, reading.ignored) == ("backbone.", "fc.", ("loss.weight",))
    assert "the head was taken from 'fc.'" in reading.describe()


def test_two_networks_that_fit_are_not_chosen_between():
    weights = timm.create_model("test_efficientnet", num_classes=2).state_dict()
    torch.save({f"{who}.{key}": value for who in ("student", "teacher") for key, value in weights.items()}, "c.pt")
    with pytest.raises(CheckpointError, match=r"several networks or heads that fit \('student\.', 'teacher\.'\)"):
        load_checkpoint(Path("c.pt"), spec_of(layers=()))


@pytest.mark.parametrize("make", [in_place, Wrapped])
def test_a_head_that_the_spec_does_not_state_is_explained(make):
    torch.save(make().state_dict(), "c.pt")
    with pytest.raises(CheckpointError, match=r"layers: \[linear:32, relu, dropout, linear:2\]\}"):
        load_checkpoint(Path("c.pt"), spec_of(layers=(), kind="sigmoid"))


def test_a_stated_head_of_other_numbers_is_refused():
    torch.save(in_place().state_dict(), "c.pt")
    with pytest.raises(CheckpointError, match=r"does not fit.*classifier\.2\.weight"):
        load_checkpoint(Path("c.pt"), spec_of(layers=("linear:32", "relu", "linear:2")))


def test_networks_of_layers_alone_and_of_one_channel():
    layers = ("conv:4", "batchnorm", "relu", "maxpool:2", "conv:4", "silu", "avgpool", "flatten", "linear:1")
    spec = spec_of("layers", layers, kind="sigmoid")
    for channels in (1, 3):
        network = build_network(spec, in_channels=channels).eval()
        torch.save({f"frequency.{key}": value for key, value in network.state_dict().items()}, "c.pt")
        loaded, _ = load_checkpoint(Path("c.pt"), spec, in_channels=channels)
        picture = torch.rand(2, channels, 64, 64)
        torch.testing.assert_close(loaded(picture), network(picture))


@pytest.mark.parametrize(
    ("architecture", "layers", "message"),
    [
        ("timm:test_efficientnet", ("linear:32", "relu"), "a list that ends with linear:2"),
        ("timm:test_efficientnet", ("linear", "linear:2"), r"field 'layers\[0\]' is 'linear'; allowed: linear:N"),
        ("timm:test_efficientnet", ("softmax", "linear:2"), r"field 'layers\[0\]' is 'softmax'"),
        ("timm:test_efficientnet", "linear:2", "field 'layers' is 'linear:2'; allowed: a list of "),
        ("layers", (), "the layers of the network, because the architecture is 'layers'"),
        ("torchscript", LAYERS, "'torchscript' has its own head"),
    ],
)  # fmt: skip
def test_wrong_layers_are_refused(architecture, layers, message):
    with pytest.raises(SpecError, match=message):
        spec_of(architecture, layers)


def test_layers_that_do_not_fit_each_other_are_named():
    with pytest.raises(
        SpecError, match=r"entry 1 \('linear:2'\) cannot take what reaches it \(\[4, 64, 64\] per crop\)"
    ):
        build_network(spec_of("layers", ("conv:4", "linear:2")))


@pytest.mark.parametrize(
    ("architecture", "near"),
    [("timm:eficientnet_b0", "timm:efficientnet_b0"), ("torchvision:efficientnetb0", "torchvision:efficientnet_b0")],
)
def test_an_unknown_architecture_gets_the_nearest_name(architecture, near):
    assert not Path("c.pt").exists()
    with pytest.raises(SpecError, match=f"did you mean .*{near}"):
        build_network(spec_of(architecture))
