"""Lets tests import the makers of clips in this folder as ``media``; and the one rule for tests that need a GPU."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# Before anything loads PyTorch, and for every process that a test starts. The networks are tiny, and several
# processes share the cores: threads that wait for each other would only take time from the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def missing_for_gpu_tests() -> str:
    """Say what a GPU test lacks here; empty where nothing."""
    import importlib.util

    from deepfake_export.gpu import find_gpu

    if find_gpu() is None:
        return "no NVIDIA GPU was found"
    return "" if importlib.util.find_spec("tensorrt") else "tensorrt is not installed"


def pytest_runtest_setup(item):
    """Skip tests marked `gpu` where there is none; fail them where FAIL_WITHOUT_GPU=1 says that there must be."""
    if item.get_closest_marker("gpu") is None:
        return
    if missing := missing_for_gpu_tests():
        if os.environ.get("FAIL_WITHOUT_GPU") == "1":
            pytest.fail(f"{missing}, and FAIL_WITHOUT_GPU=1 says that there must be one", pytrace=False)
        pytest.skip(missing)
