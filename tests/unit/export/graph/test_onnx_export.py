import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from deepfake_export.graph.onnx_export import pool_globally


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
