"""Every name and signature of TensorRT that our source uses, against NVIDIA's real bindings.

The bindings of the full TensorRT come from PyPI, its libraries do not; empty libraries with the few symbols that
the bindings want make them importable. Nothing is built with them: that is TensorRT-RTX's part (and the GPU's).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

SCRIPT = ROOT / "tests/support/tensorrt_source.py"
PACKAGE = "tensorrt-cu13-bindings==11.4.0.106"
LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)
OWNERS = {
    "tensorrt",
    "Builder",
    "IBuilderConfig",
    "IOptimizationProfile",
    "INetworkDefinition",
    "ITensor",
    "OnnxParser",
    "ParserError",
    "ITimingCache",
    "IHostMemory",
    "Runtime",
    "ICudaEngine",
    "IExecutionContext",
}
"""Classes that building and running an engine cannot do without; where one is missing, the reader lost its track."""


def sources() -> list[Path]:
    """Every file of ours that takes TensorRT's types."""
    found = [
        path
        for folder in ("preprocess", "client", "serve", "export", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "TensorRT: TypeAlias" in (text := path.read_text(encoding="utf-8")) or "    TensorRT,\n" in text
    ]
    assert len(found) >= 2
    return found


def unavailable(reason: str) -> None:
    """Fail where CI runs and skip elsewhere: a developer on a train must not be stopped by it."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def full_bindings(request) -> dict[str, str]:
    """Environment in which `tensorrt_bindings` can be imported."""
    folder = Path(request.config.cache.mkdir("tensorrt-bindings-11.4.0.106"))
    if not (folder / "complete").exists():
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            unavailable("no C compiler, which makes the stub libraries of TensorRT's bindings")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target"]
        done = subprocess.run([*command, str(folder), PACKAGE], capture_output=True, text=True, check=False)
        if done.returncode:
            unavailable(f"{PACKAGE} cannot be installed: {done.stderr.strip()[-300:]}")
        source = folder / "stub.c"
        source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
        for name in LIBRARIES:
            arguments = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
            subprocess.run([compiler, *arguments], check=True)
        (folder / "complete").touch()
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}


def read(bindings: str, paths: list[Path], environment: dict[str, str] | None = None) -> dict:
    command = [sys.executable, str(SCRIPT), bindings, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def test_what_we_use_exists_in_tensorrt_11(full_bindings):
    found = read("tensorrt_bindings", sources(), full_bindings)
    assert found["version"] == PACKAGE.partition("==")[2]
    assert found["problems"] == []
    assert {use["owner"] for use in found["uses"]} >= OWNERS


def test_what_we_use_exists_in_tensorrt_rtx():
    found = read("tensorrt_rtx_bindings", sources())
    assert found["problems"] == []
    names = {(use["owner"], use["name"]) for use in found["uses"]}
    # Of these only TensorRT-RTX knows.
    assert {("tensorrt", "ComputeCapability"), ("IBuilderConfig", "set_compute_capability")} <= names


WRONG = """
def build(trt: TensorRT, config: IBuilderConfig):
    config.set_flag(trt.BuilderFlag.FP16)
    config.max_workspace_size = 1
    builder = trt.Builder()
    network = builder.create_network(1, 2)
    network.get_input(0).set_dynamic_range(-1, 1)
    profile = builder.create_optimization_profile()
    profile.set_shape("faces", (1,), optimum=(1,), max=(1,))
    return builder.build_engine(network, config)
"""


def test_the_check_can_fail(full_bindings, tmp_path):
    """Names that TensorRT removed, and calls that it does not take; one of each kind."""
    (tmp_path / "wrong.py").write_text(WRONG)
    found = read("tensorrt_bindings", [tmp_path / "wrong.py"], full_bindings)
    told = {(item["where"], item["text"].split(",")[0][:40]) for item in found["problems"]}
    texts = " ".join(item["text"] for item in found["problems"])
    assert {where for where, _ in told} == {f"wrong.py:{line}" for line in (3, 4, 5, 6, 7, 9, 10)}
    for text in (
        "BuilderFlag has no 'FP16'",
        "no 'max_workspace_size'",
        "no 'set_dynamic_range'",
        "no 'build_engine'",
    ):
        assert text in texts
    for call in ("Builder takes", "create_network takes", "set_shape takes"):
        assert call in texts
