"""BF16 of which the first layers stay in FP32: what is marked, and that the engine keeps to it."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

from deepfake_export.precision.bf16 import LAYER_TYPES, write_partly_fp32
from deepfake_preprocess.contract.forms import FEATURES, cpu_features
from deepfake_preprocess.errors import ExportError
from deepfake_preprocess.support.engines import KEEPS_PRECISION, open_network

openvino = pytest.importorskip("openvino")

FACES = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def fp32_path(tmp_path_factory):
    torch.manual_seed(0)
    layers = [(torch.nn.Conv2d(width, 8, 3, padding=1), torch.nn.ReLU6()) for width in (3, 8, 8, 8)]
    network = torch.nn.Sequential(*(part for pair in layers for part in pair)).eval()
    path = tmp_path_factory.mktemp("bf16") / "model.onnx"
    torch.onnx.export(network, (torch.from_numpy(FACES),), path, output_names=["logit"], dynamo=True, verbose=False)
    return path


def scores(path, precision):
    (found,) = open_network(path, ["logit"], engine="openvino", precision=precision, threads=1)(FACES)
    return np.array(found)


@pytest.mark.parametrize(("share", "kept"), [(0.01, 1), (0.5, 2), (1.0, 4)])
def test_the_first_layers_and_what_follows_each_are_marked(fp32_path, tmp_path, share, kept):
    path = tmp_path / "bf16.xml"
    assert write_partly_fp32(fp32_path, path, share) == {"num_layers": 4, "first_layers_in_fp32": kept}
    operations = ET.parse(path).findall("./layers/layer")
    marked = [item.find(f"./rt_info/attribute[@name='{KEEPS_PRECISION}']") is not None for item in operations]
    assert (
        sum(marks and item.get("type") in LAYER_TYPES for marks, item in zip(marked, operations, strict=True)) == kept
    )
    # Nothing beyond is marked, and nothing before is left out.
    assert marked == sorted(marked, reverse=True)
    np.testing.assert_allclose(scores(path, "fp32"), scores(fp32_path, "fp32"), atol=1e-6)


@pytest.mark.skipif(not cpu_features().intersection(FEATURES["bf16"]), reason="the CPU has no BF16")
def test_what_is_marked_is_computed_in_fp32(fp32_path, tmp_path):
    exact = scores(fp32_path, "fp32")
    errors = []
    for share in (0.0, 0.5, 1.0):
        path = tmp_path / f"{share:g}.xml"
        if share:
            write_partly_fp32(fp32_path, path, share)
        errors.append(float(np.abs(scores(path if share else fp32_path, "bf16") - exact).mean()))
    all_bf16, half, none = errors
    assert none < 0.1 * all_bf16
    assert none < half < all_bf16


def test_a_file_without_marks_is_refused(fp32_path, tmp_path):
    openvino.serialize(openvino.Core().read_model(fp32_path), tmp_path / "plain.xml")
    with pytest.raises(ExportError, match="does not know which operations"):
        scores(tmp_path / "plain.xml", "fp32")


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no network")
    with pytest.raises(ExportError, match=r"OpenVINO cannot write bf16\.xml: .*\w"):
        write_partly_fp32(tmp_path / "model.onnx", tmp_path / "bf16.xml", 0.5)
