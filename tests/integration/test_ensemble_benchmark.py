"""The comparison of a fused graph with a Triton ensemble, on two small networks and a real Triton."""

from __future__ import annotations

import json

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from deepfake_bench.server import ensemble
from deepfake_export import load_model
from deepfake_export.checkpoint.architectures import build_network
from deepfake_export.ensemble.spec import EnsembleSpec

LAYERS = ["conv:4", "relu", "avgpool", "flatten", "linear:1"]


def test_both_arrangements_are_served_agree_and_are_timed(tmp_path, capsys):
    sides = {"small": 32, "large": 64}
    members = [
        {"name": name, "checkpoint": f"{name}.safetensors", "architecture": "layers", "head": {"layers": LAYERS}}
        | {"input_height_px": side, "input_width_px": side}
        for name, side in sides.items()
    ]
    path = tmp_path / "ensemble.yaml"
    path.write_text(yaml.safe_dump({"name": "two", "architecture": "ensemble", "members": members}))
    for member in EnsembleSpec.from_yaml(path).members:
        with torch.random.fork_rng():
            torch.manual_seed(member.spec.input_width_px)
            save_file(build_network(member.spec).state_dict(), tmp_path / f"{member.spec.name}.safetensors")
    ensemble.ensemble(path, rounds=1, seconds=1.0, output=tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())["result"]
    assert result["members"] == ["member_small", "member_large"]
    assert result["largest_probability_difference"] <= ensemble.TOLERANCE
    assert [(load["requests"], load["crops_per_request"]) for load in result["loads"]] == list(ensemble.LOADS)
    assert all(load["fused_crops_per_s"] > 0 and load["triton_crops_per_s"] > 0 for load in result["loads"])
    assert capsys.readouterr().out.count("ratio") == len(ensemble.LOADS)


def test_the_networks_of_the_default_are_an_ensemble(tmp_path):
    path = ensemble.write_demo_ensemble(tmp_path, members=("test_efficientnet", "test_convnext"), size_px=64)
    ensemble_spec = EnsembleSpec.from_yaml(path)
    architectures = [member.spec.architecture for member in ensemble_spec.members]
    assert architectures == ["timm:test_efficientnet", "timm:test_convnext"]
    with torch.inference_mode():
        logits = load_model(path, ensemble_spec.spec)(torch.rand(4, 3, 64, 64))
    assert logits.shape == (4, 1)
    assert np.ptp(logits.numpy()) > 0
