"""Weights learn to bear INT8: what rounds in PyTorch rounds as the served graph, and nears the checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import shutil
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from deepfake_export.graph.onnx_export import export_onnx
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.precision import finetune, int8, selection
from deepfake_export.precision.fake_quant import ActivationRounding, measure_ranges
from deepfake_export.precision.int8 import Int8Export
from deepfake_export.precision.ranges import RangeMeter
from deepfake_export.proof.crops import CropSet, generate_crops
from deepfake_export.proof.parity import reference_outputs
from deepfake_export.request.faces import FaceOptions
from deepfake_export.request.precisions import PrecisionOptions
from deepfake_export.request.request import ExportJob, ExportRequest
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import ExportError, OptionError

SPEC = ModelSpec(name="tiny", architecture="python:tiny:net", input_height_px=32, input_width_px=32)
CROPS = generate_crops(64, SPEC.input_size_wh, seed=3)


class Block(nn.Module):
    """As in EfficientNet: SiLU in place, squeeze-and-excitation, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU(inplace=True))
        self.depth = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.SiLU(inplace=True)
        )
        self.gate = nn.Sequential(nn.Conv2d(16, 4, 1), nn.SiLU(inplace=True), nn.Conv2d(4, 16, 1), nn.Sigmoid())
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        inner = self.depth(self.expand(values))
        return values + self.project(inner * self.gate(inner.mean((2, 3), keepdim=True)))


@pytest.fixture(scope="module")
def detector() -> ServedDetector:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Block(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 1),
    )
    detector = ServedDetector(network, SPEC)
    with torch.no_grad():
        for _ in range(20):
            detector(torch.from_numpy(CROPS))
        detector.eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
        network[-1].weight.mul_(2 / float(reference_outputs(detector, CROPS)[1].std()))
        network[-1].bias.sub_(float(np.median(reference_outputs(detector, CROPS)[1])))
    return detector


@pytest.fixture(scope="module")
def fp32_path(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("fp32") / "model.onnx"
    export_onnx(detector, path, SPEC)
    return path


@pytest.fixture(autouse=True)
def steps_instead_of_seconds(monkeypatch):
    """A step takes one second, so that a minute is 60 steps on every machine."""
    seconds = itertools.count()
    monkeypatch.setattr(finetune, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(finetune, "LEARNING_RATE", 1e-3)  # for so small a network


@pytest.fixture(scope="module")
def padded_detector() -> ServedDetector:
    """As EfficientNet-Lite0: ReLU6, padding on two sides alone, and channels that were pruned but for their bias."""
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 1),
        nn.BatchNorm2d(16),
        nn.ReLU6(inplace=True),
        nn.ZeroPad2d((0, 1, 0, 1)),
        nn.Conv2d(16, 16, 3, stride=2, groups=16, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(inplace=True),
        nn.Conv2d(16, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 1),
    ).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(2, 4)
                module.bias.uniform_(-1, 1)
                module.weight[3] = 0
                module.bias[3] = 0.011
    return ServedDetector(network, SPEC).eval()


def with_everything_rounded(fp32_path, path, monkeypatch, target="cpu", judge=None) -> Int8Export:
    monkeypatch.setattr(int8, "_is_good", lambda *_: True)
    return int8.quantize_int8(fp32_path, path, SPEC, CROPS, target=target, judge=judge or (CROPS, np.zeros((64, 1))))


@pytest.mark.parametrize("network", ["detector", "padded_detector"])
@pytest.mark.parametrize("target", int8.TARGETS)
def test_what_rounds_in_pytorch_rounds_as_the_graph(request, network, tmp_path, monkeypatch, target):
    # Biases are rounded in the file alone, where they have 32 bits.
    form = dataclasses.replace(int8.TARGETS[target], quantize_bias=False)
    monkeypatch.setitem(int8.TARGETS, target, form)
    detector = request.getfixturevalue(network)
    pixels = detector.normalize(torch.from_numpy(CROPS))
    student, _ = finetune.student_and_teacher(detector.network, pixels[:2], form)
    export_onnx(detector, tmp_path / "model.onnx", SPEC)
    made = with_everything_rounded(tmp_path / "model.onnx", tmp_path / "int8.onnx", monkeypatch, target)
    measure_ranges(student, pixels.split(1), made.method)
    roundings = [item for item in student.modules() if isinstance(item, ActivationRounding)]
    graph = onnx.load(tmp_path / "int8.onnx").graph
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in constants]
    in_file = sorted((float(constants[node.input[1]]), int(constants[node.input[2]])) for node in quantizers)
    np.testing.assert_allclose(sorted((item._scale, item._zero) for item in roundings), in_file, rtol=1e-5)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # no kernels of integers
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx", options)
    (wanted,) = session.run(["logit"], {"faces": CROPS})
    with torch.no_grad():
        rounded = detector.logit_of(student(pixels)[0]).numpy()
    differences = np.abs(rounded - wanted) / np.abs(wanted - reference_outputs(detector, CROPS)[1]).mean()
    # A value that lies between two steps falls to the other one now and then.
    assert np.median(differences) < 1e-3


def test_channels_without_weights_keep_their_bias(padded_detector, tmp_path, monkeypatch):
    export_onnx(padded_detector, tmp_path / "model.onnx", SPEC)
    with_everything_rounded(tmp_path / "model.onnx", tmp_path / "int8.onnx", monkeypatch)
    (wanted, graph) = (onnx.load(tmp_path / name).graph for name in ("model.onnx", "int8.onnx"))
    floats, constants = (
        {item.name: onnx.numpy_helper.to_array(item) for item in g.initializer} for g in (wanted, graph)
    )
    biases = [node.input for node in graph.node if constants.get(node.input[0], np.zeros(0)).dtype == np.int32]
    assert len(biases) == 3
    for name, scale, _ in biases:
        bias = floats[name.removesuffix("_quantized")]
        np.testing.assert_allclose(constants[name] * constants[scale], bias, atol=0.004)


def test_percentiles_see_more_than_the_margin_of_a_padded_tensor():
    meter = RangeMeter()
    # A step of 221 = 13 * 17 values meets one column of 13 alone.
    meter.add(np.pad(np.ones((672, 12, 12), np.float32), ((0, 0), (0, 1), (1, 0))))
    assert meter.range_of("percentile 99.9") == (0, 1)


def test_fine_tuning_comes_nearer_to_the_checkpoint_on_crops_that_it_never_saw(
    detector, fp32_path, tmp_path, monkeypatch
):
    checkpoint = copy.deepcopy(detector.state_dict())
    said: list[str] = []
    tuned = finetune.finetune(
        detector,
        SPEC,
        CROPS,
        form=int8.TARGETS["cpu"],
        method="percentile 99.99",
        minutes=0.4,
        on_step=said.append,
    )
    found = tuned.finetuning
    assert (found.steps, found.num_crops, found.num_held_out) == (24, 48, 16)
    assert found.error_after < found.error_before
    assert all(torch.equal(value, checkpoint[name]) for name, value in detector.state_dict().items())
    # And so does its file.
    export_onnx(tuned.detector, tmp_path / "tuned.onnx", SPEC)
    before, after = (
        with_everything_rounded(path, tmp_path / "int8.onnx", monkeypatch, judge=(tuned.held_out, tuned.reference))
        for path in (fp32_path, tmp_path / "tuned.onnx")
    )
    assert after.method_errors["percentile 99.99"] < before.method_errors["percentile 99.99"]
    assert any("s left" in step for step in said)
    np.testing.assert_allclose(tuned.reference, reference_outputs(detector, tuned.held_out)[1], atol=1e-5)
    with pytest.raises(ExportError, match="fine-tuning for INT8 needs 32 crops, and there are 31; add faces"):
        finetune.finetune(detector, SPEC, CROPS[:31], form=int8.TARGETS["cpu"], method="minmax", minutes=1)


def test_an_export_fine_tunes_where_layers_must_stay_in_fp32(detector, fp32_path, tmp_path, monkeypatch):
    request = ExportRequest(
        "c.pt", "m", precisions=PrecisionOptions(("int8",), int8_finetune=0.4), faces=FaceOptions("faces")
    )
    crops = CropSet(CROPS, "faces", tuple(f"{index}.png" for index in range(len(CROPS))))
    job = ExportJob(request, SPEC, detector, crops, crops, lambda step: None)
    path = tmp_path / "model.int8.onnx"
    reference = reference_outputs(detector, CROPS[:16])[1]

    def made_where(is_good: Callable[..., bool]) -> dict:
        monkeypatch.setattr(int8, "_is_good", is_good)
        return selection._make_int8(job, CROPS, fp32_path, path)

    # Good on the crops that the fine-tuned network never saw, which alone judge it.
    helped = made_where(lambda logits, *_: len(logits) == 16)
    assert helped["layers_kept_fp32"] == []
    assert helped["finetuning"].startswith("24 steps of 16 crops in 0.4 min on 48 crops; with every layer rounded")
    tuned = path.read_bytes()
    assert made_where(lambda *_: True)["finetuning"].startswith("not needed")
    assert path.read_bytes() != tuned
    rounded = path.read_bytes()
    # What has learned nothing is given up.
    same = finetune.Finetuning(0.1, 0, 48, 16, 1.0, 1.0)
    monkeypatch.setattr(selection, "finetune", lambda *_, **__: finetune.Tuned(detector, same, CROPS[:16], reference))
    monkeypatch.setattr(selection, "export_onnx", lambda _, path, *__, **___: shutil.copyfile(fp32_path, path))
    given_up = made_where(lambda *_: False)
    assert given_up["layers_kept_fp32"]
    assert given_up["finetuning"].endswith("given up, because it spares no layer from FP32")
    assert path.read_bytes() not in (rounded, tuned)
    assert [item.name for item in tmp_path.iterdir()] == ["model.int8.onnx"]


def test_where_fine_tuning_fails_what_was_rounded_is_measured(detector, fp32_path, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "_is_good", lambda *_: False)
    request = ExportRequest(
        "c.pt", "m", precisions=PrecisionOptions(("int8",), int8_finetune=1.0), faces=FaceOptions("faces")
    )
    few = CropSet(CROPS[:20], "faces")
    job = ExportJob(request, SPEC, detector, few, few, lambda step: None)
    made = selection._make_int8(job, few.crops, fp32_path, tmp_path / "int8.onnx")
    assert made["finetuning"] == "not done: fine-tuning for INT8 needs 32 crops, and there are 20; add faces"
    assert (tmp_path / "int8.onnx").is_file()


def test_files_for_the_proof_are_not_learned_from():
    sources = tuple(f"{index // 4}.mp4" for index in range(64))
    whole = CropSet(CROPS, "faces", sources, frozenset(sources), np.arange(64) % 2, "abc")
    proof, calibration = whole.split(5)
    assert (len(proof), len(calibration)) == (16, 48)
    assert set(proof.sources) == proof.videos == {"0.mp4", "5.mp4", "10.mp4", "15.mp4"}
    assert not set(proof.sources) & set(calibration.sources)
    assert proof.labels is not None
    assert (proof.labels == np.arange(16) % 2).all()
    assert proof.origin == "faces; of these 16 from 4 files for the proof"
    with pytest.raises(OptionError, match="faces in 4 files only; add files"):
        proof.split(5)


def test_minutes_that_do_not_fit():
    with pytest.raises(OptionError, match="`int8_finetune` is -1; allowed: minutes from 0 to 1440"):
        PrecisionOptions(("int8",), int8_finetune=-1)
    with pytest.raises(OptionError, match="`int8_finetune` is for INT8; add int8 to `precisions`"):
        PrecisionOptions(int8_finetune=5)
