"""Tests that need a GPU are skipped without one, and fail where FAIL_WITHOUT_GPU=1 says that there must be one."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib

import pytest
from checkout import ROOT

from deepfake_export.tensorrt.gpu import find_gpu


def run_gpu_tests(**environment: str) -> str:
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-p", "no:cacheprovider"]
    kept = {name: value for name, value in os.environ.items() if name != "FAIL_WITHOUT_GPU"}
    done = subprocess.run(command, cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, check=False)
    return f"exit {done.returncode}\n{done.stdout}"


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")
def test_every_gpu_test_is_skipped_without_a_gpu_and_fails_where_one_must_be():
    skipped = run_gpu_tests()
    assert skipped.startswith("exit 0")
    assert "no NVIDIA GPU was found" in skipped
    assert " passed" not in skipped
    failed = run_gpu_tests(FAIL_WITHOUT_GPU="1")
    assert failed.startswith("exit 1")
    assert "FAIL_WITHOUT_GPU=1 says that it must be there" in failed
    assert " passed" not in failed
    assert " skipped" not in failed


def test_nothing_but_the_extra_gpu_asks_for_packages_that_pypi_alone_cannot_give():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert {item.partition(">")[0] for item in extras.pop("gpu")} == {"onnxruntime-gpu", "tensorrt"}
    others = [*project["dependencies"], *(item for items in extras.values() for item in items)]
    assert not [item for item in others if item.startswith(("tensorrt>", "tensorrt=", "onnxruntime-gpu"))]
    assert not [item for item in others if item.startswith("deepfake-serving[") and "gpu" in item]
