"""What happens to pictures on their way through the world: re-compression, resizing, blur, noise, color.

It happens to real and fake pictures alike, with the same random numbers for a real picture and the fake made of it;
otherwise a network could learn to separate the two by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torchvision.transforms.v2 import functional as v2

from deepfake_preprocess.support.json_data import Bounds, JsonData
from deepfake_training.data.degradations import Picture, add_noise, blur, compress_h264, compress_jpeg, rescale

Share = Annotated[float, Bounds(ge=0, le=1)]


@dataclass(frozen=True, slots=True)
class Augmentation(JsonData):
    """How often each change happens, as probabilities in [0, 1]; 0 turns it off.

    Attributes:
        color: brightness, contrast, saturation and hue.
        resize: shrunk and enlarged again.
        blur: Gaussian.
        noise: Gaussian, as of a sensor.
        jpeg: compressed as JPEG.
        h264: compressed as a key frame of H.264.
        flip: mirrored.
    """

    color: Share = 0.6
    resize: Share = 0.3
    blur: Share = 0.15
    noise: Share = 0.15
    jpeg: Share = 0.3
    h264: Share = 0.3
    flip: Share = 0.5

    def __post_init__(self) -> None:
        self.check_fields()

    def apply(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Return the picture, uint8 ``[H, W, 3]`` RGB, changed. Mirroring is left to the caller."""
        if rng.random() < self.color:
            picture = _recolor(picture, rng)
        if rng.random() < self.resize:
            picture = rescale(picture, rng.uniform(0.3, 0.9))
        if rng.random() < self.blur:
            picture = blur(picture, rng.uniform(0.4, 1.8))
        if rng.random() < self.noise:
            picture = add_noise(picture, rng.uniform(1, 8), rng)
        if rng.random() < self.h264:
            picture = compress_h264(picture, int(rng.integers(18, 36)))
        if rng.random() < self.jpeg:
            picture = compress_jpeg(picture, int(rng.integers(45, 96)))
        return picture


def _recolor(picture: Picture, rng: np.random.Generator) -> Picture:
    brightness, contrast, saturation = rng.uniform(0.75, 1.25, 3).tolist()
    hue = float(rng.uniform(-0.03, 0.03))
    image = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
    image = v2.adjust_brightness(image, brightness)
    image = v2.adjust_contrast(image, contrast)
    image = v2.adjust_saturation(image, saturation)
    image = v2.adjust_hue(image, hue)
    return np.ascontiguousarray(image.numpy().transpose(1, 2, 0))
