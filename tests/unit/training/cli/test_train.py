"""`deepfake train` as it is called: one sentence and an exit code where it cannot work, a run where it can."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from drawn_faces import make_faces

from deepfake_client.cli.main import main
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_training.loop.config import TrainConfig


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    make_faces(12).save(tmp_path / "faces.safetensors")
    data = {
        "pack": str(tmp_path / "faces.safetensors"),
        "spec": {
            "name": "tiny",
            "architecture": "timm:test_efficientnet",
            "input_height_px": 32,
            "input_width_px": 32,
            "crop": {"margin": 0.1},
        },
        "epochs": 1,
        "crops_per_epoch": 4,
        "batch_size": 2,
        "validation_crops": 4,
        "validation_share": 0.3,
        "freeze": ["conv_stem"],
    }
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


QUICKLY = ("--device", "cpu", "--workers", "0", "--threads", "1")


def test_a_run_is_logged_and_goes_on(config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert call("train", config, "--output-dir", run, *QUICKLY, "--set", "augmentation.jpeg=1") == 0
    assert "best: epoch 1, validation AUC" in capfd.readouterr().err
    kept = json.loads((run / "config.json").read_text())
    assert kept["augmentation"]["jpeg"] == 1
    assert kept["freeze"] == ["conv_stem"]
    assert ModelSpec.from_yaml(run / "best.yaml").architecture == "timm:test_efficientnet"
    assert list((run / "tensorboard").iterdir())

    assert call("train", config, "-o", run, *QUICKLY) == 2
    assert "holds a run already; go on with --resume" in capfd.readouterr().err
    assert call("train", "--resume", run, *QUICKLY) == 0
    assert "resumed after epoch 1" in capfd.readouterr().err
    assert call("train", config, "--resume", run, *QUICKLY) == 2
    assert "belongs to a run that differs in augmentation;" in capfd.readouterr().err


def test_a_student_is_taught_and_trained_by_one_configuration(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call("train", config, "-o", tmp_path / "large", *QUICKLY) == 0
    taught = ("--set", f"taught={tmp_path / 'taught'}")
    capfd.readouterr()
    assert call("teach", config, "--teacher", tmp_path / "large" / "best.safetensors", *taught, *QUICKLY) == 0
    assert "crops with the answers of" in capfd.readouterr().err
    assert call("train", config, "-o", tmp_path / "small", *taught, *QUICKLY) == 0
    assert "TaughtFolder" in capfd.readouterr().err


def test_the_example_and_the_configuration_are_printed(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("train", "--example") == 0
    assert "# What is held out" not in (example := capfd.readouterr().out)
    assert yaml.safe_load(example)["learning_rate"] == TrainConfig().learning_rate
    assert call("train", config, "--print-config", "--set", "freeze=[blocks.0, blocks.1]") == 0
    printed = yaml.safe_load(capfd.readouterr().out)
    assert (printed["freeze"], printed["spec"]["name"]) == (["blocks.0", "blocks.1"], "tiny")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name a CONFIG file; `deepfake train --example` prints one"),
        (("CONFIG",), "name the directory of the run with --output-dir"),
        (("nowhere.yaml", "-o", "RUN"), "nowhere.yaml: the configuration cannot be read"),
        (("CONFIG", "-o", "RUN", "--set", "pack=null"), "name either a file of packed faces"),
        (("CONFIG", "-o", "RUN", "--set", "pack=nowhere.safetensors"), "there is no such file of packed faces"),
        (("CONFIG", "-o", "RUN", "--set", "epochs=0"), "field 'epochs' is 0; allowed"),
        (("CONFIG", "-o", "RUN", "--set", "epochs"), "'epochs' cannot be set; write key=value"),
        (("CONFIG", "-o", "RUN", "--set", "augmentation.rain=1"), "'augmentation.rain' is unknown"),
        (
            ("CONFIG", "-o", "RUN", "--set", "spec.architecture=timm:efficientnet_b00"),
            "did you mean timm:efficientnet_b0",
        ),
        (("CONFIG", "-o", "RUN", "--set", "initial_weights=nowhere.pth"), "no such file of initial weights"),
        (("CONFIG", "-o", "RUN", "--set", "mixture.made=0"), "there is no fake"),
        (("CONFIG", "-o", "RUN", "--device", "tpu"), "device 'tpu' cannot be used here"),
        (("--resume", "RUN"), "the configuration cannot be read"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    arguments: tuple[str, ...], said: str, config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = {"CONFIG": config, "RUN": tmp_path / "run"}
    assert call("train", *(places.get(argument, argument) for argument in arguments)) == 2
    error = capfd.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_faces_are_packed_by_the_words_of_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("pack-faces", tmp_path / "faces.safetensors") == 2
    assert "no folder of faces was named" in capfd.readouterr().err
    assert call("pack-faces", tmp_path / "faces.safetensors", "--real", tmp_path / "nowhere") == 2
    assert "there is no such directory" in capfd.readouterr().err
