"""Gives a finished ONNX file another temperature and another spec, without the checkpoint it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from deepfake_preprocess.contract.spec import INPUT_NAME, LOGIT_NAME, PROBABILITY_NAME, ModelSpec
from deepfake_preprocess.errors import ExportError

NODE = "calibration"
"""Name of the node that divides the logit once more."""
TOLERANCE = 1e-4
"""Largest difference of a probability from what the old file and the new temperature give: rounding in float32."""
NUM_CROPS = 4


def recalibrated(source: Path, target: Path, old: ModelSpec, new: ModelSpec) -> float:
    """Write an ONNX file with another spec, its logits multiplied by the ratio of the temperatures, and prove it.

    Returns:
        The largest difference of a probability, on random crops, from what it should be.

    Raises:
        ExportError: the new file computes something else.
    """
    model = onnx.load(str(source))
    ratio = new.temperature / old.temperature
    if ratio != 1.0:
        node = next((node for node in model.graph.node if node.name == NODE), None) or _add_division(model.graph)
        divisor = next(item for item in model.graph.initializer if item.name == node.input[1])
        value = np.asarray(numpy_helper.to_array(divisor) * ratio, np.float32)
        divisor.CopyFrom(numpy_helper.from_array(value, divisor.name))
    helper.set_model_props(model, new.to_parameters())
    target.write_bytes(model.SerializeToString(deterministic=True))
    return _prove(source, target, new, ratio)


def _add_division(graph: Any) -> Any:
    """Put a division by 1 behind the logit, and the probability behind that; return the division."""
    before = f"{LOGIT_NAME}_before_{NODE}"
    for node in list(graph.node):
        for names in (node.input, node.output):
            names[:] = [before if name == LOGIT_NAME else name for name in names]
        if PROBABILITY_NAME in node.output:
            graph.node.remove(node)
    graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), f"{NODE}_divisor"))
    division = helper.make_node("Div", [before, f"{NODE}_divisor"], [LOGIT_NAME], name=NODE)
    sigmoid = helper.make_node("Sigmoid", [LOGIT_NAME], [PROBABILITY_NAME], name=f"{NODE}_sigmoid")
    graph.node.extend([division, sigmoid])
    return next(node for node in graph.node if node.name == NODE)


def _prove(source: Path, target: Path, spec: ModelSpec, ratio: float) -> float:
    shape = (NUM_CROPS, spec.input_height_px, spec.input_width_px, 3)
    crops = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (_, before), (probability, logit) = (_outputs(path, crops) for path in (source, target))
    expected = _sigmoid(before.astype(np.float64) / ratio)
    worst = max(float(np.abs(expected - found).max()) for found in (probability, _sigmoid(logit)))
    if not worst <= TOLERANCE:
        raise ExportError(
            f"{source} cannot be given another temperature: the new file differs by {worst:.2g} from what it should "
            "give; write the temperature into the spec of the checkpoint, and export that again"
        )
    return worst


def _outputs(path: Path, crops: Any) -> list[Any]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run([PROBABILITY_NAME, LOGIT_NAME], {INPUT_NAME: crops}))


def _sigmoid(logit: Any) -> Any:
    return (1 + np.tanh(logit.astype(np.float64) / 2)) / 2  # never overflows
