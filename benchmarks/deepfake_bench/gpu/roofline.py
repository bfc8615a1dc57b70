"""The roofline of a network: how fast a device could run it at most, by its arithmetic and its memory.

Each operation of the network takes at least as long as its floating-point operations at the device's best matrix
product, and at least as long as its bytes at the device's best copy; operations run one after another, so the
network takes at least the sum of the larger of the two (Williams et al., 2009, taken per operation).

Counted are convolutions and matrix products, two floating-point operations per multiply-add as
`torch.utils.flop_counter` counts them, and poolings; their bytes are the weights and what goes in and out, at the
width of the precision. Batch norms, activation functions, gates and additions count nothing: engines fold or fuse
them. So this is a bound that no engine quite reaches; and where all activations of a small batch stay in a cache,
the device's memory is not a bound.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from deepfake_bench.machine.stopwatch import measure
from deepfake_preprocess.errors import EngineError

BYTES_PER_VALUE = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2}
"""TF32 is a precision of multiplying; in memory its numbers are FP32."""

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}

POOLINGS = ("mean", "_adaptive_avg_pool2d", "avg_pool2d", "max_pool2d_with_indices")
MATRIX_SIZE = {"cuda": 8192, "cpu": 256}
"""Rows and columns: large enough on a GPU that memory does not limit the product; small on a CPU, where PyTorch
multiplies half precision one number at a time."""
COPY_BYTES = {"cuda": 2**28, "cpu": 2**27}
"""Larger than any cache."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What one operation does for one batch; `values` are numbers read and written, the weights with them."""

    flops: int
    values: int


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this device was seen to do at best: at matrix products, by the precisions it has, and at a copy.

    A copy within the device's memory counts what is read and what is written.
    """

    flops_per_s: dict[str, float]
    copy_bytes_per_s: float


def count_operations(network: nn.Module, batch_size: int, size_wh: tuple[int, int]) -> list[Operation]:
    """Count what a network, which takes float ``[N, 3, H, W]``, does for one batch, without computing it."""
    width, height = size_wh
    with torch.no_grad(), _Counter() as counter:
        copy.deepcopy(network).to("meta").eval()(torch.empty(batch_size, 3, height, width, device="meta"))
        operations: list[Operation] = counter.operations
    return operations


def bound_s(operations: list[Operation], precision: str, ceilings: Ceilings) -> float | None:
    """Return the least seconds that the operations can take; None where the ceiling was not measured."""
    peak = ceilings.flops_per_s.get(precision)
    if peak is None:
        return None
    width = BYTES_PER_VALUE[precision]
    return sum(max(item.flops / peak, item.values * width / ceilings.copy_bytes_per_s) for item in operations)


def measure_ceilings(device: str, *, seconds: float) -> Ceilings:
    """Measure matrix products and a copy on ``cuda`` or ``cpu``, each for `seconds`; see `require_torch_device`."""
    require_torch_device(device)

    def took_s(work: Callable[[], object]) -> float:
        def run() -> None:
            work()
            synchronize(device)

        return measure(run, seconds=seconds).median_ms / 1_000

    size, flops_per_s = MATRIX_SIZE[device], {}
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for precision in BYTES_PER_VALUE if device == "cuda" else ("fp32", "fp16", "bf16"):
            torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
            dtype = HALVES.get(precision, torch.float32)
            left, right = (torch.randn(size, size).to(device, dtype) for _ in range(2))
            multiply = partial(torch.matmul, left, right, out=torch.empty_like(left))
            flops_per_s[precision] = 2 * size**3 / took_s(multiply)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    source, target = (torch.zeros(COPY_BYTES[device], dtype=torch.uint8, device=device) for _ in range(2))
    return Ceilings(flops_per_s, 2 * COPY_BYTES[device] / took_s(lambda: target.copy_(source)))


def require_torch_device(device: str) -> None:
    """Raise an `EngineError` that says why PyTorch cannot compute on the device, where it cannot."""
    if device == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda
        why = "it is built without CUDA" if built is None else f"it is built for CUDA {built}; is the driver older?"
        raise EngineError(f"PyTorch {torch.__version__} sees no GPU ({why})")


def synchronize(device: str) -> None:
    """Wait for everything that PyTorch has started on the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def release(device: str) -> None:
    """Give back the device's memory that PyTorch keeps for later; other engines need it."""
    if device == "cuda":
        torch.cuda.empty_cache()


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation below autograd, and counts those that the roofline is made of."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = func(*args, **(kwargs or {}))
        flops = counter.get_total_flops()
        if flops or func.overloadpacket.__name__ in POOLINGS:
            tensors = [item for item in (*args, result) if isinstance(item, torch.Tensor)]
            self.operations.append(Operation(flops, sum(item.numel() for item in tensors)))
        return result
