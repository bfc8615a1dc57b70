"""INT8 of matrix products: which networks, that splitting changes nothing, and that activations are rounded."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from deepfake_export.graph.onnx_export import export_onnx
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.precision.products import is_of_products, write_products_int8
from deepfake_preprocess.contract.forms import FEATURES, cpu_features
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.support.engines import open_network

SPEC = ModelSpec("tiny", "timm:tiny", input_height_px=16, input_width_px=16)
CROPS = np.random.default_rng(5).integers(0, 256, (6, 16, 16, 3), np.uint8)
LARGE = [3, 77, 200]


class Mixer(torch.nn.Module):
    """Rows of 384 channels, a few of them far larger behind the norm, as in CLIP; weights of 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(384)
        self.first, self.second = torch.nn.Linear(384, 384), torch.nn.Linear(384, 384, bias=False)
        self.head = torch.nn.Linear(384, 1)
        with torch.no_grad():
            self.norm.weight[LARGE] = 20.0
            for layer in (self.first, self.second):
                scale = layer.weight.abs().amax(1, keepdim=True) / 127
                layer.weight.copy_((layer.weight / scale).round() * scale)

    def forward(self, pixels):
        rows = self.norm(pixels.flatten(1).reshape(-1, 2, 384))
        return self.head(self.second(torch.relu(self.first(rows))).mean(1))


class Convolutions(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.Conv2d(32, 32, 3))
        self.head = torch.nn.Linear(32, 1)

    def forward(self, pixels):
        return self.head(self.layers(pixels).mean((2, 3)))


def exported(network, path):
    torch.manual_seed(0)
    export_onnx(ServedDetector(network().eval(), SPEC).eval(), path, SPEC, verbose=False)
    return path


@pytest.fixture(scope="module")
def fp32_path(tmp_path_factory):
    return exported(Mixer, tmp_path_factory.mktemp("products") / "fp32.onnx")


def logits(path):
    options = onnxruntime.SessionOptions()
    # Otherwise it rounds activations, too.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options).run(["logit"], {"faces": CROPS})[0]


def test_a_network_is_of_products_where_its_weights_are(fp32_path, tmp_path):
    assert is_of_products(fp32_path)
    assert not is_of_products(exported(Convolutions, tmp_path / "convolutions.onnx"))


def test_weights_take_8_bits_and_the_largest_channels_behind_a_norm_are_split(fp32_path, tmp_path):
    details = write_products_int8(fp32_path, tmp_path / "int8.onnx", CROPS)
    assert (details["num_products"], details["products_with_split_channels"]) == (2, 1)
    graph = onnx.load(tmp_path / "int8.onnx").graph
    weights = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    small = [value for value in weights.values() if value.dtype == np.int8]
    assert sorted(value.shape for value in small) == [(384, 384), (384 + 64, 384)]
    (rows,) = (value for name, value in weights.items() if name.endswith("_rows"))
    assert set(LARGE) <= set(rows)
    # Such weights lose nothing, and neither does splitting.
    np.testing.assert_allclose(logits(tmp_path / "int8.onnx"), logits(fp32_path), atol=1e-5)


def test_metadata_stay_in_the_file(fp32_path, tmp_path):
    write_products_int8(fp32_path, tmp_path / "int8.onnx", CROPS)
    before, after = (
        {item.key: item.value for item in onnx.load(path).metadata_props}
        for path in (fp32_path, tmp_path / "int8.onnx")
    )
    assert before
    assert before == after


@pytest.mark.skipif(not cpu_features().intersection(FEATURES["int8"]), reason="the CPU does not multiply bytes")
def test_the_engine_rounds_activations_and_split_channels_lose_less(fp32_path, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    exact, errors = logits(fp32_path), []
    for share in (1 / 6, 0.0):
        monkeypatch.setattr("deepfake_export.precision.products.SPLIT_SHARE", share)
        write_products_int8(fp32_path, tmp_path / "int8.onnx", CROPS)
        network = open_network(tmp_path / "int8.onnx", ["logit"], engine="openvino", precision="int8", threads=1)
        errors.append(float(np.abs(network(CROPS)[0] - exact).mean()))
    split, plain = errors
    assert 1e-6 < split < 0.7 * plain
