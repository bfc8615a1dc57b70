"""Builds a TensorRT engine from one of our ONNX files, and runs one.

One code path for TensorRT 10.12 to 11 on a GPU and for TensorRT-RTX's builder on a CPU. Networks are strongly
typed: precision is what the graph says, and there are no precision flags and no calibrators (TensorRT 11 removed
them). This module never touches a model repository.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError

from deepfake_export.graph.onnx_nodes import find_node, origin_of, precision_of
from deepfake_export.tensorrt.gpu import GpuMemory, cuda_version, find_gpu
from deepfake_export.tensorrt.library import (
    RTX_CUDA_VERSION,
    Builder,
    IBuilderConfig,
    ICudaEngine,
    IExecutionContext,
    INetworkDefinition,
    OnnxParser,
    TensorRT,
    TensorRTLibrary,
    load_tensorrt,
    target_gpu,
)
from deepfake_export.tensorrt.options import EngineOptions
from deepfake_preprocess.contract.manifest import EngineInfo
from deepfake_preprocess.contract.spec import INPUT_NAME, LOGIT_NAME, PROBABILITY_NAME
from deepfake_preprocess.errors import EngineError, OptionError
from deepfake_preprocess.support.files import write_whole

TYPICAL_BATCH_SIZE = 8
"""The batch that kernels are picked for. Single crops and full batches are the ends of what a video brings; its
faces arrive a handful at a time."""

CHECK_COMPUTE_CAPABILITY = "8.9"
"""What TensorRT-RTX builds for where the GPU is not known: Ada (L4, L40S), the usual inference card."""

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]


def build_engine(
    onnx_path: Path,
    plan_path: Path | None,
    *,
    max_batch_size: int,
    options: EngineOptions = EngineOptions(),
    library: TensorRTLibrary | None = None,
    compute_capability: str = CHECK_COMPUTE_CAPABILITY,
) -> EngineInfo:
    """Parse an ONNX file and build an engine for batches of 1 to `max_batch_size`.

    It is written to `plan_path` in one step; None builds it as a check only. Without a `library`, the full TensorRT
    builds, which needs a GPU and builds for that one; TensorRT-RTX builds for `compute_capability`.

    Raises:
        OptionError: a batch size is out of range, or the file cannot be read.
        EngineError: no GPU where one is needed, or TensorRT cannot parse or build the graph; names the node and
            the layer that it came from.
        MissingExtraError: TensorRT is not installed.
    """
    typical = options.typical_batch_size
    typical = min(TYPICAL_BATCH_SIZE, max_batch_size) if typical is None else typical
    if not 1 <= typical <= max_batch_size:
        raise OptionError(
            f"the typical batch is {typical} and the largest {max_batch_size}; allowed: 1 <= typical <= largest"
        )
    library = library or load_tensorrt()
    gpu = find_gpu()
    if library.is_rtx:
        # It times no kernels, and warns when it is handed a cache; and it has no lean runtime to put into the plan.
        options = replace(options, timing_cache=None, version_compatible=False)
    elif gpu is None:
        raise EngineError("no NVIDIA GPU was found, and TensorRT builds only on the kind of GPU that runs the plan")
    else:
        compute_capability = gpu.compute_capability

    started = time.perf_counter()
    trt: TensorRT = library.module
    builder = trt.Builder(library.logger)
    # Version 11 knows nothing else and ignores the flag; version 10 needs it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    model = _parse(network, library, onnx_path)
    config: IBuilderConfig = _configured(builder, library, options, compute_capability)
    profile = builder.create_optimization_profile()
    crop = _crop_shape(network, onnx_path)
    profile.set_shape(INPUT_NAME, (1, *crop), (typical, *crop), (max_batch_size, *crop))
    config.add_optimization_profile(profile)
    library.errors.clear()  # what it said of an old timing cache is not a reason for anything that follows
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(_build_message(library, onnx_path, model))
    if options.timing_cache is not None:
        _save_timing_cache(config, options.timing_cache)
    if plan_path is not None:
        _write(plan_path, memoryview(plan))
    return EngineInfo(
        builder=library.name,
        tensorrt_version=library.version,
        compute_capability=compute_capability,
        cuda_version=RTX_CUDA_VERSION if library.is_rtx else cuda_version(),
        precision=precision_of(model),
        min_batch_size=1,
        typical_batch_size=typical,
        max_batch_size=max_batch_size,
        num_layers=int(network.num_layers),
        size_bytes=int(plan.nbytes),
        build_seconds=round(time.perf_counter() - started, 3),
        version_compatible=options.version_compatible,
        plan=plan_path.name if plan_path is not None else "",
    )


class BoundPlan:
    """A plan with one batch of crops on the GPU: run it as often as wanted; made by `LoadedPlan.bind`."""

    def __init__(self, engine: ICudaEngine, context: IExecutionContext, memory: GpuMemory, crops: UInt8Array) -> None:
        crops = np.ascontiguousarray(crops)
        outputs = {name: np.empty((len(crops), 1), np.float32) for name in (PROBABILITY_NAME, LOGIT_NAME)}
        for name in (INPUT_NAME, *outputs):
            if math.prod(tuple(engine.get_tensor_shape(name))[1:]) < 1:
                raise EngineError(f"the plan's tensor {name!r} does not follow the wire contract; export it again")
        source = memory.allocate(crops.nbytes)
        memory.upload(source, crops.ctypes.data, crops.nbytes)
        if not context.set_input_shape(INPUT_NAME, crops.shape):
            raise EngineError(f"the plan does not take batches of {len(crops)} crops; build it with a larger one")
        context.set_tensor_address(INPUT_NAME, source)
        self._outputs = {name: (array, memory.allocate(array.nbytes)) for name, array in outputs.items()}
        for name, (_, address) in self._outputs.items():
            context.set_tensor_address(name, address)
        self._context, self._memory = context, memory

    def run(self) -> None:
        """Run the plan once, and wait for the GPU; `EngineError` where it does not run."""
        context: IExecutionContext = self._context
        if not context.execute_async_v3(self._memory.stream):
            raise EngineError("TensorRT could not run the plan; see whether another process fills the GPU's memory")
        self._memory.synchronize()

    def outputs(self) -> tuple[FloatArray, FloatArray]:
        """Return probability and logit of the last run, each float32 ``[N, 1]``."""
        for array, address in self._outputs.values():
            self._memory.download(array.ctypes.data, address, array.nbytes)
        return self._outputs[PROBABILITY_NAME][0], self._outputs[LOGIT_NAME][0]


class LoadedPlan:
    """A plan on the GPU; without a `library`, one that the full TensorRT built.

    Raises:
        EngineError: no GPU, or TensorRT cannot load the plan.
        MissingExtraError: TensorRT is not installed.
    """

    def __init__(self, plan_path: Path, *, library: TensorRTLibrary | None = None) -> None:
        library = library or load_tensorrt()
        if find_gpu() is None:
            raise EngineError("no NVIDIA GPU was found, and a TensorRT plan runs only on one")
        trt: TensorRT = library.module
        library.errors.clear()
        runtime = trt.Runtime(library.logger)
        engine = runtime.deserialize_cuda_engine(plan_path.read_bytes())
        if engine is None:
            raise EngineError(f"{_title(library)} cannot load {plan_path} ({_reason(library)}); build it again")
        context = engine.create_execution_context()
        # In this order: the engine must not outlive its runtime, nor the context its engine.
        self._runtime, self._engine, self._context = runtime, engine, context

    @contextlib.contextmanager
    def bind(self, crops: UInt8Array) -> Iterator[BoundPlan]:
        """Put a batch (uint8 ``[N, H, W, 3]``) on the GPU for as long as the context lasts.

        Raises `EngineError` where the plan does not take that batch, or the GPU has no room for it.
        """
        with contextlib.closing(GpuMemory()) as memory:
            yield BoundPlan(self._engine, self._context, memory, crops)

    def score(self, crops: UInt8Array) -> tuple[FloatArray, FloatArray]:
        """Return probability and logit of a batch, each float32 ``[N, 1]``; fails as `bind` and `run` do."""
        with self.bind(crops) as bound:
            bound.run()
            return bound.outputs()


def _parse(network: INetworkDefinition, library: TensorRTLibrary, onnx_path: Path) -> onnx.ModelProto:
    """Read an ONNX file into TensorRT's network, and return it."""
    try:
        model_bytes = onnx_path.read_bytes()
        model = onnx.load_from_string(model_bytes)
    except OSError as exc:
        raise OptionError(f"{onnx_path} cannot be read ({exc.strerror}); `deepfake export` writes the model") from exc
    except DecodeError as exc:
        raise EngineError(f"{onnx_path} is not an ONNX file ({_one_line(str(exc))}); export the model again") from exc
    library.errors.clear()
    trt: TensorRT = library.module
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse(model_bytes):
        raise EngineError(_parser_message(parser, library, onnx_path, model))
    return model


def _configured(
    builder: Builder, library: TensorRTLibrary, options: EngineOptions, compute_capability: str
) -> IBuilderConfig:
    trt: TensorRT = library.module
    config = builder.create_builder_config()
    # TF32 keeps ten bits of each factor, and an FP32 plan that differs from the checkpoint is not an FP32 plan.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if library.is_rtx:
        target_gpu(trt, config, compute_capability)
    if options.timing_cache is not None:
        _load_timing_cache(config, options.timing_cache)
    return config


def _crop_shape(network: INetworkDefinition, onnx_path: Path) -> tuple[int, ...]:
    faces = network.get_input(0)
    shape = tuple(faces.shape)
    if faces.name != INPUT_NAME or len(shape) != 4 or shape[0] != -1:
        raise EngineError(
            f"{onnx_path}: the input is {faces.name!r} of shape {list(shape)}, and the wire contract says "
            f"{INPUT_NAME!r} with a dynamic batch; export the model with `deepfake export`"
        )
    return shape[1:]


def _parser_message(parser: OnnxParser, library: TensorRTLibrary, onnx_path: Path, model: Any) -> str:
    what = f"{_title(library)} cannot parse {onnx_path.name}"
    if not parser.num_errors:
        return f"{what} ({_reason(library)}); export the model again"
    # One cause is often reported several times, and first where it was found.
    error = parser.get_error(0)
    found = find_node(model, index=error.node(), name=error.node_name(), operator=error.node_operator())
    known, operator, where = (found.name, found.op_type, origin_of(model, found)) if found else ("", "unknown", "")
    name = error.node_name() or known or f"number {error.node()}"
    operator = error.node_operator() or operator
    reason = _one_line(error.desc())
    if len(reason.split()) < 2:  # the text of a failed assertion, which is "false" for an operator it does not have
        reason = "the parser does not have this operator"
    advice = "replace that operation in the network's forward(), or serve the ONNX file"
    if operator in ("QuantizeLinear", "DequantizeLinear"):
        advice = (
            "quantize with signed symmetric activations and weights (QInt8, zero point 0) and leave biases in float, "
            "as an export with int8_target tensorrt does, or serve the ONNX file"
        )
    return f"{what}: node {name!r} (ONNX operator {operator}){where} is refused ({reason}); {advice}"


def _build_message(library: TensorRTLibrary, onnx_path: Path, model: Any) -> str:
    reason = _reason(library)
    # The builder's messages name nodes as the graph does; the longest name that occurs is the most exact one.
    nodes = [node for node in model.graph.node if node.name and node.name in reason]
    where = ""
    if nodes:
        node = max(nodes, key=lambda item: len(item.name))
        where = f": node {node.name!r} (ONNX operator {node.op_type}){origin_of(model, node)} is refused"
    return f"{_title(library)} cannot build {onnx_path.name}{where} ({reason}); serve the ONNX file instead"


def _title(library: TensorRTLibrary) -> str:
    return f"{'TensorRT-RTX' if library.is_rtx else 'TensorRT'} {library.version}"


def _reason(library: TensorRTLibrary) -> str:
    return _one_line(library.errors[0]) if library.errors else "it gave no reason"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300].rstrip(" .;")


def _load_timing_cache(config: IBuilderConfig, path: Path) -> None:
    # A cache of another TensorRT or GPU is refused; then a new one is begun, because a build must not fail for it.
    for content in (path.read_bytes() if path.is_file() else b"", b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def _save_timing_cache(config: IBuilderConfig, path: Path) -> None:
    cache = config.get_timing_cache()
    if cache is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, memoryview(cache.serialize()))


def _write(path: Path, content: memoryview) -> None:
    try:
        write_whole(path, content)
    except OSError as exc:
        raise EngineError(f"{path} cannot be written ({exc.strerror}); free space or name another place") from exc
