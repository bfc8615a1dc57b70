"""INT8 for networks of matrix products (transformers): the engine rounds the activations while it computes.

The file holds the weights in 8 bits. The engine gives each row of activations a scale for every few channels of it
(`INT8_GROUP` in OpenVINO), so nothing is calibrated, and no activation is cut off. What a group loses is a step of
its largest value. Behind a layer norm a few channels are ten times as large as the others in every row, so these are
split into equal parts, each with the same weights (Zhao et al., "Improving Neural Network Quantization without
Retraining using Outlier Channel Splitting", 2019): the product stays what it is, and so do the weights.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from deepfake_export.precision.ranges import Float
from deepfake_export.proof.running import UInt8Array, batches_of
from deepfake_preprocess.contract.spec import INPUT_NAME
from deepfake_preprocess.support.engines import INT8_GROUP
from deepfake_preprocess.support.sessions import open_session

MIN_SHARE = 0.9
"""Share of the weights in matrix products from which a network counts as one of products. CLIP ViT-B/16 has 0.99."""
SPLIT_SHARE = 1 / 6
"""Channels that splitting adds, as a share of all and rounded to whole groups: 128 to 768."""
NORM_CROPS = 16
"""Crops that say which channels are large; it is a property of the network."""


def is_of_products(path: Path) -> bool:
    """Return whether nearly all weights of an ONNX file are in matrix products."""
    model = onnx.load(path)
    sizes = [int(np.prod(item.dims)) for item in model.graph.initializer]
    return sum(int(np.prod(weight.dims)) for _, weight in _products(model)) >= MIN_SHARE * sum(sizes)


def write_products_int8(fp32_path: Path, path: Path, crops: UInt8Array) -> dict[str, Any]:
    """Write a copy of an FP32 ONNX file whose matrix products have weights in 8 bits, each output in its own range.

    Returns:
        What was done, as data for the report.
    """
    model = onnx.load(fp32_path)
    products = _products(model)
    split = _behind_norms(model, products)
    sizes = _channel_sizes(model, [node.input[0] for _, node, _ in split], crops)
    for norm, node, weight in split:
        parts = _parts(sizes[node.input[0]])
        if parts.max() > 1:
            _split_channels(model.graph, norm, node, weight, parts)
    for node, weight in products:
        _round_weight(model.graph, node, weight)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return {
        "activations": f"rounded while computing, a scale for each row and {INT8_GROUP} channels",
        "num_products": len(products),
        "products_with_split_channels": len(split),
    }


def _products(model: Any) -> list[tuple[Any, Any]]:
    """Return the products with a constant matrix ``[channels, outputs]`` of their own, and this matrix.

    One of a single output gives the logit, which stays exact.
    """
    weights = {item.name: item for item in model.graph.initializer if len(item.dims) == 2 and item.dims[1] > 1}
    uses = Counter(name for node in model.graph.node for name in node.input)
    return [
        (node, weights[node.input[1]])
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights and uses[node.input[1]] == 1
    ]


def _behind_norms(model: Any, products: list[tuple[Any, Any]]) -> list[tuple[Any, Any, Any]]:
    """Return the layer norms whose output, and whose parameters, nothing but one product uses, with the product."""
    norms = {node.output[0]: node for node in model.graph.node if node.op_type == "LayerNormalization"}
    uses = Counter(name for node in model.graph.node for name in node.input)
    found = [(norms[node.input[0]], node, weight) for node, weight in products if node.input[0] in norms]
    return [
        (norm, *rest) for norm, *rest in found if all(uses[name] == 1 for name in (norm.output[0], *norm.input[1:]))
    ]


def _channel_sizes(model: Any, names: list[str], crops: UInt8Array) -> dict[str, Float]:
    """Return the root mean square of each channel, the last axis, of tensors."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    if not names:
        return {}
    session = open_session(probe.SerializeToString())
    squares: dict[str, Any] = dict.fromkeys(names, 0.0)
    chosen = crops[np.linspace(0, len(crops) - 1, min(NORM_CROPS, len(crops))).round().astype(int)]
    for crop in batches_of(chosen, 1):
        for name, value in zip(names, session.run(names, {INPUT_NAME: crop}), strict=True):
            squares[name] = squares[name] + np.square(value).reshape(-1, value.shape[-1]).mean(axis=0)
    return {name: np.sqrt(total / len(chosen)) for name, total in squares.items()}


def _parts(sizes: Float) -> Any:
    """Return into how many parts each channel is split: always the largest part is made smaller, one by one."""
    parts = np.ones(len(sizes), dtype=np.int64)
    for _ in range(round(SPLIT_SHARE * len(sizes) / INT8_GROUP) * INT8_GROUP):
        parts[np.argmax(sizes / parts)] += 1
    return parts


def _split_channels(graph: Any, norm: Any, node: Any, weight: Any, parts: Any) -> None:
    """Put extra parts behind the channels: the norm gives a part of each value, and rows of weights are repeated."""
    for item in graph.initializer:
        if item.name in norm.input[1:]:
            values = (numpy_helper.to_array(item) / parts).astype(np.float32)
            item.CopyFrom(numpy_helper.from_array(values, item.name))
    extra = np.repeat(np.arange(len(parts)), parts - 1)
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(np.concatenate([values, values[extra]]), weight.name))
    names = [f"{weight.name}_{what}" for what in ("rows", "repeated", "split")]
    graph.initializer.append(numpy_helper.from_array(extra, names[0]))
    place = list(graph.node).index(node)
    joined = [node.input[0], names[1]]
    graph.node.insert(place, helper.make_node("Concat", joined, names[2:], names[2], axis=-1))
    graph.node.insert(place, helper.make_node("Gather", [node.input[0], names[0]], names[1:2], names[1], axis=-1))
    node.input[0] = names[2]
    # Their shapes are others now.
    for item in [item for item in graph.value_info if item.name == weight.name]:
        graph.value_info.remove(item)


def _round_weight(graph: Any, node: Any, weight: Any) -> None:
    values = numpy_helper.to_array(weight)
    scale = np.maximum(np.abs(values).max(axis=0), np.finfo(np.float32).tiny) / np.float32(127)
    rounded, name = np.rint(values / scale).astype(np.int8), weight.name
    graph.initializer.remove(weight)
    parts = [numpy_helper.from_array(rounded, f"{name}_int8"), numpy_helper.from_array(scale, f"{name}_scale")]
    graph.initializer.extend(parts)
    given = helper.make_node("DequantizeLinear", [item.name for item in parts], [name], f"{name}_in_8_bits", axis=1)
    graph.node.insert(list(graph.node).index(node), given)
