"""Every function of the CUDA driver that our source calls, against NVIDIA's own header: its name and its arguments.

The calls go through ctypes, which checks neither, and CI has no GPU to find out on.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest
from checkout import ROOT

SOURCE = ROOT / "export/deepfake_export/tensorrt/gpu.py"


@pytest.fixture(scope="module")
def header() -> str:
    """``cuda.h``, as Triton's compiler carries it (PyTorch brings that)."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        pytest.skip("no triton package, which carries the header")
    return (Path(spec.origin).parent / "backends/nvidia/include/cuda.h").read_text(encoding="utf-8")


def test_what_we_call_is_in_the_driver_and_takes_what_we_give(header):
    calls = {
        (node.func.attr, len(node.args))
        for node in ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and re.match(r"cu[A-Z]", node.func.attr)
    }
    assert {name for name, _ in calls} >= {"cuInit", "cuMemAlloc_v2", "cuStreamCreate", "cuStreamDestroy_v2"}
    for name, count in calls:
        public = name.removesuffix("_v2")
        versioned = re.search(rf"^#\s*define {public}\s+(?:__CUDA_API_PT\w+\()?(\w+)", header, re.MULTILINE)
        # The header renames a function to its newest version; an old name would take other arguments.
        assert (versioned[1] if versioned else public) == name
        prototype = re.search(rf"CUresult CUDAAPI {public}\(([^)]*)\);", header)
        assert prototype is not None, name
        parameters = [item for item in prototype[1].split(",") if item.strip() != "void"]
        assert len(parameters) == count, (name, prototype[1])
