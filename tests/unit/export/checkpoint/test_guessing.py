"""`deepfake init-spec` writes specs that load the checkpoint, and says what it cannot know."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from deepfake_client.cli.main import main
from deepfake_export import load_network
from deepfake_export.checkpoint.fingerprints import index, recognize
from deepfake_export.checkpoint.guessing import OWN_CODE, guess_spec
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import CheckpointError


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def init_spec(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["init-spec", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("test_efficientnet", num_classes=0)
        self.fc = nn.Sequential(nn.Linear(256, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 2))


@pytest.mark.parametrize(
    ("make", "architecture", "kind", "layers", "size_px"),
    [
        (lambda: timm.create_model("test_efficientnet", num_classes=1), "timm:test_efficientnet", "sigmoid", 0, 160),
        (lambda: timm.create_model("test_convnext", num_classes=2), "timm:test_convnext", "softmax", 0, 160),
        (lambda: timm.create_model("test_vit", num_classes=2, img_size=96), "timm:test_vit", "softmax", 0, 96),
        (Wrapped, "timm:test_efficientnet", "softmax", 5, 160),
        (
            lambda: torchvision.models.mobilenet_v3_small(weights=None, num_classes=2),
            "torchvision:mobilenet_v3_small",
            "softmax",
            0,
            224,
        ),
    ],
    ids=["one-output", "two-outputs", "fixed-size", "wrapped", "torchvision"],
)
def test_a_written_spec_loads_its_checkpoint(capsys, make, architecture, kind, layers, size_px):
    weights = {f"module.{name}": value for name, value in make().state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 3}, "my detector.pth")
    code, out, err = init_spec(capsys, "my detector.pth")
    assert (code, err) == (0, "")
    spec = ModelSpec.from_yaml("my detector.yaml")
    assert (spec.name, spec.architecture, spec.head.kind) == ("my_detector", architecture, kind)
    assert (len(spec.head.layers), spec.input_width_px) == (layers, size_px)
    assert "# sure: every name and shape fits" in out
    assert "# guess: BGR where" in out
    assert ("# sure: the position embedding is of this size" in out) == (architecture == "timm:test_vit")
    load_network("my detector.pth")


def test_networks_of_the_same_shapes_are_all_named():
    torch.save(timm.create_model("efficientnet_b0", num_classes=1).state_dict(), "c.pt")
    guess = guess_spec("c.pt")
    assert guess.spec.architecture == "timm:efficientnet_b0"
    assert guess.certainty["architecture"].startswith("guess between networks of these names and shapes")
    assert "timm:tf_efficientnet_b0" in guess.certainty["architecture"]


def test_what_the_file_says_in_words_is_taken():
    weights = timm.create_model("efficientnet_b0", num_classes=2).state_dict()
    arguments = {"model_name": "tf_efficientnet_b0", "class_to_idx": {"fake": 0, "real": 1}}
    torch.save({"state_dict": weights, "hyper_parameters": arguments}, "c.pt")
    guess = guess_spec("c.pt")
    assert (guess.spec.architecture, guess.spec.head.fake_index) == ("timm:tf_efficientnet_b0", 0)
    assert guess.certainty["architecture"] == "sure: every name and shape fits, and the file names it"
    assert "sure: in the file, class_to_idx is {'fake': 0, 'real': 1}" in guess.certainty["head"]
    save_file(weights, "c.safetensors", metadata={"id2label": '{"0": "Fake", "1": "Real"}'})
    assert guess_spec("c.safetensors").spec.head.fake_index == 0


def test_of_several_networks_that_fit_one_is_a_guess():
    weights = timm.create_model("test_efficientnet", num_classes=1).state_dict()
    torch.save({"student": weights, "teacher": weights}, "c.pt")
    guess = guess_spec("c.pt")
    assert (guess.spec.architecture, guess.spec.ignore_keys) == ("timm:test_efficientnet", ("teacher.*",))
    assert guess.certainty["ignore_keys"].startswith("guess: what it leaves out fits as well")
    load_network("c.pt", guess.spec)


def test_what_is_beside_the_network_is_left_out():
    weights = dict(timm.create_model("test_efficientnet", num_classes=1).state_dict())
    torch.save(weights | {"center": torch.ones(3)}, "c.pt")
    guess = guess_spec("c.pt")
    assert guess.spec.ignore_keys == ("center",)
    load_network("c.pt", guess.spec)


def test_what_is_no_detector_is_said(capsys):
    torch.save(timm.create_model("test_efficientnet", num_classes=1000).state_dict(), "imagenet.pt")
    code, _, err = init_spec(capsys, "imagenet.pt")
    assert (code, "timm:test_efficientnet with 1000 outputs" in err) == (2, True)
    torch.save({"weight": torch.ones(1, 768), "bias": torch.ones(1)}, "fc_weights.pth")
    code, _, err = init_spec(capsys, "fc_weights.pth")
    assert (code, "a linear probe" in err) == (2, True)
    code, _, err = init_spec(capsys, "absent.pth")
    assert (code, "there is no such checkpoint" in err) == (2, True)
    assert not list(Path().glob("*.yaml"))


def test_an_unknown_network_gets_a_spec_to_complete(capsys):
    torch.save({f"stage{number}.conv.weight": torch.ones(4, 4, 3, 3) for number in range(6)}, "c.pt")
    code, out, _ = init_spec(capsys, "c.pt", "--json")
    data = json.loads(out)
    assert (code, data["written"], data["recognized"]) == (0, "c.yaml", False)
    assert data["spec"]["architecture"] == OWN_CODE
    assert "Write for_export.py" in Path("c.yaml").read_text()
    assert ModelSpec.from_yaml("c.yaml").architecture == OWN_CODE


def test_torchscript_is_recognized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 1)), "c.pt")
    guess = guess_spec("c.pt")
    assert guess.spec.architecture == "torchscript"
    # How many outputs it has, only running it shows.
    assert guess.certainty["head"].startswith("guess: one output")


def test_published_specs_are_listed_and_written(capsys):
    listed = json.loads(init_spec(capsys, "--list", "--json")[1])
    assert {"faceforensics_xception", "dfdc_winner", "ucf", "sbi", "gend"} <= set(listed)
    assert init_spec(capsys, "--published", "SBI")[0] == 0
    assert ModelSpec.from_yaml("sbi.yaml").architecture == "published:efficientnet_pytorch_b4"
    code, _, err = init_spec(capsys, "--published", "sbi")
    assert (code, "sbi.yaml is there already" in err) == (2, True)
    code, _, err = init_spec(capsys, "--published", "npr2")
    assert (code, "allowed: npr" in err) == (2, True)
    assert init_spec(capsys)[0] == 2


def test_the_index_knows_the_installed_networks():
    names = {name for entry in index().values() for name in entry}
    assert len(names) > 1000
    for name in ("test_vit", "test_resnet"):
        assert f"timm:{name}" in recognize(timm.create_model(name, num_classes=3).state_dict())
    torch.save({"epoch": 1}, "c.pt")
    with pytest.raises(CheckpointError, match="holds no weights"):
        guess_spec("c.pt")
