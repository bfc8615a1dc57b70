"""Reads an ONNX graph for what TensorRT's errors and the manifest need: types in it, and where a node came from."""

from __future__ import annotations

from typing import Any

LAYER_KEY = "deepfake.layer"
"""Metadata of a node: the layer (PyTorch module) that it was exported from, for example ``blocks.1.0.conv_pw``."""

PASSES_ON = frozenset(
    {"Cast", "Gather", "Identity", "Neg", "Reshape", "Slice", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze"}
)
"""What makes one logit of a network's outputs."""

NETWORK_PREFIX = "network."
"""`ServedDetector` holds the network under this name; people know its layers without it."""


def precision_of(model: Any) -> str:
    """Return ``int8``, ``fp16`` or ``fp32``: the lowest precision that a graph computes in.

    TensorRT's networks are strongly typed, so what the graph says is what the engine does: Q/DQ nodes make it
    INT8, and weights in float16 make it FP16.
    """
    import onnx

    operators = {node.op_type for node in model.graph.node}
    if operators & {"QuantizeLinear", "DequantizeLinear"}:
        return "int8"
    half = onnx.TensorProto.FLOAT16
    return "fp16" if any(item.data_type == half for item in model.graph.initializer) else "fp32"


def keep_layer(node: Any) -> None:
    """Replace the exporter's notes on a node by the one that can be kept: which layer it came from.

    The others hold paths of this machine.
    """
    import ast

    scopes = next((item.value for item in node.metadata_props if item.key == "pkg.torch.onnx.name_scopes"), "")
    node.ClearField("metadata_props")
    try:
        names = [name for name in ast.literal_eval(scopes or "[]") if name]
    except (ValueError, SyntaxError):  # the notes of another exporter
        return
    # The last name is the operation itself; those before are the modules around it, outermost first.
    if len(names) > 1:
        entry = node.metadata_props.add()
        entry.key, entry.value = LAYER_KEY, str(names[-2]).removeprefix(NETWORK_PREFIX)


def layer_of(node: Any) -> str:
    """Return the layer that a node was exported from, as far as it was noted; empty where not."""
    return next((str(item.value) for item in node.metadata_props if item.key == LAYER_KEY), "")


def origin_of(model: Any, node: Any) -> str:
    """Return where a node came from, as `` from layer 'x'`` or `` after layer 'x'``; empty where that is unknown.

    What the exporter noted is taken; where a tool has rewritten the graph and dropped that, the names of the
    node's own weights; and else those of the nearest weights before it.
    """
    if layer := layer_of(node):
        return f" from layer {layer!r}"
    weights = {item.name for item in model.graph.initializer}
    producers = {name: other for other in model.graph.node for name in other.output}
    queue, seen, word = [node], set(), "from"
    while queue:
        current = queue.pop(0)
        word = "from" if current is node else "after"
        for name in current.input:
            if name in weights and "." in name:
                return f" {word} layer {_layer_of_weight(name)!r}"
        for name in current.input:
            if name in producers and name not in seen:
                seen.add(name)
                queue.append(producers[name])
    return ""


def last_operator(model: Any, output: str) -> Any | None:
    """Return the node that computed the values of an output, past those that only pick, negate or subtract them."""
    producers = {name: node for node in model.graph.node for name in node.output}
    node = producers.get(output)
    while node is not None and node.op_type in PASSES_ON:
        node = producers.get(node.input[0])
    return node


def find_node(model: Any, *, index: int, name: str, operator: str) -> Any | None:
    """Return the node that TensorRT's parser complains of: by name where it has one, else by its place."""
    nodes = model.graph.node
    named = [node for node in nodes if name and node.name == name]
    if len(named) == 1:
        return named[0]
    if 0 <= index < len(nodes) and operator in ("", nodes[index].op_type):
        return nodes[index]
    return None


def _layer_of_weight(name: str) -> str:
    return name.removeprefix(NETWORK_PREFIX).rpartition(".")[0]
