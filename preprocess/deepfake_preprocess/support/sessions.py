"""ONNX Runtime sessions, set up the same way wherever a graph runs in this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deepfake_preprocess.errors import ExportError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CPU = "CPUExecutionProvider"
_ERRORS_ONLY = 3


def open_session(
    model: Path | bytes,
    *,
    threads: int | None = None,
    spinning: bool = False,
    provider: str = CPU,
    provider_options: Mapping[str, str] | None = None,
) -> InferenceSession:
    """Load an ONNX file, given by its path or content, into ONNX Runtime; an `ExportError` where that fails.

    A call uses that many threads, or all cores. Threads that wait may spin: faster, and takes the cores from other
    threads and programs.
    """
    # Its telemetry starts a thread that ends every forked child of this process by an abort, or never.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # Imported on use: it takes a tenth of a second, which most commands never need.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.inter_op_num_threads = 1  # nodes run one after another
    if threads is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.add_session_config_entry("session.force_spinning_stop", "1")  # when a call ends
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=[(provider, dict(provider_options or {}))])
    # Its exceptions have no common base but Exception.
    except Exception as exc:
        name = "the graph" if isinstance(model, bytes) else model.name
        raise ExportError(f"ONNX Runtime cannot load {name}: {exc}") from exc
