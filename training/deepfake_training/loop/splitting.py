"""What a run trains on and what it holds out, found again from its configuration alone."""

from __future__ import annotations

import dataclasses

import numpy as np

from deepfake_preprocess.errors import OptionError
from deepfake_training.data.dataset import FaceDataset
from deepfake_training.data.labels import REAL
from deepfake_training.data.packed_faces import PackedFaces
from deepfake_training.data.splits import split_by_group
from deepfake_training.loop.config import TrainConfig


def split_datasets(faces: PackedFaces, config: TrainConfig) -> tuple[FaceDataset, FaceDataset]:
    """Return what a run trains on and what it holds out, by group; the same for the same arguments.

    Raises:
        OptionError: the faces cannot be split, or a part has no real face.
    """
    held_out = split_by_group(faces.groups, config.validation_share, seed=config.split_seed)
    train, validation = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    for part, members in (("train on", train), ("validate with", validation)):
        if (faces.labels == REAL).any() and not (faces.labels[members] == REAL).any():
            raise OptionError(
                f"{faces!r}: no real face is left to {part}, because whole groups are held out; add real faces of "
                "other videos or people, or change 'validation_share'"
            )
    train_set = FaceDataset(
        faces,
        train,
        config.spec,
        mixture=config.mixture,
        augmentation=config.augmentation,
        jitter=True,
        seed=config.seed,
    )
    # A fixed choice of crops, degraded like those in training: their AUC is what early stopping looks at.
    random = np.random.default_rng(config.split_seed)
    reals = random.permutation(validation)
    mixture = dataclasses.replace(config.mixture, balance="sampler")
    validation_set = FaceDataset(
        faces,
        reals,
        config.spec,
        mixture=mixture,
        augmentation=config.augmentation,
        jitter=False,
        seed=config.split_seed + 1,
    )
    validation_set.draws = validation_set.draws[: config.validation_crops]
    return train_set, validation_set
