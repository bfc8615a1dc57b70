"""Rewrites of an exported ONNX graph that keep what it computes and make it faster to run."""

from __future__ import annotations

from typing import Any

SPATIAL_AXES = (2, 3)
"""Height and width of ``[N, C, H, W]``."""


def pool_globally(model: Any) -> int:
    """Replace means over height and width, as squeeze-and-excitation blocks have them, by GlobalAveragePool.

    ONNX Runtime keeps GlobalAveragePool in its blocked layout (NCHWc) and leaves it for a ReduceMean, with a copy of
    the activations. The model is changed in place, and must have shapes, as exporters write them.

    Returns:
        How many nodes were replaced.
    """
    import onnx

    constants = {item.name: item for item in model.graph.initializer}
    ranks = {item.name: len(item.type.tensor_type.shape.dim) for item in model.graph.value_info}
    replaced = 0
    for node in model.graph.node:
        if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in constants:
            continue
        rank = ranks.get(node.input[0])
        keeps = all(item.i for item in node.attribute if item.name == "keepdims")
        axes = onnx.numpy_helper.to_array(constants[node.input[1]]).reshape(-1).tolist()
        if rank == 4 and keeps and sorted(axis % rank for axis in axes) == list(SPATIAL_AXES):
            node.op_type = "GlobalAveragePool"
            del node.input[1:]
            node.ClearField("attribute")
            replaced += 1
    used = {name for node in model.graph.node for name in node.input}
    for name, item in constants.items():
        if replaced and name not in used:
            model.graph.initializer.remove(item)
    return replaced
