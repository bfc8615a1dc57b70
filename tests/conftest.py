"""Lets tests import the makers of clips in this folder as ``media``; and the one rule for tests that need a GPU."""

import os
import sys
from pathlib import Path

import hypothesis
import pytest

# How long an example takes depends on what else runs on the machine.
hypothesis.settings.register_profile("any-machine", deadline=None)
hypothesis.settings.load_profile("any-machine")

sys.path.insert(0, str(Path(__file__).parent / "support"))

# Before anything loads PyTorch, and for every process that a test starts. The networks are tiny, and several
# processes share the cores: threads that wait for each other would only take time from the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def missing_for_gpu_tests(needs: tuple[str, ...]) -> str:
    """Say what a GPU test lacks here; empty where nothing.

    `needs` names packages, as the marker of the same name does.
    """
    import importlib.util

    from deepfake_export.tensorrt.gpu import find_gpu

    if find_gpu() is None:
        return "no NVIDIA GPU was found"
    for name in needs:
        if name == "onnxruntime-gpu":  # its module has the name of the package without a CUDA provider
            import onnxruntime

            found = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        else:
            found = importlib.util.find_spec(name) is not None
        if not found:
            return f"{name} is not installed"
    return ""


def pytest_runtest_setup(item):
    """Skip tests marked `gpu` where there is none; fail them where FAIL_WITHOUT_GPU=1 says that there must be one."""
    if item.get_closest_marker("gpu") is None:
        return
    needs = tuple(name for marker in item.iter_markers("needs") for name in marker.args)
    if missing := missing_for_gpu_tests(needs):
        if os.environ.get("FAIL_WITHOUT_GPU") == "1":
            pytest.fail(f"{missing}, and FAIL_WITHOUT_GPU=1 says that there must be one", pytrace=False)
        pytest.skip(missing)
