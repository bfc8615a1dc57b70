"""What is advised about a checkpoint that does not fit is right: each test follows the advice."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import yaml
from torch import nn

from deepfake_export import load_network
from deepfake_preprocess.contract.spec import Head, ModelSpec
from deepfake_preprocess.errors import CheckpointError, SpecError

SPEC = ModelSpec(name="tiny", architecture="timm:test_efficientnet", input_height_px=64, input_width_px=64)


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def advised(spec: ModelSpec) -> tuple[str, ModelSpec]:
    """Return the message, and the spec with what it says taken over."""
    with pytest.raises(CheckpointError) as caught:
        load_network("c.pt", spec)
    message = str(caught.value)
    changes: dict = {}
    for found in re.findall(r"'(head: \{.*?\}|architecture: [\w:]+|input_\w+: \d+)'|(ignore_keys: \[.*?\])", message):
        changes |= yaml.safe_load(found[0] or found[1])
    assert changes, message
    return message, ModelSpec.from_dict({**spec.to_dict(), **changes})


def with_head(*layers: nn.Module) -> nn.Module:
    network = timm.create_model("test_efficientnet", num_classes=2)
    network.classifier = nn.Sequential(*layers)
    return network


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Linear(256, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 2)),
        (nn.BatchNorm1d(256), nn.Dropout(), nn.Linear(256, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 1)),
        (nn.LayerNorm(256), nn.Linear(256, 2)),
    ],
    ids=["linear-norm", "norm-first", "layernorm"],
)
@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_a_head_is_spelled_out_with_its_norms(layers, kind):
    torch.save(with_head(*layers).state_dict(), "c.pt")
    spec = dataclasses.replace(SPEC, head=Head(kind, 0))
    _, changed = advised(spec)
    load_network("c.pt", changed)
    written = [entry.partition(":")[0] for entry in changed.head.layers]
    assert [entry for entry in written if entry not in ("relu", "dropout")] == [
        {nn.Linear: "linear", nn.BatchNorm1d: "batchnorm", nn.LayerNorm: "layernorm"}[type(layer)]
        for layer in layers
        if layer.state_dict()
    ]


def test_a_norm_of_a_head_beside_the_body_is_not_left_out():
    body = timm.create_model("test_efficientnet", num_classes=0).state_dict()
    head = nn.Sequential(nn.LayerNorm(256), nn.Dropout(), nn.Linear(256, 1)).state_dict()
    weights = {f"net.{name}": value for name, value in body.items()}
    torch.save(weights | {f"head.{name}": value for name, value in head.items()}, "c.pt")
    _, changed = advised(SPEC)
    assert changed.head.layers == ("layernorm", "dropout", "linear:1")
    assert not changed.ignore_keys
    load_network("c.pt", changed)


class WithUnused(nn.Module):
    """A backbone that keeps its own classifier, as the winner of the DFDC has it."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.encoder = timm.create_model("test_efficientnet")
        self.fc = nn.Linear(256, outputs)


@pytest.mark.parametrize("outputs", [1, 2])
def test_unused_tensors_are_named_and_can_be_left_out(outputs):
    weights = {f"module.{name}": value for name, value in WithUnused(outputs).state_dict().items()}
    torch.save({"epoch": 3, "state_dict": weights}, "c.pt")
    message, changed = advised(SPEC)
    assert "does not use module.encoder.classifier.weight, module.encoder.classifier.bias: leave" in message
    assert changed.ignore_keys == ("module.encoder.classifier.*",)
    loaded = load_network("c.pt", changed)
    assert torch.equal(loaded.network.state_dict()["classifier.weight"], weights["module.fc.weight"])
    assert "module.encoder.classifier.weight" in " ".join(loaded.notes)


def test_patterns_take_what_is_unused_and_nothing_else():
    weights = dict(timm.create_model("test_efficientnet", num_classes=1).state_dict())
    torch.save(
        weights | {"aux.0.weight": torch.ones(2), "aux.1.weight": torch.ones(2), "scale": torch.ones(1)}, "c.pt"
    )
    _, changed = advised(SPEC)
    assert changed.ignore_keys == ("aux.*", "scale")
    load_network("c.pt", changed)
    assert ModelSpec.from_parameters(changed.to_parameters()) == changed


def test_of_two_networks_one_is_chosen_by_leaving_the_other_out():
    weights = timm.create_model("test_efficientnet", num_classes=1).state_dict()
    torch.save({f"{who}.{key}": value for who in ("student", "teacher") for key, value in weights.items()}, "c.pt")
    message, changed = advised(SPEC)
    assert "'student.', 'teacher.'" in message
    assert load_network("c.pt", changed).notes[0].endswith("without the prefix 'student.'")


def test_the_library_of_the_names_is_recognized():
    network = torchvision.models.efficientnet_b0(weights=None, num_classes=2)
    torch.save(network.state_dict(), "c.pt")
    message, changed = advised(dataclasses.replace(SPEC, architecture="timm:efficientnet_b0"))
    assert "These are torchvision's names and shapes" in message
    assert (changed.architecture, changed.head.kind) == ("torchvision:efficientnet_b0", "softmax")
    load_network("c.pt", changed)


@pytest.mark.parametrize("names", [("weight", "bias"), ("fc.weight", "fc.bias"), ("head.linear.weight",)])
def test_a_last_layer_alone_is_a_linear_probe(names):
    torch.save(dict(zip(names, (torch.ones(1, 768), torch.ones(1)), strict=False)), "c.pt")
    with pytest.raises(CheckpointError, match=r"last layer alone .*1 value\(s\) of 768 features: a linear probe"):
        load_network("c.pt", SPEC)


def test_code_that_fails_is_not_taken_for_an_input_size():
    Path("wrapped.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(3, 1)\n"
        "    def forward(self, data):\n"
        "        return self.fc({'img': data.mean((2, 3))}['image'])\n"
    )
    torch.save({"fc.weight": torch.ones(1, 3), "fc.bias": torch.ones(1)}, "c.pt")
    with pytest.raises(CheckpointError, match=r"KeyError: 'image'.*wrapped\.py, line 7.*module around it") as caught:
        load_network("c.pt", dataclasses.replace(SPEC, architecture="python:wrapped:Net"))
    assert "set the input size" not in str(caught.value)


UNSTEADY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 1)
    def forward(self, x):
        return self.fc({expression})
"""


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("nn.functional.dropout(x.mean((2, 3)))", "gives the same crop another score each time; dropout or noise"),
        ("x.mean((2, 3)) - x.mean()", "score of a crop depends on the other crops of its batch"),
        (
            "x.mean((2, 3)).reshape(2, 3)",
            r"on 2 crops and not on one \(RuntimeError.*, in unsteady.py, line 10:",
        ),
        ("x.mean((2, 3), x.shape)", r"no usual size, .* the cause, in unsteady\.py, line 10: return self\.fc"),
    ],
    ids=["dropout", "mean", "batch-of-two", "wrong-code"],
)
def test_scores_by_chance_or_by_the_batch_are_refused_with_the_cause(expression, message, monkeypatch):
    monkeypatch.delitem(sys.modules, "unsteady", raising=False)
    Path("unsteady.py").write_text(UNSTEADY.format(expression=expression))
    torch.save({"fc.weight": torch.ones(1, 3), "fc.bias": torch.ones(1)}, "c.pt")
    with pytest.raises(CheckpointError, match=message):
        load_network("c.pt", dataclasses.replace(SPEC, architecture="python:unsteady:Net"))


def test_a_program_in_place_of_a_module_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "program", raising=False)
    Path("program.py").write_text("import sys\nsys.exit(2)\n")
    torch.save({"fc.weight": torch.ones(1, 3), "fc.bias": torch.ones(1)}, "c.pt")
    with pytest.raises(SpecError, match=r"'program' is a program, which ended when it was imported.*__main__"):
        load_network("c.pt", dataclasses.replace(SPEC, architecture="python:program:Net"))


def test_a_size_that_runs_is_named():
    Path("flat.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 1))\n"
    )
    torch.save({"2.weight": torch.ones(1, 48), "2.bias": torch.ones(1)}, "c.pt")
    with pytest.raises(CheckpointError, match=r"does not run on 64x64 px.*it runs at 32 px: set the input size"):
        load_network("c.pt", dataclasses.replace(SPEC, architecture="python:flat:net"))


@pytest.mark.parametrize("name", ["absent.pt", "absent.safetensors", "no/such/folder/c.pth"])
def test_a_missing_checkpoint_is_not_a_missing_spec(name):
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        load_network(name)
    torch.save({}, "c.pt")
    with pytest.raises(SpecError, match=r"c\.yaml: there is no such spec file; `deepfake init-spec c\.pt`"):
        load_network("c.pt")
