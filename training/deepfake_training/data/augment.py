"""What happens to pictures on their way through the world: portrait modes, filters, resizing, noise, compression.

It happens to real and fake pictures alike, with the same random numbers for a real picture and the fake made of it;
otherwise a network could learn to separate the two by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
import torch
from torchvision.transforms.v2 import functional as v2

from deepfake_preprocess.support.json_data import Bounds, JsonData
from deepfake_training.data.degradations import (
    Picture,
    add_noise,
    blur,
    compress_h264,
    compress_jpeg,
    enlarge,
    equalize,
    resample,
    sharpen,
    shrink,
    smooth,
)
from deepfake_training.data.fakes.blend import mix
from deepfake_training.data.fakes.mesh import Mesh, draw_region

Share = Annotated[float, Bounds(ge=0, le=1)]

DISTANT_PX = (28, 110)
"""Width of a distant face: from hardly a face to that of a caller in a video of 360 lines."""


@dataclass(frozen=True, slots=True)
class Augmentation(JsonData):
    """How often each change happens, as probabilities in [0, 1]; 0 turns it off.

    Attributes:
        untouched: nothing at all happens but mirroring.
        portrait: the face is smoothed, or its surroundings are blurred, as portrait modes do.
        color: brightness, contrast, saturation and hue.
        contrast: raised locally, as phones do.
        smooth: a filter that keeps edges.
        resize: shrunk and enlarged again.
        blur: Gaussian.
        noise: Gaussian, as of a sensor; half of it in the dark.
        sharpen: an unsharp mask.
        jpeg: compressed as JPEG.
        h264: compressed as a key frame of H.264.
        flip: mirrored.
    """

    untouched: Share = 0.15
    portrait: Share = 0.12
    color: Share = 0.5
    contrast: Share = 0.08
    smooth: Share = 0.15
    resize: Share = 0.4
    blur: Share = 0.1
    noise: Share = 0.15
    sharpen: Share = 0.25
    jpeg: Share = 0.3
    h264: Share = 0.4
    flip: Share = 0.5

    def __post_init__(self) -> None:
        self.check_fields()

    def apply(self, picture: Picture, mesh: Mesh, rng: np.random.Generator, *, distant: bool = False) -> Picture:
        """Return the picture, uint8 ``[H, W, 3]`` RGB, changed. Mirroring is left to the caller.

        Args:
            picture: of one face.
            mesh: of that face, in its pixels.
            rng: the same for a picture and the fake that was made of it.
            distant: shrink the face to `DISTANT_PX` before what a camera and a codec do to it, as in a video call.
        """
        if not distant and rng.random() < self.untouched:
            return picture
        size_wh = (picture.shape[1], picture.shape[0])
        if rng.random() < self.portrait:
            picture = _portrait(picture, mesh, rng)
        if rng.random() < self.color:
            picture = _recolor(picture, rng)
        if rng.random() < self.contrast:
            picture = equalize(picture, rng.uniform(1, 3))
        if rng.random() < self.smooth:
            picture = smooth(picture, rng.uniform(10, 60), rng.uniform(1, 3))
        if distant:
            picture = _at_a_distance(picture, mesh, rng)
        elif rng.random() < self.resize:
            picture = resample(picture, rng.uniform(0.25, 0.95), rng)
        if rng.random() < self.blur:
            picture = blur(picture, rng.uniform(0.4, 1.8))
        if rng.random() < self.noise:
            picture = _with_noise(picture, rng)
        if rng.random() < self.sharpen:
            picture = sharpen(picture, rng.uniform(0.7, 2), rng.uniform(0.2, 1.5))
        if distant or rng.random() < self.h264:
            pixel_format = "yuv444p" if rng.random() < 0.2 else "yuv420p"
            picture = compress_h264(picture, int(rng.integers(16, 39)), pixel_format=pixel_format)
        if rng.random() < self.jpeg:
            picture = compress_jpeg(picture, int(rng.integers(35, 99)))
        return enlarge(picture, size_wh) if distant else picture


def _at_a_distance(picture: Picture, mesh: Mesh, rng: np.random.Generator) -> Picture:
    smallest, largest = np.log(DISTANT_PX)
    factor = float(np.exp(rng.uniform(smallest, largest))) / float(np.ptp(mesh[:, 0]))
    return shrink(picture, min(1.0, factor), interpolation=cv2.INTER_AREA)


def _portrait(picture: Picture, mesh: Mesh, rng: np.random.Generator) -> Picture:
    face_px = float(np.ptp(mesh[:, 0]))
    hull = draw_region(mesh, "whole", picture.shape[:2])
    soft = np.asarray(cv2.GaussianBlur(hull, (0, 0), rng.uniform(0.02, 0.08) * face_px), dtype=np.float32)
    if rng.random() < 0.6:
        changed = smooth(picture, rng.uniform(15, 60), rng.uniform(1, 4))
        changed = np.asarray(cv2.convertScaleAbs(changed, alpha=1, beta=rng.uniform(0, 14)), dtype=np.uint8)
        return mix(picture, changed, soft * np.float32(rng.uniform(0.4, 1)))
    around = cv2.dilate(soft, np.ones((max(1, round(0.15 * face_px)),) * 2, dtype=np.uint8))
    return mix(picture, blur(picture, rng.uniform(1, 5)), 1 - np.asarray(around, dtype=np.float32))


def _with_noise(picture: Picture, rng: np.random.Generator) -> Picture:
    if rng.random() < 0.5:
        return add_noise(picture, rng.uniform(1, 8), rng)
    dark = (255 * (picture / 255) ** rng.uniform(1.2, 2.2) * rng.uniform(0.5, 0.9)).astype(np.uint8)
    noisy = add_noise(dark, rng.uniform(3, 12), rng)
    return blur(noisy, rng.uniform(0.5, 1.2)) if rng.random() < 0.5 else noisy


def _recolor(picture: Picture, rng: np.random.Generator) -> Picture:
    brightness, contrast, saturation = rng.uniform(0.75, 1.25, 3).tolist()
    hue = float(rng.uniform(-0.03, 0.03))
    image = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
    image = v2.adjust_brightness(image, brightness)
    image = v2.adjust_contrast(image, contrast)
    image = v2.adjust_saturation(image, saturation)
    image = v2.adjust_hue(image, hue)
    return np.ascontiguousarray(image.numpy().transpose(1, 2, 0))
