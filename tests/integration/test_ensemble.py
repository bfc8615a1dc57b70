"""Ensembles from checkpoints to a served model, and every kind of checkpoint the issue names."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import warnings
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import timm
import torch
import tritonclient.grpc
import typer
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from deepfake_export import ExportRequest, export_checkpoint, load_network
from deepfake_export.checkpoint.architectures import build_network
from deepfake_export.cli.export import export
from deepfake_export.demo.untrained import build_untrained_network
from deepfake_export.ensemble.spec import EnsembleSpec
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.proof.crops import generate_crops
from deepfake_export.proof.parity import reference_outputs
from deepfake_export.proof.running import LocalEngine
from deepfake_preprocess.contract.spec import Head, ModelSpec
from deepfake_preprocess.errors import CheckpointError, ParityError, SpecError
from deepfake_serve import EmbeddedTriton

pytestmark = pytest.mark.usefixtures("exported_once")

SIZE_PX = 96
MEMBERS = {
    "large": ModelSpec("large", "timm:test_efficientnet", input_height_px=SIZE_PX, input_width_px=SIZE_PX),
    "vit": ModelSpec(
        "vit", "timm:test_vit", head=Head("softmax", 0), input_height_px=64, input_width_px=64, color_order="BGR"
    ),
    "conv": ModelSpec(
        "conv", "timm:test_convnext", input_height_px=32, input_width_px=32, mean=(0.5,) * 3, std=(0.5,) * 3
    ),
}
LAYERS = ["conv:4", "relu", "avgpool", "flatten", "linear:1"]
META = {"coef": [1.5, 1.0, -2.0, 3.0], "intercept": -0.2, "mean": [0.5] * 4, "scale": [0.2, 0.2, 0.3, 0.1]}
ENSEMBLE = {
    "name": "ensemble",
    "architecture": "ensemble",
    "threshold": 0.4,
    "members": [
        *({"checkpoint": f"{name}.safetensors", "weight": index + 1} for index, name in enumerate(MEMBERS)),
        {
            "name": "frequency",
            "checkpoint": "frequency.safetensors",
            "architecture": "layers",
            "input": "log_spectrum",
            "input_height_px": 48,
            "input_width_px": 48,
            "head": {"layers": LAYERS},
        },
    ],
    "meta_model": "meta.yaml",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("members")
    for name, spec in MEMBERS.items():
        save_file(build_untrained_network(spec).state_dict(), folder / f"{name}.safetensors")
        (folder / f"{name}.yaml").write_text(spec.to_yaml())
    (folder / "meta.yaml").write_text(yaml.safe_dump(META))
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(ENSEMBLE))
    frequency = EnsembleSpec.from_yaml(folder / "ensemble.yaml").members[3].spec
    with torch.random.fork_rng():
        torch.manual_seed(2)
        save_file(build_network(frequency, in_channels=1).state_dict(), folder / "frequency.safetensors")
    return folder


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    path = folder / "ensemble.yaml"
    return export_checkpoint(ExportRequest(path, tmp_path_factory.mktemp("models"), max_batch_size=4))


def members_of(result) -> dict:
    return json.loads((result.version_dir / "report.json").read_text())["members"]


def by_hand(folder, crops) -> np.ndarray:
    """Fake probabilities of the ensemble in plain PyTorch, OpenCV and NumPy, without any code of the project."""
    columns = []
    for spec in MEMBERS.values():
        network = timm.create_model(spec.architecture_name, num_classes=spec.head.num_logits, **(
            {"img_size": 64} if spec.name == "vit" else {}
        )).eval()  # fmt: skip
        from safetensors.torch import load_file

        network.load_state_dict(load_file(folder / f"{spec.name}.safetensors"))
        side = spec.input_width_px
        flag = cv2.INTER_AREA if 2 * side <= crops.shape[1] else cv2.INTER_LINEAR
        small = np.stack(
            [cv2.resize(crop.astype(np.float32) / 255, (side, side), interpolation=flag) for crop in crops]
        )
        ordered = small[..., ::-1] if spec.color_order == "BGR" else small
        pixels = torch.from_numpy(((ordered - spec.mean) / spec.std).astype(np.float32).transpose(0, 3, 1, 2).copy())
        with torch.inference_mode():
            outputs = network(pixels)
        fake = outputs.softmax(1)[:, 0] if spec.head.kind == "softmax" else outputs.sigmoid()[:, 0]
        columns.append(fake.double().numpy())
    gray = np.stack(
        [cv2.resize(crop.astype(np.float32) / 255, (48, 48), interpolation=cv2.INTER_AREA) for crop in crops]
    )
    gray = (gray.astype(np.float64) * [0.299, 0.587, 0.114]).sum(3)
    seen = np.log1p(np.abs(np.fft.fftshift(np.fft.fft2(gray), axes=(1, 2)))).astype(np.float32)[:, None]
    from safetensors.torch import load_file

    head = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(4, 1),
    )  # fmt: skip
    head.load_state_dict(load_file(folder / "frequency.safetensors"))
    with torch.inference_mode():
        columns.append(head(torch.from_numpy(seen)).sigmoid()[:, 0].double().numpy())
    return np.stack(columns, axis=1)


def test_every_member_and_the_whole_are_proved_and_described(exported):
    assert exported.manifest.parity["passed"]
    members = members_of(exported)
    assert list(members) == [*MEMBERS, "frequency"]
    assert all(figures["passed"] and figures["num_crops"] == 8 for figures in members.values())
    page = (exported.version_dir / "report.md").read_text()
    for name, figures in members.items():
        shown = f"{figures['probability']['max_abs']:.2e}"
        assert re.search(rf"^\| {name} \| {re.escape(shown)} .*\| 0 of 8 \|", page, re.MULTILINE), page
    described = (exported.version_dir / "ensemble.json").read_bytes()
    assert hashlib.sha256(described).hexdigest() == exported.manifest.spec.checkpoint_sha256
    assert [member["spec"]["name"] for member in json.loads(described)["members"]] == [*MEMBERS, "frequency"]
    assert json.loads(described)["meta_model"] == META | {"features": "probability", "fake_index": 1}
    # Nothing that NVIDIA's parser refuses.
    model = onnx.load(exported.version_dir / "model.onnx")
    assert not {"DFT", "Resize"} & {node.op_type for node in model.graph.node}


def test_the_ensemble_gives_what_its_members_give_by_hand(folder, exported, tmp_path):
    crops = generate_crops(6, (SIZE_PX, SIZE_PX), seed=11)
    features = by_hand(folder, crops)
    z = ((features - META["mean"]) / META["scale"]) @ META["coef"] + META["intercept"]
    probability, logit = LocalEngine(exported.version_dir / "model.onnx").run(crops)
    np.testing.assert_allclose(logit[:, 0], z, atol=2e-3)
    np.testing.assert_allclose(probability[:, 0], 1 / (1 + np.exp(-z)), atol=2e-4)


def test_it_is_served_under_the_same_contract(exported):
    crops = generate_crops(3, (SIZE_PX, SIZE_PX), seed=12)
    expected, _ = LocalEngine(exported.version_dir / "model.onnx").run(crops)
    with (
        EmbeddedTriton(exported.repository, instances=1, threads=1) as triton,
        tritonclient.grpc.InferenceServerClient(triton.grpc_url) as client,
    ):
        config = client.get_model_config("ensemble").config
        published = ModelSpec.from_parameters({key: item.string_value for key, item in config.parameters.items()})
        assert published == exported.manifest.spec
        tensor = tritonclient.grpc.InferInput("faces", list(crops.shape), "UINT8")
        tensor.set_data_from_numpy(crops)
        found = client.infer("ensemble", [tensor]).as_numpy("fake_probability")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def mean_of(folder, name, members) -> Path:
    """Write an ensemble without meta-model."""
    data = {key: value for key, value in ENSEMBLE.items() if key != "meta_model"}
    path = folder / name
    path.write_text(yaml.safe_dump({**data, "members": members}))
    return path


def test_without_a_meta_model_it_is_the_weighted_mean(folder, tmp_path):
    path = mean_of(folder, "mean.yaml", ENSEMBLE["members"][2:])
    result = CliRunner().invoke(
        app_of(export),
        [str(path), "--repository", str(tmp_path), "--max-batch-size", "2", "--json"],
        catch_exceptions=False,
    )
    assert json.loads(result.stdout)["spec"]["architecture"] == "ensemble"
    crops = generate_crops(4, (48, 48), seed=13)
    probability, logit = LocalEngine(tmp_path / "ensemble/1/model.onnx").run(crops)
    expected = by_hand(folder, crops)[:, 2:] @ [3, 1] / 4
    np.testing.assert_allclose(probability[:, 0], expected, atol=1e-4)
    np.testing.assert_allclose(1 / (1 + np.exp(-logit[:, 0])), expected, atol=1e-4)
    # The same again is nothing to do; another weight is another model.
    again = export_checkpoint(ExportRequest(path, tmp_path, max_batch_size=2))
    assert not again.created


def test_a_member_that_does_not_reproduce_its_checkpoint_stops_the_export(folder, tmp_path, monkeypatch):
    """A real fault in a real file: one member's graph is changed before its proof."""

    def tampering(path):
        model = onnx.load(path)
        model.graph.node[-1].input[0], name = "shifted", model.graph.node[-1].input[0]
        one = onnx.numpy_helper.from_array(np.array([0.01], np.float32), "one_hundredth")
        model.graph.initializer.append(one)
        model.graph.node.insert(
            len(model.graph.node) - 1, onnx.helper.make_node("Add", [name, one.name], ["shifted"])
        )
        onnx.save(model, path)
        return LocalEngine(path)

    monkeypatch.setattr("deepfake_export.ensemble.proof.LocalEngine", tampering)
    frequency = ENSEMBLE["members"][3]
    path = mean_of(folder, "tampered.yaml", [{**frequency, "name": "first"}, {**frequency, "name": "second"}])
    with pytest.raises(ParityError, match="the member 'first'"):
        export_checkpoint(ExportRequest(path, tmp_path, max_batch_size=2))
    assert not (tmp_path / "ensemble").exists()


def test_what_is_wrong_with_a_member_names_it(folder, tmp_path):
    path = folder / "wrong.yaml"
    vit = {"checkpoint": "conv.safetensors", "architecture": "timm:test_vit"}
    vit |= {"input_height_px": 96, "input_width_px": 96}
    swapped = [{"checkpoint": "large.safetensors"}, vit]
    for members, error, message in (
        (swapped, CheckpointError, r"members\[1\] \('conv'\): .*does not fit timm:test_vit"),
        (
            [swapped[0], {**swapped[1], "architecture": "timm:test_vitt"}],
            SpecError,
            r"members\[1\] \('conv'\): .*did you mean timm:test_vit",
        ),
    ):
        path.write_text(yaml.safe_dump({**ENSEMBLE, "members": members, "meta_model": None}))
        with pytest.raises(error, match=message):
            export_checkpoint(ExportRequest(path, tmp_path / "m"))
    path.write_text(yaml.safe_dump({**ENSEMBLE, "meta_model": {"coef": [1, 2], "intercept": 0}}))
    with pytest.raises(SpecError, match=r"'coef' holds 2 number\(s\); allowed: 4"):
        export_checkpoint(ExportRequest(path, tmp_path / "m"))


def test_every_kind_of_checkpoint_is_exported_and_served(tmp_path, monkeypatch):
    (tmp_path / "ensemble_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    layered = Head("softmax", 0, ("linear:32", "relu", "dropout", "linear:2"))
    namespace: dict = {}
    exec(NETS, namespace)
    made = namespace["small"]().eval()
    specs = [
        ModelSpec("custom_head", "timm:test_efficientnet", head=layered, input_height_px=64, input_width_px=64),
        ModelSpec("torchvision", "torchvision:resnet18", input_height_px=64, input_width_px=64),
        ModelSpec("archive", "torchscript", head=Head("softmax"), input_height_px=64, input_width_px=64),
        ModelSpec(
            "factory", "python:ensemble_nets:small", head=Head("softmax"), input_height_px=64, input_width_px=64
        ),
    ]
    for spec in specs[:2]:
        torch.save(build_untrained_network(spec).state_dict(), f"{spec.name}.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated as a whole
        torch.jit.save(torch.jit.script(made), "archive.pt")
    torch.save(made.state_dict(), "factory.pt")
    crops = generate_crops(3, (64, 64), seed=12)
    results = [
        export_checkpoint(ExportRequest(f"{spec.name}.pt", "m", spec=spec, max_batch_size=4)) for spec in specs
    ]
    assert results[0].manifest.spec.head == layered
    with (
        EmbeddedTriton(Path("m"), instances=1, threads=1) as triton,
        tritonclient.grpc.InferenceServerClient(triton.grpc_url) as client,
    ):
        for spec, result in zip(specs, results, strict=True):
            detector = ServedDetector(load_network(f"{spec.name}.pt", spec).network, spec).eval()
            expected, _ = reference_outputs(detector, crops)
            tensor = tritonclient.grpc.InferInput("faces", list(crops.shape), "UINT8")
            tensor.set_data_from_numpy(crops)
            found = client.infer(spec.name, [tensor]).as_numpy("fake_probability")
            np.testing.assert_allclose(found, expected, atol=1e-4)
            config = client.get_model_config(spec.name).config
            published = {key: item.string_value for key, item in config.parameters.items()}
            assert ModelSpec.from_parameters(published) == result.manifest.spec


LARGE = {
    "timm:efficientnet_b4": 380,
    "timm:convnext_base": 224,
    "timm:swin_small_patch4_window7_224": 224,
}


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_ensemble_of_the_issue_is_exported_with_proof(tmp_path):
    members = []
    for architecture, size in LARGE.items():
        name = architecture.partition(":")[2]
        spec = ModelSpec(name, architecture, input_height_px=size, input_width_px=size)
        save_file(build_untrained_network(spec).state_dict(), tmp_path / f"{name}.safetensors")
        (tmp_path / f"{name}.yaml").write_text(spec.to_yaml())
        members.append({"checkpoint": f"{name}.safetensors"})
    path = tmp_path / "ensemble.yaml"
    path.write_text(yaml.safe_dump({"name": "three", "architecture": "ensemble", "members": members}))
    result = export_checkpoint(ExportRequest(path, tmp_path / "m", max_batch_size=2))
    assert result.manifest.parity["passed"]
    assert all(figures["passed"] for figures in members_of(result).values())


NETS = """
from torch import nn

def small():
    body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return body.append(nn.Linear(8, 2))
"""


def test_members_may_be_torchscript_archives_and_factories(tmp_path, monkeypatch):
    (tmp_path / "ensemble_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(NETS, namespace)
    scripted, made = namespace["small"]().eval(), namespace["small"]().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated as a whole
        torch.jit.save(torch.jit.script(scripted), "scripted.pt")
    torch.save(made.state_dict(), "made.pt")
    head = {"kind": "softmax", "fake_index": 1}
    size = {"input_height_px": 64, "input_width_px": 64}
    half = {"input_height_px": 32, "input_width_px": 32}
    members = [
        {"checkpoint": "scripted.pt", "architecture": "torchscript", "head": head, **size},
        {"checkpoint": "made.pt", "architecture": "python:ensemble_nets:small", "head": head, **half},
    ]
    Path("e.yaml").write_text(yaml.safe_dump({"name": "both", "architecture": "ensemble", "members": members}))
    result = export_checkpoint(ExportRequest("e.yaml", tmp_path / "m", max_batch_size=3))
    assert result.manifest.parity["passed"]
    assert all(figures["passed"] for figures in members_of(result).values())


def test_a_malicious_meta_model_is_refused_and_nothing_is_added(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "evil.joblib").write_bytes(pickle.dumps(Mkdir()))
    (folder / "evil.yaml").write_text(yaml.safe_dump({**ENSEMBLE, "meta_model": "evil.joblib"}))
    arguments = [str(folder / "evil.yaml"), "--repository", str(tmp_path / "m")]
    with pytest.raises(SpecError, match="deepfake convert-meta-model"):
        CliRunner().invoke(app_of(export), arguments, catch_exceptions=False)
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "m" / "ensemble").exists()


class Mkdir:
    """Unpickling this runs a command."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def app_of(command) -> typer.Typer:
    app = typer.Typer()
    app.command()(command)
    return app
