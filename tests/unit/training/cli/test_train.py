"""`deepfake train` as it is called: one sentence and an exit code where it cannot work, a run where it can."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from drawn_faces import make_faces

from deepfake_client.cli.main import main
from deepfake_preprocess.contract.spec import ModelSpec


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    make_faces(12).save(tmp_path / "faces.safetensors")
    return tmp_path / "faces.safetensors"


OPTIONS = (
    *("--architecture", "timm:test_efficientnet", "--input-size", "32", "--margin", "0.1", "--name", "tiny"),
    *("--crops-per-epoch", "4", "--batch-size", "2", "--validation-crops", "4", "--validation-share", "0.3"),
    *("--device", "cpu", "--workers", "0", "--threads", "1", "--augment", "jpeg=1", "--freeze", "conv_stem"),
)


def test_a_run_from_a_pack_is_logged_and_goes_on(
    pack: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert call("train", run, "--pack", pack, *OPTIONS, "--epochs", "1") == 0
    assert "best: epoch 1, validation AUC" in capfd.readouterr().err
    config = json.loads((run / "config.json").read_text())
    assert config["augmentation"]["jpeg"] == 1
    assert config["freeze"] == ["conv_stem"]
    assert ModelSpec.from_yaml(run / "best.yaml").architecture == "timm:test_efficientnet"
    assert list((run / "tensorboard").iterdir())

    assert call("train", run, "--pack", pack, *OPTIONS, "--epochs", "1") == 2
    assert "holds a run already; go on with --resume" in capfd.readouterr().err
    assert call("train", run, "--pack", pack, *OPTIONS, "--epochs", "1", "--resume", run) == 0
    assert "resumed after epoch 1" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "name either folders with --real"),
        (("--pack", "nowhere.safetensors"), "there is no such file of packed faces"),
        (("--pack", "PACK", "--epochs", "0"), "epochs must be at least 1, got 0"),
        (("--pack", "PACK", "--augment", "rain=1"), "'rain=1' is no change=share; known: color"),
        (("--pack", "PACK", "--architecture", "timm:efficientnet_b00"), "did you mean timm:efficientnet_b0"),
        (("--pack", "PACK", "--initial", "nowhere.pth"), "no such file of initial weights"),
        (("--pack", "PACK", "--self-blend", "0"), "there is no fake; name folders with --fake"),
        (("--pack", "PACK", "--device", "tpu"), "device 'tpu' cannot be used here"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    options: tuple[str, ...], said: str, pack: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [str(pack) if option == "PACK" else option for option in options]
    assert call("train", tmp_path / "run", *given) == 2
    error = capfd.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_evaluating_nothing_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate") == 2
    assert "nothing to evaluate" in capfd.readouterr().err
    assert call("evaluate", "--rule", "best") == 2
    assert "threshold rule 'best' is unknown" in capfd.readouterr().err
    assert call("evaluate", "--robustness", "rain") == 2
    assert "degradation 'rain' is unknown" in capfd.readouterr().err
