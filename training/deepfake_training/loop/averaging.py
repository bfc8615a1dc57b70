"""The mean of the weights of several runs: a "model soup" (Wortsman et al., ICML 2022).

Runs that went on from each other's weights are in one valley of the loss, where the mean of two is mostly better than
either on pictures of other sources. It costs nothing when serving.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError
from deepfake_training.loop.checkpointing import BEST, BEST_SPEC, best_of, save_whole, unjudged
from deepfake_training.loop.config import CONFIG, TrainConfig


def average_runs(runs: Sequence[str | Path], directory: str | Path) -> Path:
    """Write the mean of the runs' best weights as a run of its own, to be evaluated and published like any.

    Name, configuration and with it what is held out are those of the last run. Temperature and threshold are none
    until they are found for the new weights.

    Args:
        runs: directories; at least two.
        directory: of the run to make.

    Returns:
        Path of the weights.

    Raises:
        OptionError: fewer than two runs, one without weights, networks or crops that differ, faces held out that
            differ (one was then trained on what another one is judged with), or `directory` holds a run.
        TrainingError: the files cannot be written.
    """
    directories, directory = [Path(run) for run in runs], Path(directory)
    if len(directories) < 2:
        raise OptionError("a mean takes at least two runs; name their directories")
    if (directory / BEST).exists():
        raise OptionError(f"{directory} holds a run already; name another directory")
    configs = [TrainConfig.of_run(each) for each in directories]
    bests = [best_of(each) for each in directories]
    last, config, (_, spec) = directories[-1], configs[-1], bests[-1]
    for each, other, (_, other_spec) in zip(directories, configs, bests, strict=True):
        if _contract(other_spec) != _contract(spec):
            raise OptionError(f"{each} and {last} hold different networks; see their {BEST_SPEC}")
        if (other.split_seed, other.validation_share) != (config.split_seed, config.validation_share):
            raise OptionError(
                f"{each} and {last} held out other faces, which leaves none to judge their mean with; train with the "
                "same 'split_seed' and 'validation_share'"
            )
    weights = [load_file(path) for path, _ in bests]
    mean = {
        name: torch.stack([each[name].double() for each in weights]).mean(dim=0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in weights[-1].items()
    }
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(last / CONFIG, directory / CONFIG)
    save_whole(directory / BEST_SPEC, unjudged(spec).to_yaml())
    save_whole(directory / BEST, lambda path: save_file(mean, path))
    return directory / BEST


def _contract(spec: ModelSpec) -> ModelSpec:
    """Return what must be the same of all networks."""
    return dataclasses.replace(unjudged(spec), name="any", version=1)
