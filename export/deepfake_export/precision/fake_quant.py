"""A PyTorch network that rounds as its INT8 form will, so that it can be trained to bear it.

The rounding stands where `precision.int8` puts Q/DQ. Gradients pass it as if it were not there, but for values out
of its range (Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", 2018). Batch norms follow their convolution, as the exporter folds them: a weight's scale is per output
channel, so it makes no difference to its rounding.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from deepfake_export.precision.ranges import RangeMeter
from deepfake_preprocess.errors import ExportError

aten = torch.ops.aten

_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
_WITH_WEIGHT = (*_CONVOLUTIONS, aten.linear.default)
_PRODUCTS = (aten.matmul.default, aten.mm.default, aten.bmm.default)
_ATTENTION = aten.scaled_dot_product_attention.default
_WEIGHT_OPS = (*_WITH_WEIGHT, *_PRODUCTS, _ATTENTION)
_NORM = aten._native_batch_norm_legit_no_training.default
_CLIPS = (aten.relu.default, aten.hardtanh.default, aten.clamp.default)
_OTHER_OPS = (
    *_CLIPS,
    aten.add.Tensor,
    aten.mul.Tensor,
    aten.sigmoid.default,
    aten.leaky_relu.default,
    aten.gelu.default,  # Add and Mul in ONNX
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.mean.dim,
    aten.cat.default,
)
"""What `precision.int8` quantizes for the CPU besides layers with weights."""


class ActivationRounding(nn.Module):
    """Rounds a tensor to 8 bits of its range; before that it measures the range.

    Attributes:
        meter: takes in what passes, which is left as it is, where this is set.
    """

    def __init__(self, *, signed: bool) -> None:
        super().__init__()
        self.meter: RangeMeter | None = None
        self._signed = signed
        self._limits = (-127, 127) if signed else (0, 255)
        self._scale, self._zero = 1.0, 0

    def set_range(self, low: float, high: float) -> None:
        """Round to 256 steps from `low` to `high`, at most and at least 0; symmetric where signed."""
        tiny = float(np.finfo(np.float32).tiny)
        if self._signed:
            self._scale = max(-low, high, tiny) / 127
        else:
            self._scale = max(high - low, tiny) / 255
            self._zero = round(-low / self._scale)

    def forward(self, value: Tensor) -> Tensor:
        """Return the value, rounded."""
        if self.meter is not None:
            self.meter.add(value.detach().numpy())
            return value
        return torch.fake_quantize_per_tensor_affine(value, self._scale, self._zero, *self._limits)


class WeightRounding(nn.Module):
    """Rounds a weight to `bits` bits, symmetric, each output channel (of dimension `axis`) in its own range.

    Attributes:
        measuring: leaves the weight as it is where this is set.
    """

    def __init__(self, bits: int, axis: int) -> None:
        super().__init__()
        self.measuring = False
        self._limit = 127 if bits == 8 else 2 ** (bits - 1)
        self._axis = axis

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight, rounded."""
        if self.measuring:
            return weight
        others = [index for index in range(weight.ndim) if index != self._axis]
        largest = weight.detach().abs().amax(dim=others)
        scale = largest.clamp_min(float(np.finfo(np.float32).tiny)) / self._limit
        zero = torch.zeros(len(scale), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, self._axis, -self._limit, self._limit)


def trace(network: nn.Module, example: Tensor) -> fx.GraphModule:
    """Return a network as a graph of PyTorch's operators, which shares its parameters.

    Args:
        network: in eval mode.
        example: a batch of at least two.

    Raises:
        ExportError: it cannot be traced.
    """
    try:
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
        # Without a table nothing is decomposed, but operators that work in place become ones that do not.
        traced = program.run_decompositions({}).module(check_guards=False)
    # It raises whatever the network's own code raises.
    except Exception as exc:
        raise ExportError(f"the network cannot be traced for fine-tuning ({type(exc).__name__})") from exc
    assert isinstance(traced, fx.GraphModule)
    traced.graph.set_codegen(fx.graph.CodeGen())  # tensors in and out, as they are
    _split_silu(traced.graph)
    traced.recompile()
    return traced


def give_taps(traced: fx.GraphModule, count: int) -> None:
    """Make a traced network return a tuple of its output and what at most `count` of its layers with weights give."""
    layers = [_output_of(node) for node in traced.graph.nodes if node.target in _WEIGHT_OPS][:-1]
    places = np.linspace(0, len(layers) - 1, min(count, len(layers))).round().astype(int)[::-1]
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    (result,) = output.args[0]
    output.args = ((result, *(layers[place] for place in dict.fromkeys(places.tolist()))),)
    traced.recompile()


def insert_rounding(traced: fx.GraphModule, *, signed: bool, weight_bits: int, all_ops: bool) -> None:
    """Insert rounding into a traced network, in place: before all layers with weights but the last.

    Args:
        traced: what `trace` returned.
        signed: whether activations are signed and symmetric.
        weight_bits: 7 or 8.
        all_ops: also around what stands between these layers.

    Raises:
        ExportError: it has no layers with weights besides the last.
    """
    nodes = list(traced.graph.nodes)
    places = [index for index, node in enumerate(nodes) if node.target in _WEIGHT_OPS]
    if len(places) < 2:
        raise ExportError("the network has no convolution or matrix product that could be fine-tuned for INT8")
    # What comes before the first layer and from the last one on stays in FP32.
    inside = nodes[places[0] : places[-1]]
    rounded: dict[fx.Node, None] = {}
    for node in inside:
        if node.target in _WEIGHT_OPS or (all_ops and node.target in _OTHER_OPS):
            inputs = node.args[:1] if node.target in _WITH_WEIGHT else _inputs_of(node)
            outputs = [_output_of(node)] if all_ops else []
            values = (_before_padding(item) for item in (*inputs, *outputs))
            rounded.update(dict.fromkeys(item for item in values if _is_activation(item)))
            _round_weights(traced, node, weight_bits)
    for index, node in enumerate(item for item in rounded if not _is_clipped(item)):
        _insert(traced, node, ActivationRounding(signed=signed), f"rounding_{index}")
    traced.recompile()


def measure_ranges(traced: fx.GraphModule, batches: Sequence[Tensor], method: str) -> None:
    """Set the ranges of all activations' rounding by one of `ranges.METHODS`, on single inputs, without rounding."""
    roundings = [module for module in traced.modules() if isinstance(module, ActivationRounding)]
    weights = [module for module in traced.modules() if isinstance(module, WeightRounding)]
    try:
        for weight in weights:
            weight.measuring = True
        for item in roundings:
            item.meter = RangeMeter()
        with torch.no_grad():
            for batch in batches:
                traced(batch)
        for item in roundings:
            assert item.meter is not None
            low, high = item.meter.range_of(method)
            item.set_range(float(low), float(high))
    finally:
        for weight in weights:
            weight.measuring = False
        for item in roundings:
            item.meter = None


def _split_silu(graph: fx.Graph) -> None:
    """Replace SiLU by the two operators that it is in ONNX."""
    for node in graph.find_nodes(op="call_function", target=aten.silu.default):
        with graph.inserting_after(node):
            gate = graph.call_function(aten.sigmoid.default, (node.args[0],))
        with graph.inserting_after(gate):
            product = graph.call_function(aten.mul.Tensor, (node.args[0], gate))
        gate.meta = product.meta = node.meta
        node.replace_all_uses_with(product)
        graph.erase_node(node)


def _output_of(node: fx.Node) -> fx.Node:
    """Return the node that gives a layer's output: its batch norm's where there is one."""
    (user,) = node.users if len(node.users) == 1 else (None,)
    if node.target in _CONVOLUTIONS and user is not None and user.target is _NORM:
        return next(item for item in user.users if item.target is operator.getitem and item.args[1] == 0)
    return node


def _before_padding(item: Any) -> Any:
    """Return what is padded with zeros, where `item` is that: the exporter makes the padding part of the layer."""
    is_padding = isinstance(item, fx.Node) and item.target is aten.pad.default
    return item.args[0] if is_padding and item.args[2:] in ((), ("constant", 0)) else item


def _is_clipped(node: fx.Node) -> bool:
    """Whether a ReLU alone takes what a layer gives: they are one operator then, with the range of its output."""
    is_layer = node.target in _WITH_WEIGHT or node.target is operator.getitem
    return is_layer and [user.target in _CLIPS for user in node.users] == [True]


def _inputs_of(node: fx.Node) -> Iterator[Any]:
    for item in node.args:
        yield from item if isinstance(item, list | tuple) else (item,)


def _is_activation(item: Any) -> bool:
    if not isinstance(item, fx.Node) or item.op == "get_attr":
        return False
    value = item.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _round_weights(traced: fx.GraphModule, node: fx.Node, bits: int) -> None:
    if node.target in _WITH_WEIGHT:
        index, axis = 1, 0
    elif node.target in _PRODUCTS and isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr":
        index, axis = 1, node.args[1].meta["val"].ndim - 1
    else:
        return
    name = f"{node.name}_rounding"
    traced.add_submodule(name, WeightRounding(bits, axis))
    with traced.graph.inserting_before(node):
        node.update_arg(index, traced.graph.call_module(name, (node.args[index],)))


def _insert(traced: fx.GraphModule, node: fx.Node, module: nn.Module, name: str) -> None:
    traced.add_submodule(name, module)
    with traced.graph.inserting_after(node):
        inserted = traced.graph.call_module(name, (node,))
    node.replace_all_uses_with(inserted, delete_user_cb=lambda user: user is not inserted)
