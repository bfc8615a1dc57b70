"""Every engine of `deepfake bench gpu` on a real GPU: the CUDA provider, PyTorch eager and compiled, TensorRT plans.

Each must give float32 PyTorch's scores at several batch sizes in a row, which is what the benchmark relies on.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from deepfake_bench.gpu.engines import ENGINES, Subject
from deepfake_bench.gpu.measure import LIMITS
from deepfake_bench.gpu.roofline import measure_ceilings
from deepfake_client.cli import main as cli
from deepfake_export.demo.untrained import UNTRAINED_SPEC, build_untrained_network
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.proof.crops import generate_crops

NEEDS = {"onnxruntime": "onnxruntime-gpu", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
BATCHES = (1, 3, 32, 48)
"""48 is beyond the plan that is served, so it runs on one of its own."""


def marked(name: str):
    needs = NEEDS.get(name.rpartition("-")[0])
    return pytest.param(name, marks=[pytest.mark.needs(needs)] if needs else [])


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Subject:
    spec = UNTRAINED_SPEC
    detector = ServedDetector(build_untrained_network(spec), spec).eval()
    crops = generate_crops(16, spec.input_size_wh)
    with torch.inference_mode():
        reference = detector(torch.from_numpy(crops))[0][:, 0].numpy()
    return Subject(spec, detector, crops, reference, tmp_path_factory.mktemp("engines"), max(BATCHES))


@pytest.mark.parametrize("name", [marked(name) for name in ENGINES])
def test_an_engine_gives_the_scores_of_float32_pytorch_at_every_batch(name, subject):
    kind = ENGINES[name]
    if name.startswith("tensorrt-rtx"):
        skip_where_rtx_cannot_run()
    engine = kind.make(subject, kind.precision, "cuda")
    try:
        for size in BATCHES:
            engine.bind(np.resize(subject.crops, (size, *subject.crops.shape[1:])))
            for _ in range(3):  # allocates, records a CUDA graph, replays it
                engine.run()
            found = engine.probabilities()
            assert found.shape == (size,)
            np.testing.assert_allclose(found, np.resize(subject.reference, size), atol=LIMITS[kind.precision])
    finally:
        engine.close()


def skip_where_rtx_cannot_run() -> None:
    """TensorRT-RTX is for the GPUs of workstations; on a server's it builds nothing, and that is no fault of ours."""
    from deepfake_export.tensorrt.gpu import find_gpu
    from deepfake_export.tensorrt.library import load_tensorrt_rtx

    gpu = find_gpu()
    assert gpu is not None
    known = load_tensorrt_rtx().module.ComputeCapability.__members__
    if f"SM{gpu.compute_capability.replace('.', '')}" not in known:
        pytest.skip(f"TensorRT-RTX does not build for compute capability {gpu.compute_capability}")


def test_the_ceilings_of_a_gpu_are_in_order():
    ceilings = measure_ceilings("cuda", seconds=0.2)
    assert set(ceilings.flops_per_s) == {"fp32", "tf32", "fp16", "bf16"}
    assert ceilings.flops_per_s["fp16"] > ceilings.flops_per_s["fp32"] > 1e12
    assert ceilings.copy_bytes_per_s > 1e10


def test_the_command_measures_on_a_gpu(tmp_path):
    output = tmp_path / "machine-gpu.json"
    options = {
        "--network": "timm:test_efficientnet@64",
        "--engines": "pytorch-eager-fp16,pytorch-compile-fp16",
        "--batches": "1,64",
        "--seconds": "0.1",
        "--output": str(output),
    }
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "gpu", *(part for item in options.items() for part in item)])
    assert ended.value.code == 0
    data = json.loads(output.read_text())
    assert data["ceilings"]["copy_bytes_per_s"] > 0
    (network,) = data["networks"]
    for engine in network["engines"]:
        assert [item["batch"] for item in engine["batches"]] == [1, 64]
        assert all(item["share_of_roofline"] > 0 for item in engine["batches"])
