"""A transformer through everything: the gate of precisions, NVIDIA's parser, an ensemble, the server, heatmaps."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_clip
import torch
import yaml
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import BinaryClassifierOutputTarget
from safetensors.torch import save_file

from deepfake_client.explain.types import ExplainOptions, ServedScores
from deepfake_explain import CheckpointExplainer
from deepfake_export import ExportRequest, FaceOptions, PrecisionOptions, export_checkpoint
from deepfake_export.demo.untrained import build_untrained_network
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.proof.crops import generate_crops
from deepfake_export.tensorrt.engine import build_engine
from deepfake_export.tensorrt.library import load_tensorrt_rtx
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_serve import EmbeddedTriton

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("exported_once")]

SIDE = tiny_clip.SIDE_PX
CROPS = generate_crops(32, (SIDE, SIDE), seed=5)
CNN = ModelSpec("cnn", "timm:test_efficientnet", input_height_px=SIDE, input_width_px=SIDE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tower's checkpoint, an ensemble of it with a network of convolutions, and labeled faces."""
    folder = tmp_path_factory.mktemp("transformer")
    network = tiny_clip.tiny_clip(CROPS)
    networks = ((tiny_clip.SPEC, network), (CNN, build_untrained_network(CNN)))
    for spec, built in networks:
        save_file(built.state_dict(), folder / f"{spec.name}.safetensors")
        (folder / f"{spec.name}.yaml").write_text(spec.to_yaml())
    members = [{"checkpoint": f"{spec.name}.safetensors"} for spec, _ in networks]
    both = {"name": "both", "architecture": "ensemble", "members": members}
    (folder / "both.yaml").write_text(yaml.safe_dump(both))
    with torch.inference_mode():
        scores = ServedDetector(network, tiny_clip.SPEC).eval()(torch.from_numpy(CROPS))[0][:, 0].numpy()
    for index, (crop, score) in enumerate(zip(CROPS, scores, strict=True)):
        place = folder / "faces" / ("fake" if score >= 0.5 else "real")
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{index:02}.png"), crop[..., ::-1])
    return folder


def test_every_precision_passes_the_gate_and_nvidias_parser(folder: Path, tmp_path: Path) -> None:
    exported = export_checkpoint(
        ExportRequest(
            folder / "clip.safetensors",
            tmp_path / "models",
            spec=tiny_clip.SPEC,
            max_batch_size=4,
            artifacts=tmp_path,
            precisions=PrecisionOptions(("fp16", "int8"), promote="int8", int8_target="tensorrt"),
            faces=FaceOptions(folder / "faces"),
        )
    )
    report = json.loads((exported.version_dir / "report.json").read_text())
    artifacts = {item["precision"]: item for item in report["artifacts"]}
    assert all(artifacts[name]["passed"] for name in ("fp32", "fp16", "int8")), artifacts
    assert exported.manifest.precision == "int8"
    layers = artifacts["int8"]["details"]["layer_errors"]
    assert {"patch_embed.proj", "blocks.0.attn.qkv", "blocks.2.mlp.fc2"} <= set(layers)
    assert not [name for name in layers if name.startswith(("val_", "node_"))]
    for precision in artifacts:
        engine = build_engine(
            tmp_path / f"clip.{precision}.onnx", None, max_batch_size=8, library=load_tensorrt_rtx()
        )
        assert engine.precision == precision


def test_what_is_served_is_explained_without_the_class_token(folder: Path) -> None:
    for checkpoint in ("clip.safetensors", "both.yaml"):
        result = export_checkpoint(ExportRequest(folder / checkpoint, folder / "models", max_batch_size=4))
        assert result.manifest.parity["passed"]
    with EmbeddedTriton(folder / "models") as triton:
        served = {name: scores_of(triton.grpc_url, name, CROPS[:4]) for name in ("clip", "both")}
    explainer = CheckpointExplainer.load(folder / "clip.safetensors")
    assert explainer.default_layer() == "blocks.2.norm1"
    found = explainer.explain(
        CROPS[:4],
        ExplainOptions("grad-cam", faithfulness=True),
        served=ServedScores(served["clip"], explainer.spec.checkpoint_sha256),
    )
    network = tiny_clip.tiny_clip(CROPS)
    inputs = ServedDetector(network, tiny_clip.SPEC).normalize(torch.from_numpy(CROPS[:4]))
    with GradCAM(
        network,
        [network.get_submodule("blocks.2.norm1")],
        reshape_transform=lambda tokens: tokens[:, 1:].reshape(len(tokens), 8, 8, -1).permute(0, 3, 1, 2),
    ) as cam:
        expected = cam(inputs, [BinaryClassifierOutputTarget(1)] * 4)
    for explanation, heatmap in zip(found, expected, strict=True):
        np.testing.assert_allclose(explanation.heatmap, heatmap, atol=1e-5)
        assert set(explanation.checks) == {"faithfulness"}

    ensemble = CheckpointExplainer.load(folder / "both.yaml")
    explained = ensemble.explain(CROPS[:4], served=ServedScores(served["both"], ensemble.spec.checkpoint_sha256))
    assert [member.name for member in explained[0].members] == ["clip", "cnn"]
    assert [member.layer for member in explained[0].members] == ["network.blocks.2.norm1", "network.bn2"]


def scores_of(url: str, name: str, crops: np.ndarray) -> np.ndarray:
    import tritonclient.grpc

    with tritonclient.grpc.InferenceServerClient(url) as client:
        tensor = tritonclient.grpc.InferInput("faces", list(crops.shape), "UINT8")
        tensor.set_data_from_numpy(crops)
        return np.asarray(client.infer(name, [tensor]).as_numpy("fake_probability")[:, 0])
