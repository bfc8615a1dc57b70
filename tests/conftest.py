"""Lets tests import the helpers in `support`; and the one rule for tests that need a GPU or a Debian package."""

import os
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

# How long an example takes depends on what else runs on the machine.
hypothesis.settings.register_profile("any-machine", deadline=None)
hypothesis.settings.load_profile("any-machine")

sys.path.insert(0, str(Path(__file__).parent / "support"))
import debian  # noqa: E402 - lies in that folder

# Before anything loads PyTorch, and for every process that a test starts. The networks are tiny, and several
# processes share the cores: threads that wait for each other would only take time from the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder of this run of the tests, the same in each of its processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def exported_once(shared_folder):
    """PyTorch's exporter runs once for each network of this run."""
    import exporter  # with PyTorch, which most tests do without

    with exporter.runs_once(shared_folder):
        yield


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


def missing_of(item) -> tuple[str, str]:
    """Say what a test lacks here, and which variable says that it must be there; empty where nothing is missing."""
    if item.get_closest_marker("gpu"):
        needs = tuple(name for marker in item.iter_markers("needs") for name in marker.args)
        if missing := missing_for_gpu_tests(needs):
            return missing, "FAIL_WITHOUT_GPU"
    for package in (name for marker in item.iter_markers("debian") for name in marker.args):
        if missing := debian.missing(package):
            return missing, "FAIL_WITHOUT_DEBIAN"
    return "", ""


def pytest_runtest_setup(item):
    """Skip tests that lack a GPU or a Debian package; fail them where the environment says that it must be there."""
    missing, variable = missing_of(item)
    if missing and os.environ.get(variable) == "1":
        pytest.fail(f"{missing}, and {variable}=1 says that it must be there", pytrace=False)
    if missing:
        pytest.skip(missing)
