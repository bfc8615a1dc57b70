"""What can run one network on a GPU: ONNX Runtime, PyTorch eager and compiled, TensorRT; and on a CPU what has one.

Each engine holds one batch on the device and runs it again and again: the crops are there already and the scores
stay there: what is timed is the network. An engine that cannot run here says why with an error.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from torch import nn

from deepfake_bench.gpu.roofline import Operation, count_operations, release, require_torch_device, synchronize
from deepfake_export.graph.onnx_export import export_onnx
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.precision.fp16 import activation_ranges, export_fp16, half_detector
from deepfake_export.proof.running import UInt8Array
from deepfake_export.tensorrt.engine import BoundPlan, LoadedPlan, build_engine
from deepfake_export.tensorrt.gpu import find_gpu
from deepfake_export.tensorrt.library import TensorRTLibrary, load_tensorrt, load_tensorrt_rtx
from deepfake_export.tensorrt.options import EngineOptions
from deepfake_preprocess.contract.spec import INPUT_NAME, LOGIT_NAME, PROBABILITY_NAME, ModelSpec
from deepfake_preprocess.contract.triton_config import PRODUCTION_MAX_BATCH_SIZE
from deepfake_preprocess.errors import EngineError
from deepfake_preprocess.support.sessions import open_session

FloatArray = npt.NDArray[np.float32]

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
COMPILE_MODE = "reduce-overhead"
"""CUDA graphs: a small batch of an EfficientNet is over before the next of its hundreds of kernels is launched, and
replaying a graph removes that. ``max-autotune`` would mostly tune matrix products, for minutes per batch size."""


@dataclass(slots=True)
class Subject:
    """The network that all engines run.

    Attributes:
        detector: in float32, on the CPU, in eval mode; what answers are compared with.
        crops: uint8 ``[N, H, W, 3]`` RGB.
        reference: float32 ``[N]``, what `detector` says of them.
        folder: where files of engines may be written.
        max_batch_size: the largest batch that is measured.
        kept_fp32: modules that stay in FP32 where the rest is halved; None before they were looked for.
    """

    spec: ModelSpec
    detector: ServedDetector
    crops: UInt8Array
    reference: FloatArray
    folder: Path
    max_batch_size: int
    kept_fp32: tuple[str, ...] | None = None
    _onnx: dict[str, Path] = field(default_factory=dict)
    _operations: dict[int, list[Operation]] = field(default_factory=dict)

    def operations(self, batch_size: int) -> list[Operation]:
        """Return what the network does for one batch."""
        if batch_size not in self._operations:
            network = self.detector.network
            self._operations[batch_size] = count_operations(network, batch_size, self.spec.input_size_wh)
        return self._operations[batch_size]

    def onnx(self, precision: str) -> Path:
        """Return the ONNX file of a precision (``fp32`` or ``fp16``), as `deepfake export` writes it."""
        if precision not in self._onnx:
            path = self.folder / f"{precision}.onnx"
            if precision == "fp16":
                export_fp16(self.detector, path, self.spec, self.crops)
            else:
                export_onnx(self.detector, path, self.spec)
            self._onnx[precision] = path
        return self._onnx[precision]

    def too_large_for_half(self) -> tuple[str, ...]:
        """Return the modules whose numbers FP16 cannot hold."""
        if self.kept_fp32 is None:
            ranges = activation_ranges(self.detector, self.crops)
            self.kept_fp32 = tuple(item.module for item in ranges if item.overflows)
        return self.kept_fp32


class OnnxRuntimeEngine:
    """ONNX Runtime with its provider for the device, inputs and outputs bound there."""

    def __init__(self, subject: Subject, precision: str, device: str) -> None:
        provider = PROVIDERS[device]
        if precision == "tf32" and device == "cpu":
            raise EngineError("TF32 is arithmetic of NVIDIA GPUs")
        if provider not in ort.get_available_providers():
            raise EngineError(
                f"this ONNX Runtime has no {provider}; run: pip uninstall -y onnxruntime onnxruntime-gpu, then: "
                "pip install onnxruntime-gpu (both packages write the same files)"
            )
        options: dict[str, str] = {}
        if device == "cuda":
            if hasattr(ort, "preload_dlls"):  # from ONNX Runtime 1.21 on: the CUDA libraries that came with PyTorch
                ort.preload_dlls()
            options = {"device_id": "0", "use_tf32": "1" if precision == "tf32" else "0"}
        path = subject.onnx("fp16" if precision == "fp16" else "fp32")
        self._session = open_session(path, provider=provider, provider_options=options)
        if self._session.get_providers()[0] != provider:
            raise EngineError(
                f"ONNX Runtime {ort.__version__} could not start {provider}; its message names the library it misses"
            )
        self._device = device
        self._binding: Any = None
        self._probability: Any = None

    def bind(self, crops: UInt8Array) -> None:
        """Put a batch on the device, in place of the one before."""
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(INPUT_NAME, ort.OrtValue.ortvalue_from_numpy(crops, self._device, 0))
        outputs = {
            name: ort.OrtValue.ortvalue_from_shape_and_type([len(crops), 1], np.float32, self._device, 0)
            for name in (PROBABILITY_NAME, LOGIT_NAME)
        }
        for name, value in outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        self._probability = outputs[PROBABILITY_NAME]

    def run(self) -> None:
        """Run; ONNX Runtime waits for its stream at the end."""
        self._session.run_with_iobinding(self._binding)

    def probabilities(self) -> FloatArray:
        """Return float32 ``[N]`` fake probabilities of the last run."""
        return np.asarray(self._probability.numpy()[:, 0], dtype=np.float32)

    def close(self) -> None:
        """Free session and tensors."""
        del self._binding, self._probability, self._session


class BrainDetector(ServedDetector):
    """A `ServedDetector` whose network computes in BF16, which has FP32's range; the same inputs and outputs."""

    def forward(self, faces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `fake_probability` and `logit`, each FP32 ``[N, 1]``, of uint8 ``[N, H, W, 3]`` RGB crops."""
        logit = self.logit_of(self.network(self.normalize(faces).bfloat16()).float())
        return torch.sigmoid(logit), logit


class PyTorchEngine:
    """PyTorch in FP16 or BF16, channels last: ``eager``, ``compile`` with CUDA graphs, or ``aot`` (AOTInductor)."""

    def __init__(self, subject: Subject, precision: str, device: str, *, how: str) -> None:
        require_torch_device(device)
        detector: ServedDetector
        if precision == "bf16":
            network = copy.deepcopy(subject.detector.network).bfloat16()
            detector = BrainDetector(network, subject.spec).eval()
        else:
            detector = half_detector(subject.detector, subject.spec, subject.too_large_for_half())
        # Tensor cores take channels-last; convolutions follow the layout of their weights.
        self._network: nn.Module = detector.to(device).to(memory_format=torch.channels_last)
        self._called: Callable[..., Any] = self._network
        self._how, self._device = how, device
        self._package = subject.folder / f"aot-{precision}"
        self._faces = self._probability = torch.empty(0)

    def bind(self, crops: UInt8Array) -> None:
        """Put a batch on the device, and compile for its size."""
        self._probability = torch.empty(0)  # may lie in the memory of the graph before
        self._faces = torch.from_numpy(crops).to(self._device)
        if self._how == "compile":
            # One static graph per batch size. Without the reset, PyTorch refuses to compile a ninth.
            torch.compiler.reset()
            self._called = torch.compile(self._network, mode=COMPILE_MODE, fullgraph=True, dynamic=False)
        elif self._how == "aot":
            with torch.no_grad():
                program = torch.export.export(self._network, (self._faces,))
            path = f"{self._package}-{len(crops)}.pt2"
            package = torch._inductor.aoti_compile_and_package(program, package_path=path)
            self._called = torch._inductor.aoti_load_package(package)

    def run(self) -> None:
        """Run, and wait for the device."""
        with torch.no_grad():
            self._probability, _ = self._called(self._faces)
        synchronize(self._device)

    def probabilities(self) -> FloatArray:
        """Return the scores."""
        return np.asarray(self._probability[:, 0].float().cpu().numpy())

    def close(self) -> None:
        """Free network, tensors and graphs, and what PyTorch keeps for later."""
        del self._called, self._network, self._faces, self._probability
        if self._how == "compile":
            torch.compiler.reset()
        release(self._device)


class TensorRTEngine:
    """TensorRT, or TensorRT-RTX, on plans that are built here.

    Batches up to 32 run on the plan that `deepfake build-engines` would serve; larger ones on a plan whose kernels
    are picked for the largest.
    """

    def __init__(
        self, subject: Subject, precision: str, device: str, *, find_library: Callable[[], TensorRTLibrary]
    ) -> None:
        gpu = find_gpu()
        if device == "cpu" or gpu is None:
            raise EngineError("TensorRT runs on a GPU only")
        self._library, self._compute_capability = find_library(), gpu.compute_capability
        self._onnx = subject.onnx(precision)
        self._folder, self._max_batch_size = subject.folder, subject.max_batch_size
        self._plans: dict[int, LoadedPlan] = {}
        self._stack = contextlib.ExitStack()
        self._bound: BoundPlan | None = None

    def bind(self, crops: UInt8Array) -> None:
        """Put a batch on the GPU; builds the plan at the first batch of its range."""
        self.close()
        self._bound = self._stack.enter_context(self._plan(len(crops)).bind(crops))

    def run(self) -> None:
        """Run, and wait for the GPU."""
        assert self._bound is not None
        self._bound.run()

    def probabilities(self) -> FloatArray:
        """Return the scores."""
        assert self._bound is not None
        return np.array(self._bound.outputs()[0][:, 0])

    def close(self) -> None:
        """Free the memory of the batch."""
        self._bound = None
        self._stack.close()

    def _plan(self, batch_size: int) -> LoadedPlan:
        served = batch_size <= PRODUCTION_MAX_BATCH_SIZE
        largest = PRODUCTION_MAX_BATCH_SIZE if served else self._max_batch_size
        if largest not in self._plans:
            path = self._folder / f"{self._library.name}-{self._onnx.stem}-{largest}.plan"
            build_engine(
                self._onnx,
                path,
                max_batch_size=largest,
                options=EngineOptions(typical_batch_size=None if served else largest),
                library=self._library,
                compute_capability=self._compute_capability,
            )
            self._plans[largest] = LoadedPlan(path, library=self._library)
        return self._plans[largest]


Engine: TypeAlias = OnnxRuntimeEngine | PyTorchEngine | TensorRTEngine


@dataclass(frozen=True, slots=True)
class EngineKind:
    """One kind of engine: precision (``fp32``, ``tf32``, ``fp16`` or ``bf16``), and what makes it for a device."""

    precision: str
    make: Callable[[Subject, str, str], Engine]


def _pytorch(how: str) -> dict[str, EngineKind]:
    make = partial(PyTorchEngine, how=how)
    return {f"pytorch-{how}-{precision}": EngineKind(precision, make) for precision in ("fp16", "bf16")}


_tensorrt = partial(TensorRTEngine, find_library=load_tensorrt)
_tensorrt_rtx = partial(TensorRTEngine, find_library=load_tensorrt_rtx)
ENGINES: Mapping[str, EngineKind] = {
    "onnxruntime-fp32": EngineKind("fp32", OnnxRuntimeEngine),
    # What ONNX Runtime's CUDA provider, and so Triton's onnxruntime backend, does with an FP32 file by default.
    "onnxruntime-tf32": EngineKind("tf32", OnnxRuntimeEngine),
    "onnxruntime-fp16": EngineKind("fp16", OnnxRuntimeEngine),
    **_pytorch("eager"),
    "tensorrt-fp32": EngineKind("fp32", _tensorrt),
    "tensorrt-fp16": EngineKind("fp16", _tensorrt),
    "tensorrt-rtx-fp32": EngineKind("fp32", _tensorrt_rtx),
    "tensorrt-rtx-fp16": EngineKind("fp16", _tensorrt_rtx),
    # Last, as they compile each batch size for a minute or so.
    **_pytorch("compile"),
    **_pytorch("aot"),
}
