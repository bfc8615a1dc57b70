"""What happens to pictures on their way through the world: re-compression, resizing, blur, noise, colour.

Applied to real and fake pictures alike, with the same random numbers for a real picture and the fake made of it, so
that none of it tells the two apart. The single degradations are also what `robustness` sweeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as v2

Picture = NDArray[np.uint8]
_TIME_BASE = Fraction(1, 25)


@dataclass(frozen=True, slots=True)
class Augmentation:
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

    color: float = 0.6
    resize: float = 0.3
    blur: float = 0.15
    noise: float = 0.15
    jpeg: float = 0.3
    h264: float = 0.3
    flip: float = 0.5

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a probability from 0 to 1, got {getattr(self, name)}")

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


NO_AUGMENTATION = Augmentation(color=0, resize=0, blur=0, noise=0, jpeg=0, h264=0, flip=0)


def compress_jpeg(picture: Picture, quality: int) -> Picture:
    """Compress as JPEG, `quality` from 1 to 100, and decode again."""
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), dtype=np.uint8)


def compress_h264(picture: Picture, crf: int) -> Picture:
    """Compress as one key frame of H.264 with constant rate factor `crf` (0 to 51), and decode again."""
    height, width = picture.shape[:2]
    # 4:2:0 has one colour sample per two pixels; the last row or column is doubled where a side is odd.
    doubled = cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    even = np.ascontiguousarray(doubled, dtype=np.uint8)
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = even.shape[1], even.shape[0], "yuv420p"
    encoder.time_base = _TIME_BASE
    encoder.options = {
        "crf": str(crf),
        "preset": "veryfast",
        "tune": "zerolatency",
        "x264-params": "threads=1:log-level=none",
    }
    decoder = av.CodecContext.create("h264", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.thread_count = 1
    packets = [*encoder.encode(av.VideoFrame.from_ndarray(even, format="rgb24")), *encoder.encode(None)]
    frames = [frame for packet in packets for frame in decoder.decode(packet)] + decoder.decode(None)
    return np.ascontiguousarray(frames[0].to_ndarray(format="rgb24")[:height, :width])


def rescale(picture: Picture, factor: float) -> Picture:
    """Shrink by `factor`, in (0, 1], and enlarge again."""
    height, width = picture.shape[:2]
    small_wh = (max(8, round(width * factor)), max(8, round(height * factor)))
    small = cv2.resize(picture, small_wh, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def blur(picture: Picture, sigma_px: float) -> Picture:
    """Blur with a Gaussian of `sigma_px` pixels."""
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma_px), dtype=np.uint8)


def add_noise(picture: Picture, sigma: float, rng: np.random.Generator) -> Picture:
    """Add Gaussian noise of standard deviation `sigma`, of 255."""
    noise = rng.normal(0, sigma, picture.shape).astype(np.float32)
    return np.asarray(np.clip(picture + noise, 0, 255), dtype=np.uint8)


def _recolor(picture: Picture, rng: np.random.Generator) -> Picture:
    brightness, contrast, saturation = rng.uniform(0.75, 1.25, 3).tolist()
    hue = float(rng.uniform(-0.03, 0.03))
    image = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
    image = v2.adjust_brightness(image, brightness)
    image = v2.adjust_contrast(image, contrast)
    image = v2.adjust_saturation(image, saturation)
    image = v2.adjust_hue(image, hue)
    return np.ascontiguousarray(image.numpy().transpose(1, 2, 0))
