"""`deepfake evaluate` and `evaluate-run` as they are called."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import cv2
import media
import numpy as np
import pytest
import torch
from drawn_faces import QUICK, TINY, make_faces
from numpy.typing import NDArray
from safetensors.torch import save_file

from deepfake_client.cli.main import main
from deepfake_export.checkpoint.architectures import build_network
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_training.evaluate.checkpoint import CheckpointTransport
from deepfake_training.evaluate.robustness import DEGRADATIONS
from deepfake_training.loop.run import TrainingRun


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_a_checkpoint_is_evaluated_and_its_spec_written(tmp_path: Path) -> None:
    face = media.picture(240, 240)[..., ::-1]
    for label, picture in (("fake", np.clip(face.astype(int) + 60, 0, 255).astype(np.uint8)), ("real", face // 2)):
        (tmp_path / label).mkdir()
        cv2.imwrite(str(tmp_path / label / "face.png"), picture)
    checkpoint = tmp_path / "tiny.safetensors"
    torch.manual_seed(0)
    save_file(build_network(TINY).state_dict(), checkpoint)
    spec_path = checkpoint.with_suffix(".yaml")
    spec_path.write_text(TINY.to_yaml())
    places = ("--real", tmp_path / "real", "--fake", tmp_path / "fake" / "face.png", "--output-dir", tmp_path / "out")
    options = ("--robustness", "jpeg", "--bootstrap", "10", "--num-frames", "2", "--write-spec", spec_path)
    assert call("evaluate", *places, "--checkpoint", checkpoint, *options) == 0
    data = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert data["through"] == "checkpoint"
    assert data["settings"] == {"frames per video": 2, "aggregation": "mean", "bootstrap samples": 10}
    assert len(data["robustness"]["jpeg"]) == len(DEGRADATIONS["jpeg"].levels)
    spec = ModelSpec.from_yaml(spec_path)
    assert (spec.threshold, spec.temperature) != (TINY.threshold, TINY.temperature)
    assert dataclasses.replace(spec, threshold=0.5, temperature=1.0) == TINY


def test_an_interrupted_evaluation_goes_on_where_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for label in ("real", "fake"):
        cv2.imwrite(str(tmp_path / f"{label}.png"), media.picture(240, 240)[..., ::-1])
    checkpoint = tmp_path / "tiny.safetensors"
    save_file(build_network(TINY).state_dict(), checkpoint)
    checkpoint.with_suffix(".yaml").write_text(TINY.to_yaml())
    scored: list[int] = []

    def score(self: CheckpointTransport, faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        scored.append(len(faces))
        if len(scored) == 2:
            raise KeyboardInterrupt
        return np.full(len(faces), 0.5, np.float32)

    monkeypatch.setattr(CheckpointTransport, "score", score)
    places = ("--real", tmp_path / "real.png", "--fake", tmp_path / "fake.png", "-o", tmp_path / "out")
    command = ("evaluate", *places, "--checkpoint", checkpoint, "--results", tmp_path / "kept.jsonl")
    assert call(*command) == 130
    assert "the same command goes on from there" in capfd.readouterr().err
    assert call(*command) == 0
    assert len(scored) == 3


LOUD = """
import torch

class Loud(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, crops):
        print("a network speaks")
        return crops.mean(dim=(1, 2, 3))[:, None] * self.weight
"""


def test_what_a_networks_code_prints_is_not_among_the_results(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, picture in (("real", media.picture(240, 240)), ("fake", media.picture(240, 240) // 2)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture[..., ::-1])
    (tmp_path / "loud_net.py").write_text(LOUD)
    (tmp_path / "loud.yaml").write_text(dataclasses.replace(TINY, architecture="python:loud_net:Loud").to_yaml())
    save_file({"weight": torch.ones(1)}, tmp_path / "loud.safetensors")
    files = ("--real", tmp_path / "real.png", "--fake", tmp_path / "fake.png", "--bootstrap", "0")
    assert call("evaluate", *files, "--checkpoint", tmp_path / "loud.safetensors", "-o", tmp_path / "out") == 0
    shown = capfd.readouterr()
    assert "a network speaks" in shown.err
    assert "a network speaks" not in shown.out
    assert "AUC" in shown.out


def test_a_run_is_evaluated_on_the_faces_that_its_configuration_names(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pack = tmp_path / "faces.safetensors"
    make_faces().save(pack)
    config = dataclasses.replace(QUICK, epochs=1, pack=str(pack))
    TrainingRun(make_faces(), config, tmp_path / "run").train()
    assert call("evaluate-run", tmp_path / "run", "--num-crops", "4", "-o", tmp_path / "out", "--bootstrap", "0") == 0
    data = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert data["per_file"]["num_real"] + data["per_file"]["num_fake"] == 4

    moved = tmp_path / "moved.safetensors"
    pack.rename(moved)
    assert call("evaluate-run", tmp_path / "run", "-o", tmp_path / "out") == 2
    assert "there is no such file of packed faces" in capfd.readouterr().err
    assert call("evaluate-run", tmp_path / "run", "--pack", moved, "-o", tmp_path / "out", "--bootstrap", "0") == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "there is nothing to evaluate; name files or folders with --real and --fake"),
        (("--rule", "best"), "threshold rule 'best' is unknown"),
        (("--robustness", "rain"), "degradation 'rain' is unknown"),
        (("--real", ".", "--checkpoint", "x", "--embedded"), "leave out --embedded"),
        # Before anything is scored.
        (("--real", ".", "-o", "face.png/out"), "face.png/out cannot be written (Not a directory)"),
        (("--real", ".", "--write-spec", "net.yaml"), "net.yaml"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "face.png").touch()
    monkeypatch.chdir(tmp_path)
    assert call("evaluate", *arguments) == 2
    assert said in capfd.readouterr().err


def test_a_server_is_measured_without_pytorch() -> None:
    code = "import sys; import deepfake_training.cli.evaluate; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "timm", "safetensors", "onnx"} & set(done.stdout.split())
