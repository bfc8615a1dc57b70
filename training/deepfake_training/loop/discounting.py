"""Takes out of a detector's logit what it would say of the same crop without detail.

A crop shrunk to 40 px shows light, skin, glasses and how the picture was made, and next to nothing of how a fake was.
What a detector says of it is prejudice, and as much prejudice is in what it says of the whole crop: one real face
scores higher than another for reasons that have nothing to do with fakes. Ridge regression predicts the blurred
crop's logit from the features of the whole one, and the last layer keeps the rest. The served network stays as large
and fast as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from deepfake_export.checkpoint.layers import last_linear
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.network import load_network
from deepfake_preprocess.errors import OptionError
from deepfake_training.loop.checkpointing import BEST, BEST_SPEC, best_of, save_whole, unjudged
from deepfake_training.loop.config import CONFIG, TrainConfig
from deepfake_training.loop.distilling import seen_and_logit
from deepfake_training.loop.precision import fast_precision
from deepfake_training.loop.ridge import FEWEST, regress

BLURRED_PX: Final = 40
NUM_CROPS: Final = 1000
BATCH_SIZE: Final = 8


@dataclass(frozen=True, slots=True)
class Discount:
    """What was taken out of a detector's logit.

    Attributes:
        weights: path of the weights without it.
        correlation: of the prediction with the logits of blurred crops, those that the regression was not fitted to.
        share: of the logits' standard deviation, how large that of what was taken out is.
    """

    weights: Path
    correlation: float
    share: float


def discount_blur(
    run: str | Path,
    directory: str | Path,
    *,
    changes: Iterable[str] = (),
    num_crops: int = NUM_CROPS,
    device: str = "cpu",
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Discount:
    """Write a run's best weights with another last layer as a run of its own, to be evaluated and published like any.

    What a linear regression on the last layer's input says of blurred crops is subtracted, less its mean over the
    crops that it was fitted to, which the run's configuration draws; a layer without bias cannot add the mean back.
    The regression's penalty is the one that predicts best on crops that it was not fitted to. Temperature and
    threshold are none until they are found for the new weights.

    Args:
        run: directory of the run.
        directory: of the run to make.
        changes: of the run's configuration, as in `TrainConfig.from_file`.
        num_crops: that the regression is fitted to, half of them fakes; at least 20.
        device: ``cpu`` or ``cuda``.
        workers: processes that prepare crops.
        progress: called with the number of crops that are done, and of all.

    Raises:
        OptionError: there is no such run, `directory` holds one, there are too few crops, or the last layer gives
            more than one logit.
        CheckpointError: the weights are damaged.
        TrainingError: the files cannot be written.
    """
    run, directory = Path(run), Path(directory)
    if (directory / BEST).exists():
        raise OptionError(f"{directory} holds a run already; name another directory")
    config = TrainConfig.of_run(run, changes)
    path, spec = best_of(run)
    loaded = load_network(path)
    name, layer = last_linear(loaded.network)
    if layer.out_features != 1:
        raise OptionError(f"{path} does not end in one logit, from which alone something can be taken out")
    detector = ServedDetector(loaded.network, spec).to(device).eval()
    train, _ = config.split(config.load_faces())
    places = range(min(num_crops, len(train)))
    if len(places) < FEWEST:
        raise OptionError(f"{len(places)} crops are too few for a regression; it takes at least {FEWEST}")
    whole: list[Tensor] = []
    blurred: list[Tensor] = []
    for crops, *_ in DataLoader(train, batch_size=BATCH_SIZE, sampler=places, num_workers=workers):
        with torch.inference_mode(), fast_precision(detector, device):
            for seen, shown in ((whole, crops), (blurred, _without_detail(crops))):
                seen.append(seen_and_logit(detector, layer, shown.to(device))[0].double().cpu())
        if progress is not None:
            progress(sum(len(seen) for seen in whole), len(places))
    weight = layer.weight.detach().double().cpu().numpy()[0]
    features = torch.cat(whole).numpy()
    found = regress(features, torch.cat(blurred).numpy() @ weight)
    taken = found.weights
    weights = load_file(path)
    weights[f"{name}.weight"] -= torch.from_numpy(taken).to(weights[f"{name}.weight"])
    if layer.bias is not None:
        weights[f"{name}.bias"] += float(features.mean(axis=0) @ taken)
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / CONFIG, directory / CONFIG)
    save_whole(directory / BEST_SPEC, unjudged(spec).to_yaml())
    save_whole(directory / BEST, lambda place: save_file(weights, place))
    share = float(np.std(features @ taken) / np.std(features @ weight))
    return Discount(directory / BEST, found.correlation, share)


def _without_detail(crops: Tensor) -> Tensor:
    """Return uint8 crops ``[N, H, W, 3]`` shrunk and enlarged again."""
    pictures = crops.permute(0, 3, 1, 2).float()
    small = functional.interpolate(pictures, (BLURRED_PX, BLURRED_PX), mode="area")
    large = functional.interpolate(small, pictures.shape[2:], mode="bicubic", align_corners=False)
    return large.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()
