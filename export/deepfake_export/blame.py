"""Where in a network's own code an error arose."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch


def blamed_line(exc: BaseException) -> str:
    """Return where in the network's code an error arose, as ``, in net.py, line 3: ...``; empty where nowhere."""
    passed_by = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
    for frame in reversed(traceback.extract_tb(exc.__traceback__)):
        if not frame.filename.startswith(passed_by) or "published" in Path(frame.filename).parts:
            return f", in {Path(frame.filename).name}, line {frame.lineno}: {frame.line}"
    return ""
