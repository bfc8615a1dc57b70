"""Scores the crops that a training run held out: split and blended again as its configuration says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from deepfake_client.result.verdict import FaceScore, FrameResult
from deepfake_preprocess.contract.manifest import sha256_file
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_training.data.labels import FAKE, LabelName
from deepfake_training.data.packed_faces import PackedFaces
from deepfake_training.data.taught import TaughtFolder
from deepfake_training.evaluate.checkpoint import BATCH_SIZE, CheckpointTransport
from deepfake_training.evaluate.scoring import ScoredFile
from deepfake_training.loop.checkpointing import best_of
from deepfake_training.loop.config import TrainConfig


def score_held_out(
    run: str | Path, faces: PackedFaces | TaughtFolder | None = None, *, num_crops: int | None = None
) -> tuple[ModelSpec, list[ScoredFile]]:
    """Score the validation crops of a run with its best weights.

    Args:
        run: its directory.
        faces: those it was trained on; None loads what its configuration names.
        num_crops: most crops; as many as the run itself validated on when None.

    Returns:
        The spec of the weights, and one "file" of one frame per crop. A real crop and the fake that was made of it
        are named after the same source.

    Raises:
        OptionError: there is no such run, or its faces are not where it says.
        CheckpointError: the weights are damaged.
    """
    config = TrainConfig.of_run(run)
    if num_crops is not None:
        config = dataclasses.replace(config, validation_crops=num_crops)
    weights, spec = best_of(run)
    spec = dataclasses.replace(spec, checkpoint_sha256=sha256_file(weights))
    transport = CheckpointTransport(weights, spec)
    _, validation = config.split(config.load_faces() if faces is None else faces)
    scored = []
    for start in range(0, len(validation), BATCH_SIZE):
        places = range(start, min(start + BATCH_SIZE, len(validation)))
        pictures, labels, *_ = zip(*(validation[place] for place in places), strict=True)
        probabilities = transport.score(np.stack([crop.numpy() for crop in pictures]))
        for place, label, probability in zip(places, labels, probabilities.tolist(), strict=True):
            frame = FrameResult(0, 0.0, (FaceScore(0, (0.0, 0.0, 1.0, 1.0), 1.0, probability),))
            name: LabelName = "fake" if int(label) == FAKE else "real"
            scored.append(
                ScoredFile(validation.source(place), name, probability, kind=validation.kind(place), frames=(frame,))
            )
    return spec, scored
