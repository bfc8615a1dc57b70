"""Engines that run an ONNX file on the CPU: ONNX Runtime, and OpenVINO, which also computes in BF16.

OpenVINO also reads its own format, in which operations may be marked to keep their precision.

Imported by the embedded backend inside Triton's Python stub, so it needs no more than numpy and the engine itself.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from deepfake_preprocess.errors import ExportError
from deepfake_preprocess.support.extras import require_extra
from deepfake_preprocess.support.sessions import open_session

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from openvino import CompiledModel, Model

ONNX_RUNTIME: Final = "onnxruntime"
OPENVINO: Final = "openvino"
ENGINES: Final = (ONNX_RUNTIME, OPENVINO)
"""By the name of the package that is imported."""

KEEPS_PRECISION: Final = "DisablePrecisionConversion"
"""OpenVINO's mark of an operation that is not to be computed in 16 bits."""

CROPS_PER_THREAD = 2
"""Crops of a batch that are computed at once, for each thread. The activations of more do not fit into the cache:
with EfficientNet-B0 at 224 px, whole batches of 8 took 1.14 times as long per crop as parts of this size."""

INT8_GROUP: Final = 64
"""Channels of a row of activations that share a scale where OpenVINO rounds them. Of CLIP ViT-B/16, groups of 64 made
half of the logit's error of groups of 128, in 1.1 times their time."""

Network: TypeAlias = "Callable[[npt.NDArray[np.uint8]], list[npt.NDArray[Any]]]"
"""Takes uint8 ``[N, H, W, 3]`` crops and returns the outputs that were asked for; one call at a time."""

_ONE_CORE = threading.Lock()
_PRECISION_HINTS = {"fp32": "f32", "int8": "f32", "bf16": "bf16"}
"""INT8 is in the graph; the hint is for what it leaves in floating point."""


def is_installed(engine: str) -> bool:
    """Return whether an engine of `ENGINES` can be imported here."""
    return importlib.util.find_spec(engine) is not None


def open_network(
    path: Path,
    outputs: Sequence[str],
    *,
    engine: str = ONNX_RUNTIME,
    precision: str = "fp32",
    threads: int | None = None,
    spinning: bool = False,
    sizes: Collection[int] = (),
) -> Network:
    """Load an ONNX file with one input into an engine.

    Args:
        path: the file; an ``.xml`` of OpenVINO with its ``.bin`` beside it has marked operations, or it is refused.
        outputs: names of the outputs, in the order in which a call returns them.
        engine: one of `ENGINES`.
        precision: ``bf16`` computes an FP32 file in BF16, which OpenVINO can; otherwise the file decides.
        threads: of a call; all cores when None.
        spinning: whether ONNX Runtime's waiting threads may spin, see `open_session`.
        sizes: batch sizes, 1 among them, for which OpenVINO compiles a network each, and computes other batches in
            parts of these; it compiles one that takes any size where there are none. EfficientNet-B0 at 160 px took
            0.92 of that one's time.

    Raises:
        ExportError: the engine cannot load the file, or cannot compute in this precision on this CPU.
        MissingExtraError: the engine is not installed.
    """
    if engine == OPENVINO:
        return _open_openvino(path, outputs, precision=precision, threads=threads, sizes=sizes)
    session = open_session(path, threads=threads, spinning=spinning)
    (face_input,) = session.get_inputs()
    name, names = face_input.name, list(outputs)
    return lambda faces: list(session.run(names, {name: faces}))


def _open_openvino(
    path: Path, outputs: Sequence[str], *, precision: str, threads: int | None, sizes: Collection[int]
) -> Network:
    """Compile a file for each size, or one for any, and return the one call that chooses among them."""
    from numpy import concatenate

    core = _core()
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in capabilities:
        raise ExportError("this CPU has no BF16 instructions, without which BF16 is slower than FP32")
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _PRECISION_HINTS.get(precision, "f32"),
        "NUM_STREAMS": "1",
        # Every process would take the same cores: they do not know of each other.
        "ENABLE_CPU_PINNING": False,
    }
    if precision == "int8":
        # Of products whose weights alone are in 8 bits in the file.
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = INT8_GROUP
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        model = core.read_model(path)
        # The largest first, of which a batch takes as many as fit. Each holds the weights once more.
        wanted: list[int | None] = [*sorted(set(sizes), reverse=True)] or [None]
        compiled = {size: _compiled(core, model, size, options) for size in wanted}
    # It raises what its C++ code raises.
    except Exception as exc:
        raise ExportError(f"OpenVINO cannot load {path.name}: {' '.join(str(exc).split())[:300]}") from exc
    if path.suffix == ".xml" and not any(map(_keeps_precision, model.get_ops())):
        raise ExportError(f"this OpenVINO does not know which operations of {path.name} are to stay in FP32")
    requests = {size: item.create_infer_request() for size, item in compiled.items()}
    names = list(outputs)

    def run(faces: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        parts, start = [], 0
        while start < len(faces):
            size = next(item for item in requests if item is None or item <= len(faces) - start)
            rows = faces[start:] if size is None else faces[start : start + size]
            found = requests[size].infer([rows], share_inputs=True)
            parts.append([found[name] for name in names])
            start += len(rows)
        return parts[0] if len(parts) == 1 else [concatenate(values) for values in zip(*parts, strict=True)]

    return run


def _core() -> Any:
    """Return the one core of this process.

    OpenVINO's CPU plugin (2026.4) gives the thread that loads it a stack for signals, and gives back the one before
    when it goes. Of two that went in the order in which they came, the second left that of the first, which was freed
    by then: the next signal with a handler in Python ended the process without a word.
    """
    with _ONE_CORE:  # threads that open networks at the same time get the same one
        return _made_core()


@functools.cache
def _made_core() -> Any:
    return require_extra(OPENVINO, extra=OPENVINO).Core()


def _keeps_precision(operation: Any) -> bool:
    return any(str(key).startswith(KEEPS_PRECISION) for key in operation.get_rt_info())


def _compiled(core: Any, model: Model, size: int | None, options: dict[str, Any]) -> CompiledModel:
    """Compile a network for one batch size; for any where it is None."""
    if size is not None:
        model = model.clone()
        (face_input,) = model.inputs
        _, *crop_shape = face_input.partial_shape
        model.reshape([size, *crop_shape])
    return core.compile_model(model, "CPU", options)
