"""Loading checkpoints: every shape that training scripts leave them in, and every way in which one is unusable."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import os
import pickle
import sys
import tarfile
import types
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from deepfake_export import load_network
from deepfake_export.checkpoint.loading import load_checkpoint
from deepfake_export.checkpoint.reading import read_checkpoint
from deepfake_export.checkpoint.readings import weight_sets
from deepfake_preprocess.contract.manifest import sha256_file
from deepfake_preprocess.contract.spec import Head, ModelSpec
from deepfake_preprocess.errors import CheckpointError, SpecError

TINY_NETS = """
from torch import nn

def detector(outputs=1):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, outputs),
    )

def two_class():
    return detector(2)

def broken():
    raise RuntimeError("no such dataset")

def number():
    return 3
"""

SPEC = ModelSpec(name="tiny", architecture="python:tiny_nets:detector", input_height_px=32, input_width_px=32)


@pytest.fixture(autouse=True)
def _tiny_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a directory that holds the factories, as the user of a `python:` architecture does."""
    (tmp_path / "tiny_nets.py").write_text(TINY_NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "tiny_nets", raising=False)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    namespace: dict = {}
    exec(TINY_NETS, namespace)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return namespace["detector"]().state_dict()


def with_spec(**changes: object) -> ModelSpec:
    return dataclasses.replace(SPEC, **changes)


def prefixed(weights: dict, prefix: str) -> dict:
    return {prefix + name: value for name, value in weights.items()}


def assert_same(network: torch.nn.Module, weights: dict) -> None:
    loaded = network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


@pytest.mark.parametrize(
    ("wrap", "weights_key", "prefix"),
    [
        (lambda w: w, "", ""),
        (lambda w: prefixed(w, "module."), "", "module."),
        (lambda w: prefixed(w, "model."), "", "model."),
        (lambda w: prefixed(w, "_orig_mod."), "", ""),
        (lambda w: prefixed(w, "module._orig_mod.model."), "", "module.model."),
        (lambda w: {"state_dict": w, "epoch": 3}, "state_dict", ""),
        (lambda w: {"model_state_dict": w, "optimizer": {"state": {}}}, "model_state_dict", ""),
        (lambda w: {"model": {"state_dict": prefixed(w, "module.")}}, "model.state_dict", "module."),
        (lambda w: {"state_dict": w, "args": argparse.Namespace(lr=0.1), "auc": np.float64(0.9)}, "state_dict", ""),
        (lambda w: {k: v for k, v in w.items() if not k.endswith("num_batches_tracked")}, "", ""),
        (lambda w: {"generator": w, "optimizer": {"state": {0: {"exp_avg.0": torch.ones(4, 3)}}}}, "", "generator."),
        (lambda w: {"module": prefixed(w, "_orig_mod."), "ds_config": {}}, "", "module."),
        (lambda w: {"state": {"model": prefixed(w, "module.")}}, "", "state.model.module."),
        (lambda w: [prefixed(w, "module."), 3], "", "0.module."),
        (lambda w: {"params": {name: value * 0 for name, value in w.items()}, "params_ema": w}, "params_ema", ""),
        (lambda w: {"model": {name: value * 0 for name, value in w.items()}, "swa_model": w}, "swa_model", ""),
    ],
    ids=[
        *("plain", "ddp", "lightning", "compiled", "all-wrappers", "nested", "nested-2", "twice", "extras", "old"),
        *("any-key", "deepspeed", "composer", "list", "averaged", "swa"),
    ],
)
def test_weights_are_found_however_they_are_wrapped(weights, wrap, weights_key, prefix):
    torch.save(wrap(weights), "c.pt")
    network, reading = load_checkpoint(Path("c.pt"), SPEC)
    assert (reading.weights_key, reading.prefix, reading.ignored) == (weights_key, prefix, ())
    assert not network.training
    assert_same(network, {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")})


def test_averaged_weights_are_preferred_and_reported(weights):
    averaged = {name: value * 0 for name, value in weights.items()}
    torch.save({"state_dict": weights, "state_dict_ema": averaged}, "c.pt")
    network, reading = load_checkpoint(Path("c.pt"), SPEC)
    assert reading.weights_key == "state_dict_ema"
    assert_same(network, averaged)


def listed(weights: dict, change: float = 0.0) -> list[torch.Tensor]:
    """What `torch_ema` and `diffusers` keep of a model: copies of `model.parameters()`, without names or buffers."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return [value + change for name, value in weights.items() if not name.endswith(buffers)]


@pytest.mark.parametrize(
    ("wrap", "weights_key"),
    [
        (
            lambda model, averages: {
                "ema": {"decay": 0.99, "num_updates": 7, "shadow_params": averages, "collected_params": None},
                "model": model,
            },
            "ema.shadow_params",
        ),
        (lambda model, averages: {"ema": tuple(averages), "state_dict": prefixed(model, "module.")}, "ema"),
        (lambda model, averages: {"shadow_params": averages, "net": {"weights": model}}, "shadow_params"),
    ],
    ids=["torch_ema", "tuple", "beside"],
)
def test_averages_without_names_get_those_of_the_model_and_its_buffers(weights, wrap, weights_key):
    torch.save(wrap(weights, listed(weights, 0.25)), "c.pt")
    network, reading = load_checkpoint(Path("c.pt"), SPEC)
    assert reading.weights_key == weights_key
    assert any(name.endswith("running_mean") for name in weights)
    assert_same(network, dict(zip(dict(network.named_parameters()), listed(weights, 0.25), strict=True)))
    assert_same(network, {name: value for name, value in weights.items() if name.endswith(("_mean", "_var"))})


@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (lambda model, averages: {"ema": {"shadow_params": averages[1:]}, "model": model}, "ema.shadow_params"),
        (lambda model, averages: {"decay": 0.9, "shadow_params": averages}, "shadow_params"),
    ],
    ids=["of other parameters", "alone"],
)
def test_averages_that_no_state_dict_names_are_refused_with_what_to_do(weights, wrap, place):
    torch.save(wrap(weights, listed(weights)), "c.pt")
    what_to_do = r"ema\.copy_to\(model\.parameters\(\)\), and save model\.state_dict\(\) alone"
    with pytest.raises(CheckpointError, match=f"without names under '{place}' .*{what_to_do}"):
        load_checkpoint(Path("c.pt"), SPEC)


@pytest.mark.parametrize(("protocol", "numpy_1"), [(2, False), (5, False), (2, True)])
def test_arrays_of_numpy_are_read_as_tensors(weights, protocol, numpy_1):
    arrays = {name: value.numpy() for name, value in weights.items()}
    first = next(iter(arrays))
    arrays[first] = arrays[first].astype(">f4")  # as another machine wrote it
    saved = {"state_dict": arrays, "labels": np.array(["real", "fake"]), "losses": np.ones(3, np.float64)}
    torch.save(saved, "c.pt", pickle_protocol=protocol)
    if numpy_1:
        with_the_names_of_numpy_1(Path("c.pt"))
    network, reading = load_checkpoint(Path("c.pt"), SPEC)
    assert reading.weights_key == "state_dict"
    assert_same(network, {name: value for name, value in weights.items() if not name.endswith("tracked")})


def with_the_names_of_numpy_1(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, content in parts.items():
            file.writestr(name, content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


def test_body_and_head_may_be_saved_as_two_state_dicts(weights):
    head = {name.removeprefix("5."): value for name, value in weights.items() if name.startswith("5.")}
    body = {name: value for name, value in weights.items() if not name.startswith("5.")}
    torch.save({"encoder": body, "head": head, "epoch": 3}, "c.pt")
    network, reading = load_checkpoint(Path("c.pt"), SPEC)
    assert (reading.prefix, reading.renamed_head) == ("encoder.", "head.")
    assert_same(network, weights)


def test_of_two_state_dicts_that_fit_one_is_chosen_by_leaving_the_other_out(weights):
    torch.save({"student": weights, "teacher": {name: value * 0 for name, value in weights.items()}}, "c.pt")
    with pytest.raises(CheckpointError, match=r"\('student\.', 'teacher\.'\).* ignore_keys: \['teacher\.\*'\]"):
        load_network("c.pt", SPEC)
    assert_same(load_network("c.pt", with_spec(ignore_keys=("teacher.*",))).network, weights)


@pytest.mark.parametrize(
    ("classes", "fake_index"),
    [
        ({"class_to_idx": {"fake": 0, "real": 1}}, 0),
        ({"hyper_parameters": {"data": {"class_names": ["Real", "Deepfakes"]}}}, 1),
        ({"args": argparse.Namespace(id2label={0: "manipulated_sequences", 1: "original_sequences"})}, 0),
        ({"classes": ["cat", "dog"]}, None),
        ({"classes": ["not real", "fake or real"]}, None),
        ({"classes": ["real", "fake"], "label_names": ["fake", "real"]}, None),
        ({"classes": ["real", "fake", "background"]}, None),
    ],
)
def test_classes_that_the_file_names_are_compared_with_the_spec(weights, classes, fake_index):
    torch.save({"model": weights, **classes}, "c.pt")
    for index in (0, 1):
        notes = load_network("c.pt", with_spec(head=Head("sigmoid", index))).notes
        assert any("every verdict" in note for note in notes) == (fake_index not in (None, index))


def test_tensors_of_the_training_wrapper_are_left_out_and_reported(weights):
    torch.save({"state_dict": prefixed(weights, "model.") | {"loss.pos_weight": torch.ones(1)}}, "c.pt")
    assert load_checkpoint(Path("c.pt"), SPEC)[1].ignored == ("loss.pos_weight",)


def test_safetensors_and_half_precision_become_float32(weights):
    save_file(
        {name: value.half() if value.is_floating_point() else value for name, value in weights.items()},
        "c.safetensors",
    )
    network = load_network("c.safetensors", SPEC).network
    assert {value.dtype for value in network.parameters()} == {torch.float32}


def test_torchscript(weights):
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(network), "ts.pt")
    crops = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(
            load_network("ts.pt", with_spec(architecture="torchscript")).network(crops), network(crops)
        )
    with pytest.raises(CheckpointError, match="set 'architecture: torchscript'"):
        load_network("ts.pt", SPEC)
    torch.save(weights, "c.pt")
    with pytest.raises(CheckpointError, match="not a TorchScript file"):
        load_network("c.pt", with_spec(architecture="torchscript"))


def test_timm_and_torchvision_heads_get_the_outputs_of_the_spec():
    two = Head("softmax")
    for architecture, network, size in (
        ("timm:test_efficientnet", timm.create_model("test_efficientnet", num_classes=2), 64),
        # A fixed input size is set when the network is built.
        ("timm:test_vit", timm.create_model("test_vit", num_classes=2, img_size=96), 96),
        ("torchvision:shufflenet_v2_x0_5", torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=2), 64),
    ):
        torch.save(network.state_dict(), "c.pt")
        spec = with_spec(architecture=architecture, head=two, input_height_px=size, input_width_px=size)
        assert_same(load_network("c.pt", spec).network, network.state_dict())


class Mkdir:
    """Unpickling this would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused_and_not_run(weights, tmp_path):
    proof = tmp_path / "executed"
    torch.save({"state_dict": weights, "extra": Mkdir(proof)}, "c.pt")
    with pytest.raises(CheckpointError, match=r"refused, because it calls '\w+\.mkdir'.*safetensors"):
        load_network("c.pt", SPEC)
    Path("raw.pt").write_bytes(pickle.dumps({"state_dict": Mkdir(proof)}, protocol=2))
    with pytest.raises(CheckpointError, match="refused"):
        load_network("raw.pt", SPEC)
    assert not proof.exists()
    # The trap works: the plain pickle module does run it.
    pickle.loads(Path("raw.pt").read_bytes())
    assert proof.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["today", "before-1.6"])
@pytest.mark.parametrize("key", ["", "net"])
def test_a_pickled_module_is_read_without_its_code(weights, monkeypatch, zipped, key):
    theirs = types.ModuleType("their_models")
    exec("from torch import nn\nclass TransferModel(nn.Module):\n    pass", theirs.__dict__)
    theirs.TransferModel.__module__ = "their_models"
    monkeypatch.setitem(sys.modules, "their_models", theirs)
    whole = theirs.TransferModel()
    whole.model, whole.style, whole.norm = torch.nn.Module(), argparse.Namespace(), functools.partial(torch.nn.ReLU)
    namespace: dict = {}
    exec(TINY_NETS, namespace)
    whole.model = namespace["detector"]()
    whole.model.load_state_dict(weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.save({key: whole, "epoch": 3} if key else whole, "c.pt", _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "their_models")
    loaded = load_network("c.pt", SPEC)
    assert_same(loaded.network, weights)
    assert "(a module their_models.TransferModel, whose code was not run)" in loaded.notes[0]
    assert "their_models" not in sys.modules


class Held:
    """What training code wraps around a network and pickles whole; it holds itself, too."""

    def __init__(self, module):
        self.learner, self.ema = self, module


@pytest.mark.parametrize("hold", [Held, lambda module: {"model": None, "ema": Held(module)}, torch.compile])
def test_a_module_in_an_object_of_unknown_code_is_found(hold):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.Linear(1800, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(hold(network), "c.pt")
    (_, tensors), *_ = weight_sets(read_checkpoint(Path("c.pt")))
    assert {name.removeprefix("0.") if hold is torch.compile else name for name in tensors} == set(
        network.state_dict()
    )


def test_the_content_says_what_a_file_is_and_not_its_suffix(weights):
    torch.save(weights, "c.safetensors")
    assert_same(load_network("c.safetensors", SPEC).network, weights)
    save_file(weights, "c.pth")
    assert_same(load_network("c.pth", SPEC).network, weights)


def test_tensors_without_plain_numbers_are_refused(weights):
    weight = weights["0.weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch will give them up; files stay
        quantized = torch.quantize_per_tensor(weight, 0.01, 0, torch.qint8)
    for value, message in (
        (weight.to("meta"), r"no values in 1 tensor\(s\) \(0\.weight\)"),
        (quantized, "quantized or sparse"),
        (weight.to_sparse(), "quantized or sparse"),
    ):
        torch.save(weights | {"0.weight": value}, "c.pt")
        with pytest.raises(CheckpointError, match=message):
            load_network("c.pt", SPEC)


def packed(kind: str) -> bytes:
    """Return a file with another kind of content, as people give them in place of a checkpoint."""
    file = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("best.pth"))
    elif kind == "onnx":
        nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
        values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
        model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", values[:1], values[1:]))
        file.write(model.SerializeToString())
    elif kind == "npz":
        np.savez(file, a=np.ones(3))
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(kind, "content")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed("onnx"), "is an ONNX model, which is what an export makes"),
        (packed("c/archive_format"), "is a program of torch.export"),
        (packed("best.pth"), "is a zip archive of best.pth; unpack it"),
        (packed("tar"), "is a tar archive of best.pth; unpack it"),
        (packed("npz"), "is a file of NumPy arrays"),
        (packed("model.weights.h5"), "is a Keras file"),
        (b"\x1f\x8b\x08", "is a gzip archive"),
        (b"\n<!DOCTYPE html><html>Virus scan warning", "is a web page"),
        (
            b'{"weight_map": {"a": "1.safetensors", "c": "2.safetensors"}}',
            "part in .'1.safetensors', '2.safetensors'",
        ),
        (b'{"model_type": "vit"}', "is a JSON file without weights"),
        (b"", "is empty"),
        (b"this is no checkpoint", "not a file that torch.save wrote"),
        (b"\x80\x02garbage", "not a file that torch.save wrote"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (pickle.dumps({"epoch": 1}), "not a file that torch.save wrote"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them"),
    ],
    ids=[
        *("onnx", "torch-export", "zip", "tar", "numpy", "keras-3", "gzip", "web-page", "index-of-parts", "json"),
        *("empty", "text", "garbage", "lfs-pointer", "plain-pickle", "keras"),
    ],
)
def test_files_that_are_no_checkpoints(content, message):
    Path("c.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_network("c.pt", SPEC)


def test_damaged_and_missing_files(weights):
    torch.save(weights, "c.pt")
    Path("short.pt").write_bytes(Path("c.pt").read_bytes()[:-400])
    for name, message in (
        ("short.pt", "or is damaged"),
        ("absent.pt", "no such checkpoint"),
        (".", "is a directory"),
        ("/dev/null", "is a pipe or a device"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_network(name, SPEC)
    Path("c.safetensors").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        load_network("c.safetensors", SPEC)


@pytest.mark.parametrize(("content", "message"), [([1], "it holds a list"), ({"epoch": 3}, "its keys are epoch")])
def test_files_without_weights(content, message):
    torch.save(content, "c.pt")
    with pytest.raises(CheckpointError, match=message):
        load_network("c.pt", SPEC)


def test_what_does_not_fit_is_listed(weights):
    del weights["5.weight"]
    weights["0.weight"] = torch.zeros(4, 3, 5, 5)
    weights["extra.bias"] = torch.zeros(2)
    torch.save({"state_dict": prefixed(weights, "module.")}, "c.pt")
    with pytest.raises(CheckpointError) as caught:
        load_network("c.pt", SPEC)
    message = str(caught.value)
    assert "under 'state_dict'" in message
    assert "1 missing (5.weight); 1 unexpected (extra.bias); 1 of another shape (0.weight is [4, 3, 5, 5]" in message
    assert "\n" not in message


def test_another_network_is_counted_and_shortened(weights):
    torch.save(weights, "c.pt")
    with pytest.raises(CheckpointError, match=r"75 missing \(conv_stem.weight, .*, and 71 more\); 8 unexpected"):
        load_network("c.pt", with_spec(architecture="timm:test_efficientnet"))


def test_the_wrong_head_is_named(weights):
    torch.save(weights, "c.pt")
    two_class = with_spec(architecture="python:tiny_nets:two_class", head=Head("softmax"))
    with pytest.raises(CheckpointError, match=r"last layer has 1 output\(s\): set 'head: {kind: sigmoid}'"):
        load_network("c.pt", two_class)
    with pytest.raises(CheckpointError, match=r"gives a tensor of shape \[2, 1\], but head 'softmax' needs \[2, 2\]"):
        load_network("c.pt", with_spec(head=Head("softmax")))


def test_an_input_that_the_network_cannot_take(weights):
    torch.save(timm.create_model("test_vit", num_classes=1, img_size=96).state_dict(), "c.pt")
    with pytest.raises(CheckpointError, match=r"pos_embed.*set 'input_height_px: 96' and 'input_width_px: 96'"):
        load_network("c.pt", with_spec(architecture="timm:test_vit", input_height_px=64, input_width_px=64))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_diverged_are_named(weights, value):
    weights["5.weight"][0, 1] = value
    torch.save(weights, "c.pt")
    with pytest.raises(CheckpointError, match=r"NaN or Inf in 1 tensor\(s\) \(5.weight\)"):
        load_network("c.pt", SPEC)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("timm:efficentnet_b0", "did you mean timm:efficientnet_b0"),
        ("timm:hf-hub:timm/resnet18", "timm does not know"),
        ("torchvision:resnet_18", "did you mean torchvision:resnet18"),
        ("python:no_such_module:detector", "importing 'no_such_module' failed"),
        ("python:tiny_nets:absent", "has no function 'absent'"),
        ("python:tiny_nets:broken", "RuntimeError: no such dataset"),
        ("python:tiny_nets:number", "returned int"),
    ],
)
def test_unknown_architectures(weights, architecture, message):
    torch.save(weights, "c.pt")
    with pytest.raises(SpecError, match=message):
        load_network("c.pt", with_spec(architecture=architecture))


def test_the_hash_is_filled_in_and_checked(weights):
    torch.save(weights, "c.pt")
    sha256 = sha256_file(Path("c.pt"))
    assert load_network("c.pt", SPEC).spec.checkpoint_sha256 == sha256
    assert load_network("c.pt", with_spec(checkpoint_sha256=sha256)).spec.checkpoint_sha256 == sha256
    with pytest.raises(CheckpointError, match=f"{sha256}.*{'0' * 64}"):
        load_network("c.pt", with_spec(checkpoint_sha256="0" * 64))
