"""FP16: the network in half precision inside FP32 inputs and outputs, exported from PyTorch.

A converter that rewrites the finished graph broke on the Cast of the input, so the network is halved before the
export. Half precision ends at 65504: modules whose inputs or outputs come near that on real crops stay in FP32, and
the casts around them are part of the graph. This module never judges accuracy; that is the gate's.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepfake_export.graph.onnx_export import export_onnx
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.proof.running import UInt8Array, batches_of
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import ExportError
from deepfake_preprocess.support.json_data import JsonData

FLOAT16_MAX = 65504.0
HEADROOM = 2.0
"""A module counts as overflowing from 65504 / 2 on: other crops than those measured have larger activations."""
RANGE_CROPS = 32
"""Crops that the ranges are measured on; the check of the artifact itself runs on all."""


@dataclass(frozen=True, slots=True)
class ActivationRange(JsonData):
    """Largest absolute value that a module received or gave.

    Attributes:
        module: its name inside the network.
        max_abs: over all crops; may be infinite.
    """

    module: str
    kind: str
    max_abs: float

    @property
    def overflows(self) -> bool:
        """Whether half precision cannot hold it with the headroom (NaN counts)."""
        return not self.max_abs * HEADROOM <= FLOAT16_MAX


@dataclass(frozen=True, slots=True)
class HalfExport(JsonData):
    """What became of the network.

    Attributes:
        kept_fp32: modules that stayed in FP32, with the range that made them.
        largest: the module with the largest activations; None where nothing was measured.
        float16_max: where half precision ends.
    """

    kept_fp32: tuple[ActivationRange, ...]
    largest: ActivationRange | None
    float16_max: float = FLOAT16_MAX


class HalfDetector(ServedDetector):
    """A `ServedDetector` whose network computes in half precision; the same inputs and outputs."""

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        """Return `fake_probability` and `logit`, each FP32 ``[N, 1]``, of uint8 ``[N, H, W, 3]`` RGB crops."""
        # Normalization and the head's arithmetic stay in FP32: they cost nothing, and a difference of two logits
        # in half precision loses what distinguishes them.
        outputs = self.network(self.normalize(faces).half())
        logit = self.logit_of(outputs.float())
        return torch.sigmoid(logit), logit


def activation_ranges(detector: ServedDetector, crops: UInt8Array) -> list[ActivationRange]:
    """Measure, in FP32, the largest absolute input and output of every leaf module that runs, in order of first call.

    Of the crops, the first `RANGE_CROPS` evenly spaced ones are used.
    """
    largest: dict[str, float] = {}
    hooks = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            values = [item for item in (*inputs, *_flat(output)) if isinstance(item, Tensor)]
            for value in values:
                if value.is_floating_point() and value.numel():
                    found = float(value.abs().max())
                    # `max` would drop a NaN that comes second.
                    known = largest.get(name, 0.0)
                    largest[name] = found if not found <= known else known

        return hook

    leaves = {name: module for name, module in detector.network.named_modules() if not any(module.children())}
    try:
        for name, module in leaves.items():
            hooks.append(module.register_forward_hook(watch(name)))
        step = max(1, len(crops) // RANGE_CROPS)
        with torch.inference_mode():
            for batch in batches_of(crops[::step][:RANGE_CROPS], 8):
                detector(torch.from_numpy(batch))
    finally:
        for hook in hooks:
            hook.remove()
    return [ActivationRange(name, type(leaves[name]).__name__, value) for name, value in largest.items()]


def half_detector(detector: ServedDetector, spec: ModelSpec, keep_fp32: Collection[str]) -> HalfDetector:
    """Return a copy of `detector` in half precision but for the leaf modules whose names are in `keep_fp32`."""
    network = copy.deepcopy(detector.network).half()
    if keep_fp32:
        for name, module in network.named_modules():
            if name in keep_fp32:
                # From the original, because what `half` has rounded stays rounded.
                module.float().load_state_dict(detector.network.get_submodule(name).state_dict())
                module.register_forward_pre_hook(_cast_inputs(torch.float32))
            elif not any(module.children()) and any(True for _ in module.parameters(recurse=False)):
                # What comes out of a kept module, or of an addition with it, is FP32.
                module.register_forward_pre_hook(_cast_inputs(torch.float16))
    return HalfDetector(network, spec).eval()


def export_fp16(
    detector: ServedDetector, path: Path, spec: ModelSpec, crops: UInt8Array, *, verbose: bool = False
) -> HalfExport:
    """Write the half-precision network to `path`, under the wire contract of FP32; `crops` show what overflows.

    Raises:
        ExportError: a weight is too large for half precision, or the network cannot be exported in it.
    """
    ranges = activation_ranges(detector, crops)
    kept = tuple(item for item in ranges if item.overflows)
    names = {item.module for item in kept}
    too_large = [
        name
        for name, value in detector.network.named_parameters()
        if float(value.detach().abs().max()) > FLOAT16_MAX and name.rpartition(".")[0] not in names
    ]
    if too_large:
        raise ExportError(f"{too_large[0]} holds weights beyond {FLOAT16_MAX:.0f}, the largest FP16 number")
    # A kept module hands on FP32: an output that overflows arrives intact. The module that takes it saw the
    # same range and is kept too; any other one casts down what it gets.
    half = half_detector(detector, spec, names)
    export_onnx(half, path, spec, verbose=verbose)
    largest = max(ranges, key=lambda item: item.max_abs, default=None)
    return HalfExport(kept, largest)


def _flat(output: Any) -> tuple[Any, ...]:
    return tuple(output) if isinstance(output, tuple | list) else (output,)


def _cast_inputs(dtype: torch.dtype) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            item.to(dtype) if isinstance(item, Tensor) and item.is_floating_point() else item for item in inputs
        )

    return hook
