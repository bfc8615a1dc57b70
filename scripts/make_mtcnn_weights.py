"""Builds the three networks of MTCNN as ONNX files; run by developers, from a checkout with the extra `dev`.

::

    python scripts/make_mtcnn_weights.py            # rewrites {pnet,rnet,onet}.onnx in faces/weights

The weights come from the PyPI package ``mtcnn`` (MIT license, see ``weights/LICENSE.mtcnn``); TensorFlow is not
needed. Because the files are committed, the base install needs neither package, and no pickle is loaded on a user's
machine.

The graphs compute what the networks of Zhang et al. (2016, https://arxiv.org/abs/1604.02878) compute, in a form
that ONNX Runtime's CPU provider runs two to three times faster:

* Normalization ``(x - 127.5) / 128`` is folded into the first convolution.
* ``PRelu`` costs ONNX Runtime more than all convolutions together. With slope ``a`` it is written as
  ``|1 - a|``-scaled ``Relu`` plus ``a`` times the input, both as 1x1 convolutions, which the runtime fuses with
  ``Relu`` and ``Add`` in its blocked (NCHWc) layout.
* Where a max-pool follows, it is moved before the activation, which then touches a quarter of the pixels. That
  is exact for slopes >= 0; a channel with a negative slope also needs the pool of its negated copy, because
  ``max_i prelu(x_i) = max(max_i x_i, |a| max_i -x_i)``. PNet's 10 channels have 6 such slopes: the 16 channels
  that result are exactly two blocks of the AVX2 kernels.
* The two-way softmax is left out of the graph: the score is the difference of the two logits, so a caller compares
  with ``logit(threshold)`` and applies the sigmoid to the few scores it keeps. Score, box and landmark heads are
  one layer.
* The dense layers take their input in ``[C, H, W]`` order (the original is Caffe's ``[W, H, C]``).

Inputs are float32 ``[N, 3, H, W]`` (PNet) or uint8 ``[N, 24, 24, 3]`` and ``[N, 48, 48, 3]`` (RNet, ONet), RGB in
[0, 255]. Outputs are float32 ``[N, 8, H', W']`` (PNet: channels 0 to 3 box offsets, 4 logit, 5 to 7 unused padding),
``[N, 5]`` (RNet) and ``[N, 15]`` (ONet: then five x and five y of the landmarks).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
from numpy.typing import NDArray

WEIGHTS_DIR = Path(__file__).parents[1] / "preprocess/deepfake_preprocess/faces/weights"
NETWORKS = ("pnet", "rnet", "onet")
_OUTPUT_SHAPES = {"pnet": ("n", 8, "cells_high", "cells_wide"), "rnet": ("n", 5), "onet": ("n", 15)}

# Channels per block of ONNX Runtime's NCHWc kernels on AVX2; a convolution whose output is not a multiple of it
# falls back to a slower path.
_BLOCK = 8
# Both are old enough for every onnxruntime >= 1.20.
_OPSET = 17
_IR_VERSION = 8

Array = NDArray[np.float64]


def load_weights(network: str) -> list[Array]:
    """Read one network's parameters from the installed ``mtcnn`` package.

    Args:
        network: one of `NETWORKS`.

    Returns:
        float64 arrays in layer order: per convolution ``[H, W, in, out]``, bias ``[out]`` and, where an activation
        follows, slopes ``[out]``; per dense layer ``[in, out]`` and bias. The heads come last: box, (landmarks,)
        class.
    """
    # The package itself cannot be imported: it imports TensorFlow.
    files = importlib.metadata.files("mtcnn") or []
    path = next(file for file in files if file.match(f"assets/weights/{network}.lz4"))
    return [np.asarray(array, dtype=np.float64).squeeze() for array in joblib.load(path.locate())]


def build(network: str) -> Any:
    """Build one network.

    Args:
        network: one of `NETWORKS`.

    Returns:
        The `onnx.ModelProto`.
    """
    graph = _Graph()
    weights = load_weights(network)
    # Only PNet leaves spatial axes of size 1 in its weights (its 1x1 heads); `squeeze` made them dense.
    heads = weights[-4:] if network != "onet" else weights[-6:]
    layers = weights[: -len(heads)]
    head_kernel = np.concatenate([*heads[:-2:2], heads[-2][:, 1:] - heads[-2][:, :1]], axis=1)
    head_bias = np.concatenate([*heads[1:-2:2], heads[-1][1:] - heads[-1][:1]])
    if network == "onet":  # boxes, landmarks, class -> boxes, class, landmarks
        order = [*range(4), 14, *range(4, 14)]
        head_kernel, head_bias = head_kernel[:, order], head_bias[order]

    if network == "pnet":
        graph.input("image", "FLOAT", ["n", 3, "height", "width"])
        graph.conv_pool_prelu(*_normalized(*layers[:3]), pool=2)
        graph.conv(*layers[3:5])
        graph.prelu(layers[5])
        graph.conv(*layers[6:8])
        graph.prelu_conv1x1(layers[8], head_kernel, head_bias)
    else:
        size = 24 if network == "rnet" else 48
        graph.input("crops", "UINT8", ["n", size, size, 3])
        graph.node("Cast", to=1)
        graph.node("Transpose", perm=[0, 3, 1, 2])
        graph.conv_pool_prelu(*_normalized(*layers[:3]), pool=3)
        graph.conv_pool_prelu(*layers[3:6], pool=3)
        if network == "onet":
            graph.conv_pool_prelu(*layers[6:9], pool=2)
        *_, kernel, bias, slope, dense, dense_bias, dense_slope = layers
        graph.conv(kernel, bias)
        graph.prelu(slope)
        graph.node("Flatten", axis=1)
        side = int(np.sqrt(dense.shape[0] // len(bias)))
        dense = dense.reshape(side, side, len(bias), -1).transpose(2, 1, 0, 3).reshape(dense.shape)
        graph.dense(dense, dense_bias)
        graph.node("PRelu", dense_slope)  # [N, 256] at most: too small to matter
        graph.dense(head_kernel, head_bias)
    return graph.model(network, _OUTPUT_SHAPES[network])


def _normalized(kernel: Array, bias: Array, slope: Array) -> tuple[Array, Array, Array]:
    """Fold ``(x - 127.5) / 128`` into a first convolution."""
    return kernel / 128, bias - kernel.sum(axis=(0, 1, 2)) * (127.5 / 128), slope


def _padded(array: Array, axis: int, size: int) -> Array:
    """Pad with zeros at the end of one axis."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, size - array.shape[axis])
    return np.pad(array, widths)


def _blocks(channels: int) -> int:
    return -(-channels // _BLOCK) * _BLOCK


class _Graph:
    """A chain of layers; each method appends to the value appended last.

    A layer may leave its output with some channels negated or padded (`signs`); the next convolution undoes it.
    """

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []
        self._inputs: list[Any] = []
        self._value = ""
        self._signs: Array | None = None

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Declare the input."""
        element = getattr(onnx.TensorProto, dtype)
        self._inputs.append(onnx.helper.make_tensor_value_info(name, element, shape))
        self._value = name

    def node(self, operator: str, *parameters: Array, inputs: Sequence[str] = (), **attributes: Any) -> str:
        """Append an operator on the last value (or on `inputs`) with float32 parameters."""
        names = list(inputs) or [self._value]
        output = f"{operator.lower()}_{len(self._nodes)}"
        for index, parameter in enumerate(parameters):
            names.append(f"{output}_parameter_{index}")
            tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(parameter, dtype=np.float32), names[-1])
            self._initializers.append(tensor)
        self._nodes.append(onnx.helper.make_node(operator, names, [output], **attributes))
        self._value = output
        return output

    def conv(self, kernel: Array, bias: Array) -> None:
        """Append a convolution; kernel ``[H, W, in, out]``."""
        if self._signs is not None:
            kernel = _padded(kernel, 2, len(self._signs)) * self._signs[:, None]
            self._signs = None
        self.node("Conv", kernel.transpose(3, 2, 0, 1), bias, kernel_shape=kernel.shape[:2])

    def prelu(self, slope: Array) -> None:
        """Append an activation without a pool: ``x -> slope * x + relu((1 - slope) * x)``, for slopes <= 1."""
        if slope.max() > 1:
            raise ValueError(f"slopes must be at most 1 here, got {slope.max()}")
        source = self._value
        group: dict[str, Any] = {"kernel_shape": [1, 1], "group": len(slope)}
        self.node("Conv", (1 - slope)[:, None, None, None], **group)
        rectified = self.node("Relu")
        linear = self.node("Conv", slope[:, None, None, None], inputs=[source], **group)
        self.node("Add", inputs=[linear, rectified])

    def prelu_conv1x1(self, slope: Array, kernel: Array, bias: Array) -> None:
        """Append an activation and a 1x1 convolution ``[in, out]``, padded with unused outputs to whole blocks."""
        source = self._value
        kernel = _padded(kernel, 1, _blocks(kernel.shape[1])).T[:, :, None, None]
        bias = _padded(bias, 0, len(kernel))
        slope = slope[:, None, None]
        self.node("Relu")
        rectified = self.node("Conv", kernel * (1 - slope), bias, kernel_shape=[1, 1])
        linear = self.node("Conv", kernel * slope, inputs=[source], kernel_shape=[1, 1])
        self.node("Add", inputs=[rectified, linear])

    def conv_pool_prelu(self, kernel: Array, bias: Array, slope: Array, *, pool: int) -> None:
        """Append convolution, activation and max-pool (stride 2), computed as convolution, pool, activation.

        With ``p`` the pooled convolution and ``q`` the pooled negated one, the result is, per channel,
        ``a p + relu((1 - a) p)`` for a slope 0 <= a <= 1, ``-(relu((a - 1) p) - a p)`` for a > 1 and
        ``|a| q + relu(p - |a| q)`` for a < 0: a linear map of ``p`` and ``q`` plus the `Relu` of another.
        """
        count = len(slope)
        negative = np.flatnonzero(slope < 0)
        width = _blocks(count + len(negative))
        kernel = np.concatenate([kernel, -kernel[..., negative]], axis=-1)
        bias = np.concatenate([bias, -bias[negative]])
        self.conv(_padded(kernel, 3, width), _padded(bias, 0, width))
        pooled = self.node("MaxPool", kernel_shape=[pool, pool], strides=[2, 2], ceil_mode=1)

        signs = np.where(slope > 1, -1.0, 1.0)
        linear, rectified = np.zeros((2, _blocks(count), width))
        channels = np.arange(count)
        linear[channels, channels] = signs * np.maximum(slope, 0)
        rectified[channels, channels] = np.where(slope < 0, 1, np.abs(1 - slope))
        copies = count + np.arange(len(negative))
        linear[negative, copies] = -slope[negative]
        rectified[negative, copies] = slope[negative]
        self.node("Conv", rectified[:, :, None, None], kernel_shape=[1, 1])
        relu = self.node("Relu")
        line = self.node("Conv", linear[:, :, None, None], inputs=[pooled], kernel_shape=[1, 1])
        self.node("Add", inputs=[line, relu])
        self._signs = _padded(signs, 0, _blocks(count))

    def dense(self, kernel: Array, bias: Array) -> None:
        """Append a dense layer; kernel ``[in, out]``."""
        self.node("Gemm", kernel, bias)

    def model(self, name: str, shape: Sequence[int | str]) -> Any:
        """Close the chain."""
        helper = onnx.helper
        output = helper.make_tensor_value_info(self._value, onnx.TensorProto.FLOAT, shape)
        graph = helper.make_graph(self._nodes, name, self._inputs, [output], self._initializers)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name="deepfake-serving",
        )


def main() -> None:
    """Rewrite the committed weight files."""
    for network in NETWORKS:
        data = build(network).SerializeToString()
        (WEIGHTS_DIR / f"{network}.onnx").write_bytes(data)
        print(f"{network}.onnx: {len(data)} bytes")


if __name__ == "__main__":
    main()
