"""What the tests of training and evaluation share: drawn faces, and a network that trains in seconds."""

from __future__ import annotations

import cv2
import numpy as np

from deepfake_preprocess.contract.spec import Crop, ModelSpec
from deepfake_training.data.labels import FAKE, REAL
from deepfake_training.data.packed_faces import PackedFaces
from deepfake_training.loop.config import TrainConfig

SIDE_PX = 72
BOX = (12.0, 8.0, 60.0, 66.0)
LANDMARKS = ((26.0, 30.0), (46.0, 30.0), (36.0, 40.0), (28.0, 52.0), (44.0, 52.0))

TINY = ModelSpec(
    "tiny",
    "timm:test_efficientnet",
    input_height_px=32,
    input_width_px=32,
    crop=Crop(0.1),
    training_data="drawn faces",
)
"""0.36 million parameters."""

QUICK = TrainConfig(
    spec=TINY,
    epochs=3,
    crops_per_epoch=8,
    batch_size=2,
    accumulate=2,
    warmup_epochs=1,
    ema_decay=0.9,
    validation_share=0.25,
    validation_crops=8,
    seed=3,
)


def draw_face(rng: np.random.Generator) -> np.ndarray:
    """Draw a face at `BOX` on a background: uint8 RGB of `SIDE_PX`."""
    picture = np.full((SIDE_PX, SIDE_PX, 3), rng.integers(0, 256, 3), np.uint8)
    skin = rng.integers(90, 250, 3).tolist()
    cv2.ellipse(picture, (36, 37), (23, 29), 0, 0, 360, skin, -1)
    for x, y in LANDMARKS[:2]:
        cv2.circle(picture, (int(x), int(y)), 3, rng.integers(0, 80, 3).tolist(), -1)
    cv2.line(picture, (28, 52), (44, 52), (120, 30, 40), 2)
    return np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


def make_faces(
    real: int = 24, fake: int = 0, *, group_size: int = 2, seed: int = 0, dark_fakes: bool = False
) -> PackedFaces:
    """Make a set of drawn faces; `group_size` consecutive ones are of one group. Dark fakes are obvious."""
    rng = np.random.default_rng(seed)
    count = real + fake
    labels = [REAL] * real + [FAKE] * fake
    pictures = [draw_face(rng) // (5 if dark_fakes and label == FAKE else 1) for label in labels]
    encoded = [np.asarray(cv2.imencode(".png", picture[..., ::-1])[1], np.uint8).ravel() for picture in pictures]
    return PackedFaces(
        np.concatenate(encoded),
        np.cumsum([0, *map(len, encoded)], dtype=np.int64),
        np.tile(np.array(BOX, np.float32), (count, 1)),
        np.tile(np.array(LANDMARKS, np.float32), (count, 1, 1)),
        np.array(labels, dtype=np.int8),
        tuple(f"group{number // group_size}" for number in range(count)),
        tuple(f"{'fake' if labels[number] else 'real'}/{number:03d}.png" for number in range(count)),
    )
