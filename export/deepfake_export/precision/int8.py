"""INT8: explicit Q/DQ around the layers that bear it, with ranges from real face crops.

Three measurements decide what the file looks like, all on calibration crops and all against the FP32 graph:

1. the ranges: the largest values seen, or a percentile that cuts rare ones off, whichever disturbs the logits less;
2. each layer's error: the change of the logit when that layer alone is quantized;
3. how many of the worst layers must stay in FP32 until the verdicts of faces are kept.

Memory is bounded: one crop's activations at a time, and a few hundred numbers of each tensor are kept.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import add_infer_metadata

from deepfake_export.graph.onnx_nodes import layer_of
from deepfake_export.precision.ranges import METHODS, Float, Range, RangeMeter
from deepfake_export.proof.running import UInt8Array, batches_of
from deepfake_export.proof.tolerances import TOLERANCES
from deepfake_preprocess.contract.spec import INPUT_NAME, LOGIT_NAME, ModelSpec
from deepfake_preprocess.errors import ExportError
from deepfake_preprocess.support.json_data import JsonData
from deepfake_preprocess.support.sessions import open_session

WEIGHT_OPS = ("Conv", "Gemm", "MatMul", "ConvTranspose")
"""A layer starts at one of these. NVIDIA's parser wants Q/DQ at their inputs and fuses the rest itself."""
CPU_OPS = (*WEIGHT_OPS, "Add", "Mul", "Sigmoid", "Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool",
           "GlobalAveragePool", "Concat", "Resize")  # fmt: skip
"""On the CPU a layer pays only when what stands between two convolutions stays in 8 bits too: SiLU is Sigmoid and
Mul, and each would otherwise cost a conversion there and back."""

CALIBRATION_CROPS = 128
"""Ranges hardly grow beyond (a percentile not at all), and each crop costs 0.1 s on EfficientNet-B0."""
SEARCH_CROPS = 48
"""Crops that methods, and numbers of excluded layers, are compared on."""
LAYER_CROPS = 8
"""Crops that the layers are compared on; only their order matters, and there are many layers."""
MAX_LAYERS = 96
"""Beyond this, neighboring layers are measured together."""
MAX_LAYERS_S = 180.0
"""So are they where measuring them one by one would take longer than this."""
MIN_GROUPS = 8
"""Fewer groups than this say nothing about where the error comes from."""
SMALLEST_RANGE = 1e-6
"""Smallest range of a tensor or channel. A channel whose weights are all zero would get a scale of 1 otherwise, and
its bias, whose scale is the product of the input's and the weights', would be rounded to whole steps of the input."""
PROGRESS_S = 10.0
"""Time between two words on how far the search is."""
NEAR_LOGIT = 0.5
"""Faces this near to the threshold say how many are nearer still, where an error changes the verdict."""
MAX_EXCLUDED_SHARE = 0.75
"""With fewer layers than this left, nothing is gained from INT8, and the gate takes another precision."""


@dataclass(frozen=True, slots=True)
class QdqForm:
    """Who runs the file, and the form of Q/DQ that is right there.

    Attributes:
        signed_activations: signed and symmetric, the only form NVIDIA's parser takes.
        reduce_range: 7-bit weights.
        quantize_bias: biases as INT32; NVIDIA's parser wants them as floats.
        op_types: operators that get Q/DQ.
        reason: why.
    """

    signed_activations: bool
    reduce_range: bool
    quantize_bias: bool
    op_types: tuple[str, ...]
    reason: str


TARGETS = {
    "cpu": QdqForm(
        signed_activations=False,
        reduce_range=True,
        quantize_bias=True,
        op_types=CPU_OPS,
        reason=(
            "unsigned activations, because x86 multiplies unsigned by signed bytes (signed ones: 4 times slower); "
            "7-bit weights, because without VNNI two products are added in 16 bits and 8-bit weights saturate there"
        ),
    ),
    "tensorrt": QdqForm(
        signed_activations=True,
        reduce_range=False,
        quantize_bias=False,
        op_types=WEIGHT_OPS,
        reason="signed symmetric activations and float biases are the only form that NVIDIA's parser takes",
    ),
}


@dataclass(frozen=True, slots=True)
class Int8Export(JsonData):
    """What the search decided, for the report.

    Attributes:
        method: how ranges were chosen, for example ``percentile 99.99``.
        method_errors: mean absolute logit error of each method, everything quantized.
        num_layers: layers that could be quantized.
        layers_kept_fp32: worst first.
        layer_errors: mean absolute logit error of each layer when it alone is quantized, largest first; empty where
            it was not measured.
        num_calibration_crops: crops that the ranges come from.
    """

    target: str
    target_reason: str
    method: str
    method_errors: dict[str, float]
    num_layers: int
    layers_kept_fp32: tuple[str, ...]
    layer_errors: dict[str, float]
    num_calibration_crops: int


def quantize_int8(
    fp32_path: Path,
    path: Path,
    spec: ModelSpec,
    crops: UInt8Array,
    *,
    target: str = "cpu",
    judge: tuple[UInt8Array, Float] | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Int8Export:
    """Quantize an FP32 ONNX file for one of `TARGETS`, with ranges from at most `CALIBRATION_CROPS` face crops.

    Every choice is judged on crops and the logits ``[N, 1]`` wanted of them, given by `judge`; where it is None, on
    some of `crops` and the file's own logits.

    Raises:
        ExportError: there is nothing to quantize, or the quantizer refuses the graph.
    """
    form = TARGETS[target]
    model = onnx.shape_inference.infer_shapes(onnx.load(fp32_path))
    _name_nodes(model)
    # Says that shapes are inferred; the quantizer would do it again for every choice of layers.
    add_infer_metadata(model)
    layers = _layers_of(model)
    if not layers:
        raise ExportError("the graph has no convolution or matrix product with weights, so nothing can be INT8")
    calibration = evenly(crops, CALIBRATION_CROPS)
    on_step(f"Measuring ranges of activations on {len(calibration)} crops")
    ranges = _measure_ranges(model, calibration)
    fp32 = model.SerializeToString()
    judged = evenly(crops if judge is None else judge[0], SEARCH_CROPS)
    reference = _logits(fp32, judged) if judge is None else evenly(judge[1], SEARCH_CROPS)
    density = _density(_logits(fp32, calibration) if judge is None else judge[1], spec.threshold)
    search = _Search(model, form, ranges, judged, reference, density)

    on_step(f"Comparing {len(ranges)} ways to choose ranges")
    tried = {method: search.error_of(layers.values(), method) for method in ranges}
    method = min(tried, key=lambda name: tried[name][0])
    is_whole = search.is_good(tried[method][1])
    errors: dict[str, float] = {}
    num_kept = 0
    # Of a file that was fine-tuned so long that it bears everything, nobody asks which layers are sensitive.
    if judge is None or not is_whole:
        layers, errors = _measure_layers(
            layers, lambda nodes: search.error_of([nodes], method, LAYER_CROPS)[0], on_step
        )
        layers = dict(sorted(layers.items(), key=lambda layer: -errors[layer[0]]))
    if not is_whole:
        num_kept = search.fewest_kept(list(layers.values()), method, on_step)
    made = search.quantized(list(layers.values())[num_kept:], method)
    onnx.helper.set_model_props(made, spec.to_parameters())
    path.write_bytes(made.SerializeToString(deterministic=True))
    return Int8Export(
        target,
        form.reason,
        method,
        {name: round(error, 6) for name, (error, _) in tried.items()},
        len(layers),
        tuple(layers)[:num_kept],
        {layer: round(errors[layer], 6) for layer in layers if layer in errors},
        len(calibration),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """Tries which layers to round, and by which method, on a few crops.

    Attributes:
        model: the FP32 one.
        ranges: of its tensors, by method.
        crops: that each choice is judged on.
        reference: logits ``[N, 1]`` wanted of them.
        density: see `_density`.
    """

    model: Any
    form: QdqForm
    ranges: Mapping[str, dict[str, Range]]
    crops: UInt8Array
    reference: Float
    density: float

    def quantized(self, layers: Iterable[Collection[str]], method: str) -> Any:
        """Return the model with the nodes of these layers rounded."""
        return _quantize(self.model, self.ranges[method], {node for nodes in layers for node in nodes}, self.form)

    def error_of(
        self, layers: Iterable[Collection[str]], method: str, count: int = SEARCH_CROPS
    ) -> tuple[float, Float]:
        """Return the mean absolute error of the logits of `count` crops, infinite if it is not finite, and them."""
        logits = _logits(self.quantized(layers, method).SerializeToString(), evenly(self.crops, count))
        error = float(np.abs(logits - evenly(self.reference, count)).mean())
        return (error if np.isfinite(error) else float("inf")), logits

    def is_good(self, logits: Float) -> bool:
        """See `_is_good`."""
        return _is_good(logits, self.reference, self.density)

    def fewest_kept(self, layers: Sequence[Collection[str]], method: str, on_step: Callable[[str], None]) -> int:
        """Return how many of the layers, worst first, have to stay in FP32."""
        on_step("Choosing the layers that stay in FP32")

        def suffices(count: int) -> bool:
            on_step(f"Trying {count} of {len(layers)} layers in FP32")
            return self.is_good(self.error_of(layers[count:], method)[1])

        return _fewest_excluded(len(layers), suffices)


def evenly(rows: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """Return at most `count` rows, taken evenly."""
    if len(rows) <= count:
        return rows
    return np.asarray(rows[np.linspace(0, len(rows) - 1, count).round().astype(int)])


def _layers_of(model: Any) -> dict[str, list[str]]:
    """Return the layers' nodes by the layer's name in the network; at most `MAX_LAYERS`, in topological order.

    They are quantized or left whole: a node with weights and what follows until the next.
    """
    weights = {item.name for item in model.graph.initializer}
    found: list[tuple[str, list[str]]] = []
    for node in model.graph.node:
        if node.op_type in WEIGHT_OPS:
            name = layer_of(node) or next((item for item in node.input if item in weights), node.name)
            found.append((name.removeprefix("network.").removesuffix(".weight"), []))
        if found:
            found[-1][1].append(node.name)
    # The last one gives the logit, which must not be rounded to 256 steps; it costs next to nothing.
    return _grouped(found[:-1], max(1, -(-(len(found) - 1) // MAX_LAYERS)))


def _grouped(layers: Sequence[tuple[str, list[str]]], size: int) -> dict[str, list[str]]:
    """Join each `size` neighboring layers, under the names of the first and the last."""
    grouped: dict[str, list[str]] = {}
    for start in range(0, len(layers), size):
        group = layers[start : start + size]
        name = group[0][0] if len(group) == 1 else f"{group[0][0]} to {group[-1][0]}"
        # A weight that is used twice names two layers.
        while name in grouped:
            name += "'"
        grouped[name] = [node for _, nodes in group for node in nodes]
    return grouped


def _measure_layers(
    layers: dict[str, list[str]], error_of: Callable[[list[str]], float], on_step: Callable[[str], None]
) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Return layers, joined where one by one would take too long, and the error of each."""
    on_step(f"Measuring the error of each of {len(layers)} layers")
    start = last_word = time.monotonic()
    first, nodes = next(iter(layers.items()))
    errors = {first: error_of(nodes)}
    each_s = time.monotonic() - start
    size = min(math.ceil(each_s * len(layers) / MAX_LAYERS_S), max(1, len(layers) // MIN_GROUPS))
    if size > 1:
        layers, errors = _grouped(list(layers.items()), size), {}
        on_step(f"Measuring in {len(layers)} groups of up to {size} layers, because one takes {each_s:.0f} s")
    for number, (name, nodes) in enumerate(layers.items()):
        if name not in errors:
            errors[name] = error_of(nodes)
        if time.monotonic() - last_word > PROGRESS_S:
            last_word = time.monotonic()
            on_step(f"Measured {number + 1} of {len(layers)}, about {each_s * (len(layers) - number - 1):.0f} s left")
    return layers, errors


def _name_nodes(model: Any) -> None:
    """Give every node a name of its own; the quantizer chooses by name."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
        seen.add(node.name)


def _measure_ranges(model: Any, crops: UInt8Array) -> dict[str, dict[str, Range]]:
    """Return by method the lowest and highest value of each floating-point tensor.

    ONNX Runtime's own histogram calibrators keep every value of a call: 34 s for 64 crops of EfficientNet-B0
    against 8 s here, and entropy's result was no better.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    typed = {item.name: item for item in (*model.graph.value_info, *model.graph.output)}
    names = [
        name
        for node in model.graph.node
        for name in node.output
        if name in typed and typed[name].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    ]
    present = {item.name for item in probe.graph.output}
    probe.graph.output.extend(typed[name] for name in names if name not in present)
    session = open_session(probe.SerializeToString())
    meters = {name: RangeMeter() for name in names}
    for crop in batches_of(crops, 1):
        for meter, value in zip(meters.values(), session.run(names, {INPUT_NAME: crop}), strict=True):
            meter.add(value)
    return {method: {name: meter.range_of(method) for name, meter in meters.items()} for method in METHODS}


def _quantize(model: Any, ranges: dict[str, Range], nodes: Collection[str], form: QdqForm) -> Any:
    """Return a copy of `model` with Q/DQ at `nodes`, those of the form's operators."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    activation = QuantType.QInt8 if form.signed_activations else QuantType.QUInt8
    previous = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises pre-processing, which the exporter has done
    try:
        # `quantize_static` takes these steps too, but measures the ranges again for every choice of nodes.
        quantizer = QDQQuantizer(
            copied,
            per_channel=True,
            reduce_range=form.reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=activation,
            tensors_range=TensorsData(CalibrationMethod.MinMax, dict(ranges)),
            nodes_to_quantize=sorted(nodes) or ["none"],
            nodes_to_exclude=[],
            op_types_to_quantize=list(form.op_types),
            extra_options={
                "ActivationSymmetric": form.signed_activations,
                "WeightSymmetric": True,
                "QuantizeBias": form.quantize_bias,
                "MinimumRealRange": SMALLEST_RANGE,
                "OpTypesToExcludeOutputQuantization": list(form.op_types) if form.signed_activations else [],
            },
        )
        quantizer.quantize_model()
        # Q/DQ nodes come last otherwise; ONNX Runtime does not mind, but it is not valid ONNX.
        quantizer.model.topological_sort()
    # It raises whatever its operators' code raises.
    except Exception as exc:
        raise ExportError(f"the network cannot be quantized ({type(exc).__name__}: {exc})") from exc
    finally:
        logging.root.setLevel(previous)
    return quantizer.model.model


def _fewest_excluded(num_layers: int, is_good: Callable[[int], bool]) -> int:
    """Return how many of the worst layers to leave out: the fewest that is good, by halving; the most if none is.

    None left out is not good enough.
    """
    most = int(num_layers * MAX_EXCLUDED_SHARE)
    bad, good = 0, most
    if not is_good(most):
        return most
    while good - bad > max(1, num_layers // 32):
        middle = (bad + good) // 2
        bad, good = (bad, middle) if is_good(middle) else (middle, good)
    return good


def _density(logits: Float, threshold: float) -> float:
    """Return the share of faces, per logit, whose scores lie beside the threshold."""
    near = np.abs(logits - np.log(threshold / (1 - threshold))) <= NEAR_LOGIT
    return float(near.mean()) / (2 * NEAR_LOGIT)


def _is_good(logits: Float, reference: Float, density: float) -> bool:
    """Whether half of what the gate allows is kept: of changed verdicts, and by the search crops' probabilities.

    Half, because the crops of the proof are others. The verdicts of so few crops say nothing of one in 200; an error
    changes those of faces that are nearer to the threshold than it is, on one side.
    """
    tolerance = TOLERANCES["int8"]
    assert tolerance.flip_share is not None
    difference = np.abs(_sigmoid(logits) - _sigmoid(reference))
    return bool(
        density * np.abs(logits - reference).mean() <= tolerance.flip_share / 2
        and difference.max() <= tolerance.probability_abs / 2
        and difference.mean() <= tolerance.probability_mean_abs / 2
    )


def _sigmoid(logits: Float) -> npt.NDArray[np.float64]:
    # Clipped where a double is 0 or 1 anyway: exp would overflow.
    return np.asarray(1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -700, 700))))


def _logits(model: bytes, crops: UInt8Array) -> Float:
    session = open_session(model)
    outputs = [session.run([LOGIT_NAME], {INPUT_NAME: batch})[0] for batch in batches_of(crops, 8)]
    return np.asarray(np.concatenate(outputs), dtype=np.float32)
