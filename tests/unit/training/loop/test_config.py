"""The file that `deepfake train` takes: what it may hold, what is refused, and what a run keeps of it."""

from __future__ import annotations

import dataclasses
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkout import ROOT
from drawn_faces import QUICK, make_faces

from deepfake_preprocess.errors import OptionError
from deepfake_training.data.dataset import Mixture
from deepfake_training.loop.config import CONFIG, TrainConfig
from deepfake_training.loop.run import TrainingRun


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_says_what_differs_from_the_defaults(tmp_path: Path) -> None:
    text = "pack: faces.safetensors\nlearning_rate: 1e-4\nmixture: {swap: 0}\nfreeze: [conv_stem]\n"
    expected = TrainConfig(
        pack="faces.safetensors", learning_rate=1e-4, mixture=Mixture(swap=0), freeze=("conv_stem",)
    )
    assert TrainConfig.from_file(written(tmp_path / "train.yaml", text)) == expected
    assert TrainConfig.from_file(written(tmp_path / "empty.yaml", "")) == TrainConfig()


def test_single_values_can_be_replaced(tmp_path: Path) -> None:
    path = written(tmp_path / "train.yaml", "epochs: 3\nmixture: {swap: 0.5}\n")
    config = TrainConfig.from_file(path, ["epochs=4", "mixture.made=1", "spec.crop.margin=0.1"])
    assert (config.epochs, config.mixture) == (4, Mixture(made=1, swap=0.5))
    assert (config.spec.crop.margin, config.spec.architecture) == (0.1, TrainConfig().spec.architecture)
    for change, said in (
        ("epochs.first=1", "'epochs.first=1' cannot be set: 'epochs' is 3 and has no parts"),
        ("epochs", "'epochs' cannot be set; write key=value"),
        ("epochs=[", "'epochs=\\[' cannot be set; write key=value"),
    ):
        with pytest.raises(OptionError, match=said):
            TrainConfig.from_file(path, [change])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: 0", "field 'epochs' is 0; allowed: a whole number from 1"),
        ("epochs: many", "field 'epochs' is 'many'; allowed: a whole number from 1"),
        ("{keep: last, patience: 2}", "'keep: last' trains to the last epoch; set 'patience' to 0"),
        ("schedule: line", "field 'schedule' is 'line'; allowed: 'cosine', 'plateau', 'step'"),
        ("epoch: 3", "field 'epoch' is unknown; allowed: pack, folders, taught, teacher_features"),
        (
            "mixture: {swop: 1}",
            "field 'mixture.swop' is unknown; allowed: made, swap, mouth, remade, animated, drawn, upsampler",
        ),
        ("mixture: {swap: 2}", "field 'mixture.swap' is 2; allowed: a number from 0 to 1"),
        ("augmentation: {jpeg: 1.5}", "field 'augmentation.jpeg' is 1.5; allowed: a number from 0 to 1"),
        ("folders: {frames_per_video: 0}", "field 'folders.frames_per_video' is 0"),
        ("spec: {name: a b}", "field 'spec.name' is 'a b'"),
        ("spec: tiny", "field 'spec' is 'tiny'; allowed: a mapping with name"),
        ("[1, 2]", "the data is [1, 2]; allowed: a mapping with pack"),
        ("epochs: [", "cannot be read"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as refused:
        TrainConfig.from_file(written(tmp_path / "train.yaml", text))
    assert said in str(refused.value)
    assert "train.yaml" in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"train\.yaml: the configuration cannot be read"):
        TrainConfig.from_file(tmp_path / "train.yaml")


def test_faces_come_from_a_pack_or_from_folders() -> None:
    with pytest.raises(OptionError, match=r"name either a file of packed faces \('pack'\) or folders"):
        TrainConfig().load_faces()


def test_a_run_keeps_the_file_that_repeats_it(tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, epochs=1, pack="elsewhere.safetensors")
    TrainingRun(make_faces(), config, tmp_path).train()
    assert TrainConfig.from_file(tmp_path / CONFIG) == config == TrainConfig.of_run(tmp_path)
    assert config.to_dict() == json.loads((tmp_path / CONFIG).read_text())


def keys_of(data: dict[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key, value in data.items():
        found |= keys_of(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
    return found


def test_the_example_names_every_key_with_its_default() -> None:
    example = files("deepfake_training.cli").joinpath("example.yaml")
    assert TrainConfig.from_file(str(example)) == TrainConfig(pack="faces.safetensors")
    # Of a spec it shows what a training decides; the rest is in docs/model-spec.md.
    known = {key for key in keys_of(TrainConfig().to_dict()) if not key.startswith("spec.")}
    named = {key for key in keys_of(yaml.safe_load(example.read_text())) if not key.startswith("spec.")}
    assert named == known


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "demo-checkpoint").glob("config-*.json")), ids=lambda p: p.stem
)
def test_the_demo_checkpoints_configurations_can_be_trained_again(path: Path) -> None:
    config = TrainConfig.from_file(path)
    assert config.pack == "faces.safetensors"
    assert config.initial_weights is not None
    log = (ROOT / "docs" / "demo-checkpoint" / f"log{path.stem.removeprefix('config')}.jsonl").read_text()
    first = json.loads(log.splitlines()[0])
    assert first["crops"] == config.crops_per_epoch
    assert len(log.splitlines()) <= config.epochs
