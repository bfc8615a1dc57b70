"""`deepfake evaluate` through a real Triton: what is measured is the served model, and PyTorch is not needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import media
import pytest
from without_torch import WITHOUT_TORCH

from deepfake_client.client import DeepfakeClient


def test_the_served_model_is_measured(embedded_triton, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for label, width in (("real", 240), ("fake", 300)):
        (tmp_path / label).mkdir()
        cv2.imwrite(str(tmp_path / label / "face.png"), media.picture(width, 240)[..., ::-1])
    url = f"grpc://{embedded_triton.grpc_url}"
    places = ["--real", tmp_path / "real", "--fake", tmp_path / "fake", "--output-dir", tmp_path / "out"]
    options = ["--url", url, "--model", "tiny", "--bootstrap", "0", "--robustness", "blur"]
    command = [sys.executable, "-c", WITHOUT_TORCH, "evaluate", *map(str, places), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert data["through"] == "server"
    with DeepfakeClient(url, model="tiny") as client:
        verdict = client.analyze(tmp_path / "fake" / "face.png")
    scores = {item["label"]: item["fake_probability"] for item in data["files"]}
    assert scores["fake"] == pytest.approx(verdict.fake_probability, abs=1e-6)
