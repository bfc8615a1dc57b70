"""`deepfake bench gpu` where no GPU is: what it says then, and the same code on the engines that a CPU has."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from deepfake_bench.cli import gpu
from deepfake_bench.gpu import engines as gpu_engines
from deepfake_bench.gpu import measure as gpu_measure
from deepfake_bench.gpu.engines import ENGINES, EngineKind, OnnxRuntimeEngine, Subject, TensorRTEngine
from deepfake_bench.gpu.measure import LIMITS, measure_engine
from deepfake_bench.report.plots import write_plots
from deepfake_client.cli import main as cli
from deepfake_export.demo.untrained import build_untrained_network
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.proof.crops import generate_crops
from deepfake_export.tensorrt.gpu import Gpu
from deepfake_export.tensorrt.library import load_tensorrt_rtx
from deepfake_preprocess.errors import DeepfakeError, EngineError

NETWORK = """
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 1),
    )
"""
COMPILED = "pytorch-compile-fp16"
SMALL = "python:nets_of_bench_gpu:small@32"


@pytest.fixture
def small_network(tmp_path, monkeypatch) -> str:
    (tmp_path / "nets_of_bench_gpu.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    return SMALL


@pytest.fixture
def subject(small_network, tmp_path) -> Subject:
    (spec,) = gpu.parse_networks(small_network)
    detector = ServedDetector(build_untrained_network(spec), spec).eval()
    crops = generate_crops(4, spec.input_size_wh)
    with torch.inference_mode():
        reference = detector(torch.from_numpy(crops))[0][:, 0].numpy()
    return Subject(spec, detector, crops, reference, tmp_path, 64)


def bench(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "gpu", *arguments])
    return int(ended.value.code or 0)


def test_the_engines_of_a_cpu_are_verified_timed_and_set_against_the_roofline(small_network, tmp_path, capsys):
    output = tmp_path / "machine-gpu.json"
    asked = [name for name in ENGINES if not name.startswith(("pytorch-compile", "pytorch-aot"))]
    options = ["--device", "cpu", "--network", small_network, "--batches", "3,1", "--seconds", "0.02"]
    options += ["--engines", ",".join(asked)]
    assert bench(*options, "--output", str(output)) == 0
    data = json.loads(output.read_text())
    assert data["environment"]["packages"]["torch"] == torch.__version__.partition("+")[0]
    ceilings = data["ceilings"]
    assert set(ceilings["flops_per_s"]) == {"fp32", "fp16", "bf16"}
    (network,) = data["networks"]
    # 15 x 15 x 8 outputs of 27 multiply-adds, and the last layer.
    assert network["gflops_per_crop"] * 1e9 == pytest.approx(2 * (15 * 15 * 8 * 27 + 8), rel=0.1)
    engines = {engine.pop("engine"): engine for engine in network["engines"]}
    run_here = ["onnxruntime-fp32", "onnxruntime-fp16", "pytorch-eager-fp16", "pytorch-eager-bf16"]
    assert list(engines) == run_here
    for name in run_here:
        assert [item["batch"] for item in engines[name]["batches"]] == [1, 3]
        for item in engines[name]["batches"]:
            assert 0 < item["q1_ms"] <= item["median_ms"] <= item["q3_ms"]
            assert item["crops_per_s"] == pytest.approx(1_000 * item["batch"] / item["median_ms"], rel=1e-2)
            assert item["largest_probability_difference"] <= LIMITS[engines[name]["precision"]]
            share = item["crops_per_s"] / item["roofline_crops_per_s"]
            assert item["share_of_roofline"] == pytest.approx(share, rel=1e-2, abs=1e-4)
    assert network["not_measured"].keys() == set(asked) - set(run_here)
    reasons = {"TF32 is arithmetic of NVIDIA GPUs", "TensorRT runs on a GPU only"}
    assert set(network["not_measured"].values()) == reasons
    shown = capsys.readouterr().out
    assert "onnxruntime-fp32" in shown
    assert "onnxruntime-tf32: TF32" in shown
    assert not write_plots(output, form="svg"), "a trial without a GPU says nothing about one"
    output.write_text(output.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    (picture,) = write_plots(output, form="svg")
    assert picture.name == "machine-gpu-roofline.svg"
    assert picture.stat().st_size > 10_000


def test_a_compiled_network_runs_as_one_graph_for_each_batch_size(subject, monkeypatch):
    asked = []
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: asked.append(options) or real(*args, **options))
    engine = ENGINES[COMPILED].make(subject, "fp16", "cpu")
    engine.bind(subject.crops)
    engine.run()
    assert asked == [{"mode": gpu_engines.COMPILE_MODE, "fullgraph": True, "dynamic": False}]
    np.testing.assert_allclose(engine.probabilities(), subject.reference, atol=LIMITS["fp16"])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    engine.close()


@pytest.mark.slow  # half a minute of C++ compiler
def test_a_network_that_is_compiled_ahead_of_time_gives_the_same_scores(subject):
    engine = ENGINES["pytorch-aot-bf16"].make(subject, "bf16", "cpu")
    engine.bind(subject.crops)
    engine.run()
    np.testing.assert_allclose(engine.probabilities(), subject.reference, atol=LIMITS["bf16"])
    engine.close()


def test_no_batch_is_begun_when_the_time_is_up(subject):
    engine = FakeEngine(subject, off_by=0.0)
    kind = EngineKind("fp32", lambda *_: engine)
    result = measure_engine("fake", kind, subject, (1,), device="cpu", seconds=0.001, ceilings=None, until=0.0)
    assert (result.batches, result.reason, engine.runs) == ((), "the time was up", 0)


def test_the_command_loads_with_the_few_packages_of_a_gpu_host():
    """Those that `scripts/gpu_check.sh` names."""
    absent = ("av", "aiohttp", "grpc", "matplotlib", "onnxscript", "psutil", "tritonclient")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import deepfake_bench.cli.gpu"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_a_gpu_there_is_an_error_and_no_result(small_network, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "find_gpu", lambda: None)
    output = tmp_path / "machine-gpu.json"
    assert bench("--network", small_network, "--output", str(output)) == 1
    assert "no NVIDIA GPU was found; --device cpu tries the command" in " ".join(capsys.readouterr().err.split())
    assert not output.exists()


def test_what_half_precision_cannot_hold_stays_in_float32_in_pytorch_too(subject):
    norm, last = subject.detector.network[1], subject.detector.network[5]
    with torch.no_grad():
        # The same scores, with numbers between the two layers that half precision does not have.
        norm.weight.mul_(2.0**15)
        norm.bias.mul_(2.0**15)
        last.weight.mul_(2.0**-15)
    engine = ENGINES["pytorch-eager-fp16"].make(subject, "fp16", "cpu")
    engine.bind(subject.crops)
    engine.run()
    assert subject.kept_fp32
    np.testing.assert_allclose(engine.probabilities(), subject.reference, atol=LIMITS["fp16"])


class FakeEngine:
    """Scores all crops alike, and fails at one batch size."""

    def __init__(self, subject: Subject, *, off_by: float, fails_at: int | None = None) -> None:
        self.subject, self.off_by, self.fails_at = subject, off_by, fails_at
        self.runs = self.size = 0
        self.closed = False

    def bind(self, crops) -> None:
        self.size = len(crops)

    def run(self) -> None:
        if self.size == self.fails_at:
            raise MemoryError("CUDA out of memory.\nmany more lines")
        self.runs += 1

    def probabilities(self):
        return np.resize(self.subject.reference, self.size) + np.float32(self.off_by)

    def close(self) -> None:
        self.closed = True


def measured(engine: FakeEngine, subject: Subject):
    kind = EngineKind("fp32", lambda *_: engine)
    return measure_engine("fake", kind, subject, (1, 2, 4), device="cpu", seconds=0.001, ceilings=None)


def test_an_engine_with_other_scores_is_not_timed(subject):
    engine = FakeEngine(subject, off_by=2 * LIMITS["fp32"])
    result = measured(engine, subject)
    assert (result.differs, result.batches, engine.runs, engine.closed) == (True, (), 1, True)
    assert "at batch 1 a probability differs from float32 PyTorch's by 0.002 (limit 0.001)" in result.reason
    assert measured(FakeEngine(subject, off_by=float("nan")), subject).differs


def test_an_engine_that_fails_at_one_batch_keeps_the_others(subject):
    result = measured(FakeEngine(subject, off_by=0.0, fails_at=4), subject)
    assert (result.differs, [item["batch"] for item in result.batches]) == (False, [1, 2])
    assert result.reason == "batches above 2 were not measured: MemoryError: CUDA out of memory."
    assert result.batches[0]["share_of_roofline"] is None
    result = measured(FakeEngine(subject, off_by=0.0, fails_at=1), subject)
    assert (result.batches, result.reason) == ((), "MemoryError: CUDA out of memory.")


def test_a_command_whose_engine_differs_says_so_with_its_exit_code(small_network, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_measure, "LIMITS", {"fp32": -1.0})
    arguments = ["--device", "cpu", "--network", small_network, "--batches", "1", "--seconds", "0.01"]
    assert bench(*arguments, "--engines", "onnxruntime-fp32", "--output", str(tmp_path / "r-gpu.json")) == 1
    assert "onnxruntime-fp32: at batch 1 a probability differs" in capsys.readouterr().out
    assert not (tmp_path / "r-gpu.json").exists()


def test_an_onnxruntime_without_cuda_says_how_to_get_one(subject, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match="no CUDAExecutionProvider; run: pip uninstall -y onnxruntime"):
        OnnxRuntimeEngine(subject, "fp32", "cuda")


def test_an_onnxruntime_that_falls_back_to_the_cpu_is_not_measured_as_cuda(subject, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    asked = {}
    real = onnxruntime.InferenceSession

    def session(path, options, providers):
        asked["providers"] = providers
        return real(path, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(EngineError, match="could not start CUDAExecutionProvider"):
        OnnxRuntimeEngine(subject, "tf32", "cuda")
    assert asked["providers"] == [("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "1"})]


def test_small_batches_run_on_the_plan_that_is_served_and_large_ones_on_their_own(subject, monkeypatch):
    """Real plans, by TensorRT-RTX's builder; only loading them needs a GPU."""
    pytest.importorskip("tensorrt_rtx_bindings")
    loaded = []

    class Loaded:
        def __init__(self, path, *, library):
            assert path.stat().st_size > 0
            loaded.append(path.name)

    monkeypatch.setattr(gpu_engines, "find_gpu", lambda: Gpu("none", "8.9"))
    monkeypatch.setattr(gpu_engines, "LoadedPlan", Loaded)
    engine = TensorRTEngine(subject, "fp16", "cuda", find_library=load_tensorrt_rtx)
    assert engine._plan(1) is engine._plan(32)
    assert engine._plan(64) is not engine._plan(32)
    assert loaded == ["tensorrt_rtx-fp16-32.plan", "tensorrt_rtx-fp16-64.plan"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "--device is 'tpu'; allowed: cuda, cpu"),
        (["--batches", ","], "--batches is empty"),
        (["--batches", "1,x"], "--batches is '1,x'; allowed: numbers above 0"),
        (["--batches", "0"], "--batches is '0'"),
        (["--engines", "onnx"], "--engines is 'onnx'; allowed: all, onnxruntime-fp32"),
        (["--network", "timm:efficientnet_b0"], "--network is 'timm:efficientnet_b0'; expected ARCHITECTURE@PIXELS"),
        (["--network", ","], "--network is ''; expected ARCHITECTURE@PIXELS"),
        (["--device", "cpu", "--network", "timm:efficientnet_b00@64"], "did you mean"),
        (["--checkpoint", "absent.safetensors"], "absent.safetensors: there is no such checkpoint"),
    ],
)
def test_wrong_options_are_told_in_one_sentence(arguments, message, capsys, tmp_path):
    assert bench(*arguments, "--output", str(tmp_path / "r.json")) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "r.json").exists()


def test_a_gpu_that_pytorch_does_not_see_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(DeepfakeError, match=r"sees no GPU \(it is built without CUDA\)"):
        gpu_engines.require_torch_device("cuda")
