"""Writes a `ServedDetector` as one self-contained ONNX file that carries its spec."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch

from deepfake_export.blame import blamed_line
from deepfake_export.graph.onnx_nodes import keep_layer, last_operator
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_preprocess.contract.spec import INPUT_NAME, LOGIT_NAME, PROBABILITY_NAME, ModelSpec
from deepfake_preprocess.errors import ExportError

OPSET = 18
"""What PyTorch's exporter writes natively. A lower one goes through a converter that fails on these graphs (seen
with 17), a higher one gains nothing here; ONNX Runtime 1.20 reads up to 21, and TensorRT 10 and 11 read from 9 on."""

MAX_IR_VERSION = 10
"""The newest file format that the ONNX Runtime 1.19 of Triton 24.10 reads."""

SPATIAL_AXES = (2, 3)
"""Height and width of ``[N, C, H, W]``."""

EXAMPLE_BATCH = 2
"""At least 2: the exporter takes a 1 for a constant and bakes it in."""

UNDO = {"Softmax": "torch.log(p)", "Sigmoid": "torch.logit(p)"}
"""What a network may end in by mistake, and how logits are had of its probabilities."""

MAX_WEIGHT_BYTES = 2 * 10**9
"""A protobuf, and so a single ONNX file, ends at 2 GiB; the graph itself wants a little of it."""


def export_onnx(detector: ServedDetector, path: Path, spec: ModelSpec, *, verbose: bool = False) -> None:
    """Write `detector`, weights included, to one file, with a dynamic batch and the spec as metadata.

    `verbose` lets the exporter's own messages through.

    Raises:
        ExportError: the network cannot be exported, bakes in a batch size, or is larger than 2 GB.
    """
    weight_bytes = sum(value.nbytes for value in detector.state_dict().values())
    if weight_bytes > MAX_WEIGHT_BYTES:
        raise ExportError(
            f"the network holds {weight_bytes / 1e9:.1f} GB of weights, and a single ONNX file at most "
            f"{MAX_WEIGHT_BYTES / 1e9:.0f} GB; use a smaller network"
        )
    example = torch.zeros(EXAMPLE_BATCH, spec.input_height_px, spec.input_width_px, 3, dtype=torch.uint8)
    try:
        with contextlib.nullcontext() if verbose else _quiet(), torch.no_grad():
            scripted = any(isinstance(module, torch.jit.ScriptModule) for module in detector.modules())
            # Benchmarks also run where the package that the other exporter needs is not installed.
            scripted = scripted or importlib.util.find_spec("onnxscript") is None
            model = _export_scripted(detector, example) if scripted else _export(detector, example, verbose=verbose)
    # The exporter raises whatever the network's own code and its many passes raise.
    except Exception as exc:
        reason = _last_line(exc)
        raise ExportError(
            f"{spec.architecture} cannot be exported to ONNX ({reason}); set `verbose` to see all of the exporter's "
            "messages"
        ) from exc
    pool_globally(model)
    _clean(model)
    onnx.helper.set_model_props(model, spec.to_parameters())
    _check(model, spec)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _export(detector: ServedDetector, example: torch.Tensor, *, verbose: bool) -> Any:
    program = torch.onnx.export(
        detector,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT_NAME],
        output_names=[PROBABILITY_NAME, LOGIT_NAME],
        # Where the network forbids it, the exporter goes along with a fixed batch; `_check` refuses that.
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        external_data=False,
        verbose=verbose,
    )
    if program is None:
        raise ExportError("the exporter returned nothing")
    return program.model_proto


def _export_scripted(detector: ServedDetector, example: torch.Tensor) -> Any:
    """Export a network by tracing, such as one that came as TorchScript, which `torch.export` cannot take in."""
    stream = io.BytesIO()
    torch.onnx.export(
        torch.jit.trace(detector, (example,)),  # type: ignore[no-untyped-call]
        (example,),
        stream,  # type: ignore[arg-type]  # buffers are taken by this exporter, though not declared
        dynamo=False,
        opset_version=OPSET,
        input_names=[INPUT_NAME],
        output_names=[PROBABILITY_NAME, LOGIT_NAME],
        dynamic_axes={name: {0: "batch"} for name in (INPUT_NAME, PROBABILITY_NAME, LOGIT_NAME)},
    )
    return onnx.load_from_string(stream.getvalue())


def pool_globally(model: Any) -> int:
    """Replace means over height and width, as squeeze-and-excitation blocks have them, by GlobalAveragePool.

    ONNX Runtime keeps GlobalAveragePool in its blocked layout (NCHWc) and leaves it for a ReduceMean, with a copy of
    the activations. The model is changed in place, and must have shapes, as exporters write them.

    Returns:
        How many nodes were replaced.
    """
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


def _clean(model: Any) -> None:
    """Remove the exporter's notes: they hold paths of this machine and change from run to run.

    Which layer a node came from is kept; TensorRT's errors name it.
    """
    graph = model.graph
    for node in graph.node:
        keep_layer(node)
        node.ClearField("doc_string")
    for part in (model, graph, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _check(model: Any, spec: ModelSpec) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ExportError(f"the exported graph is not valid ONNX ({_last_line(exc)})") from exc
    opset = {item.domain: item.version for item in model.opset_import}.get("")
    if opset != OPSET or model.ir_version > MAX_IR_VERSION:
        raise ExportError(
            f"the exporter wrote opset {opset} and file format {model.ir_version}, but servers need opset "
            f"{OPSET} and at most format {MAX_IR_VERSION}; use the PyTorch and onnx versions that CI tests with"
        )
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        raise ExportError(
            f"{spec.architecture} bakes a batch size of {batch.dim_value} into its graph; take fixed sizes out of "
            "its forward()"
        )
    last = last_operator(model, LOGIT_NAME)
    if last is not None and last.op_type in UNDO:
        raise ExportError(
            f"{spec.architecture} ends in {last.op_type}, so it gives probabilities p, and the served graph would "
            f"apply {last.op_type.lower()} once more; let it return what comes before, or {UNDO[last.op_type]}, "
            "which has the same effect"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter prints, warns and logs about itself."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),  # the whole graph, where it cannot be made
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _last_line(exc: BaseException) -> str:
    """Return the innermost cause's first line; the exporter wraps it in pages of advice."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    lines = [" ".join(line.split()) for line in str(exc).splitlines() if line.strip()]
    return (f"{type(exc).__name__}: {lines[0][:200]}" if lines else type(exc).__name__) + blamed_line(exc)
