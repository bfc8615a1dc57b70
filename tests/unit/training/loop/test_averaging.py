"""The mean of several runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from drawn_faces import QUICK, TINY, make_faces
from safetensors.torch import load_file

from deepfake_preprocess.contract.spec import Calibration, ModelSpec
from deepfake_preprocess.errors import OptionError
from deepfake_training.evaluate.held_out import score_held_out
from deepfake_training.loop.averaging import average_runs
from deepfake_training.loop.checkpointing import BEST, BEST_SPEC
from deepfake_training.loop.config import TrainConfig
from deepfake_training.loop.run import TrainingRun


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs, the second with the weights of the first, and others that do not fit."""
    place = tmp_path_factory.mktemp("runs")
    config = dataclasses.replace(QUICK, epochs=1)
    judged = dataclasses.replace(TINY, temperature=2.0, threshold=0.7, calibration=Calibration(40, 30, 0.05, 0.4))
    made = {
        "first": config,
        "second": dataclasses.replace(config, seed=4, spec=judged),
        "other crops": dataclasses.replace(config, spec=dataclasses.replace(TINY, input_width_px=64)),
        "other split": dataclasses.replace(config, split_seed=9),
    }
    for name, changed in made.items():
        TrainingRun(make_faces(), changed, place / name).train()
    return {name: place / name for name in made}


def test_the_mean_is_a_run_of_its_own(runs: dict[str, Path], tmp_path: Path) -> None:
    weights = average_runs([runs["first"], runs["second"]], tmp_path / "mean")
    mean, first, second = (load_file(path) for path in (weights, runs["first"] / BEST, runs["second"] / BEST))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    for name, value in mean.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (first[name] + second[name]) / 2)
    spec = ModelSpec.from_yaml(tmp_path / "mean" / BEST_SPEC)
    assert (spec.name, spec.temperature, spec.threshold) == ("tiny", 1.0, 0.5), "to be found for the new weights"
    assert spec.calibration is None
    assert TrainConfig.of_run(tmp_path / "mean") == TrainConfig.of_run(runs["second"])
    assert len(score_held_out(tmp_path / "mean", make_faces())[1]) == QUICK.validation_crops


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["first"], "at least two runs"),
        (["first", "other crops"], "hold different networks"),
        (["other split", "second"], "held out other faces"),
        (["first", "nothing"], "nothing is not the directory of a run"),
    ],
)
def test_runs_that_do_not_fit_are_refused(
    runs: dict[str, Path], names: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        average_runs([runs.get(name, tmp_path / name) for name in names], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_a_run_is_not_overwritten(runs: dict[str, Path]) -> None:
    with pytest.raises(OptionError, match="holds a run already"):
        average_runs([runs["first"], runs["second"]], runs["first"])
