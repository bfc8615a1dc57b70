"""A model made in milliseconds that follows the wire contract, in a repository as `deepfake export` writes it."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deepfake_export.repository.configs import refresh_configs
from deepfake_preprocess.contract import triton_config
from deepfake_preprocess.contract.manifest import Manifest, file_hashes
from deepfake_preprocess.contract.spec import ModelSpec

TINY_SPEC = ModelSpec(
    name="tiny",
    architecture="python:tests.tiny:make",
    input_height_px=24,
    input_width_px=32,
    threshold=0.4,
    training_data="random numbers",
)
QUEUE_DELAY_US = 20_000
"""The tiny model answers faster than a test can send; the wait lets batches form on any machine."""


def write_tiny_onnx(path: Path, spec: ModelSpec = TINY_SPEC) -> None:
    """A linear model under the wire contract: Cast, scale, Flatten, Gemm, Sigmoid."""
    size = spec.input_height_px * spec.input_width_px * 3
    spread = 0.1 * (24 * 32 * 3 / size) ** 0.5  # logits of the same spread, whatever the input size
    weights = np.random.default_rng(7).normal(0, spread, (size, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["faces"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "weights"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["fake_probability"]),
    ]
    crop = [spec.input_height_px, spec.input_width_px, 3]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("faces", TensorProto.UINT8, ["batch", *crop])],
        [
            helper.make_tensor_value_info("fake_probability", TensorProto.FLOAT, ["batch", 1]),
            helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["batch", 1]),
        ],
        [
            numpy_helper.from_array(np.float32(1 / 255), "scale"),
            numpy_helper.from_array(weights, "weights"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_tiny_repository(root: Path, spec: ModelSpec = TINY_SPEC) -> Path:
    """A model repository as `deepfake export` lays it out, with one version of the tiny model."""
    version_dir = root / spec.name / str(spec.version)
    version_dir.mkdir(parents=True)
    write_tiny_onnx(version_dir / "model.onnx", spec)
    manifest = Manifest(spec, file_hashes(version_dir), "fp32")
    manifest.write(version_dir)
    refresh_configs(root / spec.name, manifest, max_batch_size=triton_config.PRODUCTION_MAX_BATCH_SIZE)
    embedded = root / spec.name / triton_config.EMBEDDED_CONFIG_NAME
    config = triton_config.read_config(embedded)
    config.dynamic_batching.max_queue_delay_microseconds = QUEUE_DELAY_US
    embedded.write_text(triton_config.config_to_text(config), encoding="utf-8")
    return root
