"""The mean of the weights of several runs: a "model soup" (Wortsman et al., ICML 2022).

Runs that went on from each other's weights lie in one valley of the loss, where the mean of two is mostly better than
either on pictures of other sources. It costs nothing when serving.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError
from deepfake_training.loop.checkpointing import BEST, BEST_SPEC, save_whole
from deepfake_training.loop.config import CONFIG, TrainConfig

_NOT_FOUND_YET: Final[dict[str, Any]] = {
    "temperature": 1.0, "threshold": 0.5, "checkpoint_sha256": None, "training_data": ""
}  # fmt: skip


def average_runs(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Write the mean of the runs' best weights as a run of its own, for `deepfake evaluate --run` and publishing.

    Name, configuration and with it what is held out are those of the last run. Temperature and threshold are none
    until they are found for the new weights.

    Args:
        runs: directories; at least two.
        out: directory to make.

    Returns:
        Path of the weights.

    Raises:
        OptionError: fewer than two runs, one without weights, networks or crops that differ, faces held out that
            differ (so that one was trained on what another one is judged with), or `out` holds a run.
        TrainingError: the files cannot be written.
    """
    directories, out = [Path(run) for run in runs], Path(out)
    if len(directories) < 2:
        raise OptionError("a mean takes at least two runs; name their directories")
    if (out / BEST).exists():
        raise OptionError(f"{out} holds a run already; name another directory")
    last = directories[-1]
    config = TrainConfig.of_run(last)
    for directory in directories:
        other = TrainConfig.of_run(directory)
        if _contract(directory) != _contract(last):
            raise OptionError(f"{directory} and {last} hold different networks; see their {BEST_SPEC}")
        if (other.split_seed, other.validation_share) != (config.split_seed, config.validation_share):
            raise OptionError(
                f"{directory} and {last} held out other faces, so that none would be left to judge their mean with; "
                "train with the same --split-seed and --validation-share"
            )
    weights = [load_file(directory / BEST) for directory in directories]
    mean = {
        name: torch.stack([each[name].double() for each in weights]).mean(dim=0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in weights[-1].items()
    }
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(last / CONFIG, out / CONFIG)
    spec = dataclasses.replace(ModelSpec.from_yaml(last / BEST_SPEC), **_NOT_FOUND_YET)
    save_whole(out / BEST_SPEC, spec.to_yaml())
    save_whole(out / BEST, lambda path: save_file(mean, path))
    return out / BEST


def _contract(run: Path) -> ModelSpec:
    """Return what must be the same of all networks."""
    if not (run / BEST).is_file():
        raise OptionError(f"{run} holds no {BEST}; name the directory of a run that ended an epoch")
    return dataclasses.replace(ModelSpec.from_yaml(run / BEST_SPEC), name="any", version=1, **_NOT_FOUND_YET)
