"""The comparison of a fused graph with a Triton ensemble, on two small networks and a real Triton."""

from __future__ import annotations

import json

from deepfake_bench import ensemble


def test_both_arrangements_are_served_agree_and_are_timed(tmp_path, capsys):
    (tmp_path / "nets").mkdir()
    path = ensemble.write_demo_ensemble(tmp_path / "nets", members=("test_efficientnet", "test_convnext"), size_px=64)
    ensemble.ensemble(path, rounds=1, seconds=0.2, output=tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())["result"]
    assert result["members"] == ["member_test_efficientnet", "member_test_convnext"]
    assert result["largest_probability_difference"] <= ensemble.TOLERANCE
    assert [(load["requests"], load["crops_per_request"]) for load in result["loads"]] == list(ensemble.LOADS)
    assert all(load["fused_crops_per_s"] > 0 and load["triton_crops_per_s"] > 0 for load in result["loads"])
    assert capsys.readouterr().out.count("ratio") == len(ensemble.LOADS)
