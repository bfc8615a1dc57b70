import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from deepfake_export.checkpoint.architectures import build_network
from deepfake_export.graph.onnx_export import export_onnx, pool_globally
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_preprocess.contract.spec import Head, ModelSpec


def mean_graph(axes, *, keepdims=1, shape=("batch", 4, 5, 6)):
    rank = len(shape) if keepdims else len(shape) - len(axes)
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("ReduceMean", ["a", "axes"], ["b"], keepdims=keepdims),
            helper.make_node("Neg", ["b"], ["y"]),
        ],
        "means",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(np.array(axes, np.int64), "axes")],
        value_info=[helper.make_tensor_value_info("a", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model, x):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("axes", [(2, 3), (-1, -2), (3, 2)])
def test_means_over_height_and_width_become_pooling_with_the_same_values(axes):
    x = np.random.default_rng(3).normal(size=(3, 4, 5, 6)).astype(np.float32)
    model = mean_graph(axes)
    expected = run(model, x)
    assert pool_globally(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Relu", "GlobalAveragePool", "Neg"]
    assert not model.graph.initializer
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("axes", "options"),
    [((1,), {}), ((1, 2), {}), ((2, 3), {"keepdims": 0}), ((2, 3), {"shape": ("batch", 4, 5, 6, 7)})],
    ids=["channels", "channels and height", "without the axes", "five axes"],
)
def test_other_means_stay(axes, options):
    model = mean_graph(axes, **options)
    before = model.SerializeToString()
    assert pool_globally(model) == 0
    assert model.SerializeToString() == before


def test_a_transformer_with_a_normalized_head_gives_pytorchs_logits(tmp_path):
    torch.manual_seed(0)
    head = Head(layers=("normalize", "linear:1"))
    spec = ModelSpec("vit", "timm:test_vit", head=head, input_height_px=32, input_width_px=32)
    detector = ServedDetector(build_network(spec), spec).eval()
    with torch.no_grad():
        detector.network.get_submodule("head.1").weight.mul_(30)
    export_onnx(detector, tmp_path / "vit.onnx", spec)
    crops = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = detector(torch.from_numpy(crops))[1].numpy()
    session = ort.InferenceSession(str(tmp_path / "vit.onnx"), providers=["CPUExecutionProvider"])
    assert np.ptp(expected) > 0.01
    assert session.run(["logit"], {"faces": crops})[0] == pytest.approx(expected, abs=1e-3)
