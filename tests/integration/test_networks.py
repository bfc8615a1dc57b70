"""The networks that the project names: proved, served, and built by NVIDIA's parser in every precision."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc
from safetensors.torch import save_file
from torch import nn

from deepfake_export import ExportRequest, export_checkpoint
from deepfake_export.demo.untrained import build_untrained_network
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.precision import int8
from deepfake_export.precision.fp16 import export_fp16
from deepfake_export.precision.int8 import quantize_int8
from deepfake_export.proof.crops import generate_crops
from deepfake_export.tensorrt.engine import build_engine
from deepfake_export.tensorrt.library import load_tensorrt_rtx
from deepfake_preprocess.contract.spec import Head, ModelSpec
from deepfake_serve import EmbeddedTriton

pytestmark = pytest.mark.usefixtures("exported_once")

NETWORKS = {
    "timm:efficientnet_b0": 224,
    "timm:efficientnet_b1": 240,
    "timm:efficientnet_b3": 300,
    "timm:efficientnet_b4": 380,
    "timm:convnext_base": 224,
    "timm:swin_small_patch4_window7_224": 224,
    "torchvision:efficientnet_b0": 224,
}


def served_scores(repository: Path, name: str, crops: np.ndarray) -> np.ndarray:
    with (
        EmbeddedTriton(repository, instances=1, threads=1) as triton,
        tritonclient.grpc.InferenceServerClient(triton.grpc_url) as client,
    ):
        tensor = tritonclient.grpc.InferInput("faces", list(crops.shape), "UINT8")
        tensor.set_data_from_numpy(crops)
        return client.infer(name, [tensor]).as_numpy("fake_probability")[:, 0]


@pytest.fixture
def everything_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    """INT8 of all layers, without the search for those that bear it: the parser has the most to take then."""
    monkeypatch.setattr(int8, "MAX_LAYERS", 1)
    monkeypatch.setattr(int8, "_fewest_excluded", lambda *_: 0)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.usefixtures("everything_quantized")
@pytest.mark.parametrize("architecture", NETWORKS)
def test_a_network_is_proved_built_in_every_precision_and_served(architecture, tmp_path):
    size_px = NETWORKS[architecture]
    spec = ModelSpec("net", architecture, head=Head("softmax"), input_height_px=size_px, input_width_px=size_px)
    network = build_untrained_network(spec)
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    result = export_checkpoint(
        ExportRequest(tmp_path / "net.safetensors", tmp_path / "m", spec=spec, max_batch_size=2)
    )
    assert result.manifest.parity["passed"]
    assert result.manifest.parity["verdict_flips"] == 0

    detector = ServedDetector(network, spec).eval()
    crops = generate_crops(2, spec.input_size_wh, seed=5)
    with torch.inference_mode():
        expected = detector(torch.from_numpy(crops))[0][:, 0].numpy()
    served = served_scores(tmp_path / "m", "net", crops)
    print(f"{architecture}: served {served}, largest difference {np.abs(served - expected).max():.1e}")
    np.testing.assert_allclose(served, expected, atol=1e-4)

    paths = {name: tmp_path / f"{name}.onnx" for name in ("int8", "fp16")}
    paths["fp32"] = result.version_dir / "model.onnx"
    quantize_int8(paths["fp32"], paths["int8"], spec, crops, target="tensorrt")
    export_fp16(detector, paths["fp16"], spec, crops)
    for precision, path in paths.items():
        engine = build_engine(path, None, max_batch_size=8, library=load_tensorrt_rtx())
        assert engine.precision == precision
        print(f"{architecture} {precision}: {engine.size_bytes / 1e6:.0f} MB in {engine.build_seconds:.1f} s")


@pytest.mark.parametrize(
    ("architecture", "size_px"),
    [("timm:test_efficientnet", 64), pytest.param("timm:efficientnet_b0", 224, marks=pytest.mark.slow)],
)
def test_a_head_of_several_layers_gives_pytorchs_scores_served(architecture, size_px, tmp_path):
    """The network as training code writes it, and the spec that states its head and the order of its labels."""
    base = ModelSpec(
        "head", architecture, head=Head("softmax", fake_index=0), input_height_px=size_px, input_width_px=size_px
    )
    network = build_untrained_network(base)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        features = network.classifier.in_features
        network.classifier = nn.Sequential(nn.Linear(features, 512), nn.ReLU(), nn.Dropout(0.4), nn.Linear(512, 2))
        nn.init.normal_(network.classifier[3].weight, std=0.3)
    torch.save({"model_state_dict": network.state_dict(), "epoch": 7}, tmp_path / "head.pt")
    layers = ("linear:512", "relu", "dropout", "linear:2")
    spec = dataclasses.replace(base, head=Head("softmax", fake_index=0, layers=layers))
    result = export_checkpoint(ExportRequest(tmp_path / "head.pt", tmp_path / "m", spec=spec, max_batch_size=4))
    assert result.manifest.parity["passed"]
    crops = generate_crops(4, base.input_size_wh, seed=6)
    pixels = (crops / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    with torch.inference_mode():
        # The labels are [fake, real].
        outputs = network.eval()(torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32)))
        expected = outputs.softmax(dim=1)[:, 0].numpy()
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(served_scores(tmp_path / "m", "head", crops), expected, atol=1e-4)
