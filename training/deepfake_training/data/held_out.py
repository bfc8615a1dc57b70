"""Scores the crops that a training run held out: split and blended anew from its configuration."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from deepfake_client.result.verdict import FaceScore, FrameResult
from deepfake_preprocess.contract.manifest import sha256_file
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_training.data.dataset import split_datasets
from deepfake_training.data.faces import FaceSet
from deepfake_training.evaluate.scoring import BATCH_SIZE, CheckpointTransport, ScoredFile
from deepfake_training.loop.checkpointing import BEST, BEST_SPEC
from deepfake_training.loop.config import TrainConfig

SELF_BLENDED = "self-blended"
"""Kind of the fakes that were made of real faces."""


def score_held_out(
    run: str | Path, pack: str | Path, *, crops: int | None = None
) -> tuple[ModelSpec, list[ScoredFile]]:
    """Score the validation crops of a run with its best weights.

    Args:
        run: its directory.
        pack: the faces it was trained on.
        crops: at most so many; as many as the run itself validated on when None.

    Returns:
        The spec of the weights, and one "file" of one frame per crop. A real crop and the fake that was made of it
        are named after the same source.

    Raises:
        OptionError: there is no such run, or no such pack.
        CheckpointError: the weights are damaged.
    """
    run = Path(run)
    config = TrainConfig.of_run(run)
    if crops is not None:
        config = dataclasses.replace(config, validation_crops=crops)
    faces = FaceSet.load(pack)
    spec = dataclasses.replace(ModelSpec.from_yaml(run / BEST_SPEC), checkpoint_sha256=sha256_file(run / BEST))
    transport = CheckpointTransport(run / BEST, spec)
    _, validation = split_datasets(faces, spec, config)
    scored = []
    for start in range(0, len(validation), BATCH_SIZE):
        places = range(start, min(start + BATCH_SIZE, len(validation)))
        pictures, labels = zip(*(validation[place] for place in places), strict=True)
        probabilities = transport.score(np.stack([crop.numpy() for crop in pictures]))
        for place, label, probability in zip(places, labels, probabilities.tolist(), strict=True):
            face = FaceScore(0, (0.0, 0.0, 1.0, 1.0), 1.0, probability)
            source = validation.source(place)
            kind = SELF_BLENDED if validation.draws[place].blended else source.partition("/")[0]
            frame = FrameResult(0, 0.0, (face,))
            scored.append(ScoredFile(source, int(label), probability, "", (frame,), kind))
    return spec, scored
