"""`deepfake evaluate` through a real Triton: the served model is what is measured."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import media
import pytest

from deepfake_client.cli.main import main
from deepfake_client.client import DeepfakeClient


def test_the_served_model_is_measured(embedded_triton, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for label, width in (("real", 240), ("fake", 300)):
        (tmp_path / label).mkdir()
        cv2.imwrite(str(tmp_path / label / "face.png"), media.picture(width, 240)[..., ::-1])
    url = embedded_triton.grpc_url
    options = ["--url", url, "--model", "tiny", "--out", str(tmp_path / "out"), "--bootstrap", "0"]
    with pytest.raises(SystemExit) as left:
        main(["evaluate", "--real", str(tmp_path / "real"), "--fake", str(tmp_path / "fake"), *options])
    assert not left.value.code
    data = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert data["through"] == "server"
    with DeepfakeClient(url, model="tiny") as client:
        verdict = client.analyze(tmp_path / "fake" / "face.png")
    scores = {item["label"]: item["fake_probability"] for item in data["files"]}
    assert scores["fake"] == pytest.approx(verdict.fake_probability, abs=1e-6)
