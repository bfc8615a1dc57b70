"""Single degradations of a picture: re-compression, rescaling, blur, noise. Needs no PyTorch.

Training draws them at random (`augment`), an evaluation sweeps them (`robustness`).
"""

from __future__ import annotations

from fractions import Fraction

import av
import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""uint8 ``[H, W, 3]``, RGB."""
_TIME_BASE = Fraction(1, 25)
_INTERPOLATIONS = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_LANCZOS4)


def compress_jpeg(picture: Picture, quality: int) -> Picture:
    """Compress as JPEG, `quality` from 1 to 100, and decode again."""
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), dtype=np.uint8)


def compress_h264(picture: Picture, crf: int, *, pixel_format: str = "yuv420p") -> Picture:
    """Compress as one key frame of H.264 with constant rate factor `crf` (0 to 51), and decode again."""
    height, width = picture.shape[:2]
    # 4:2:0 has one color sample per two pixels; the last row or column is doubled where a side is odd.
    doubled = cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    even = np.ascontiguousarray(doubled, dtype=np.uint8)
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = even.shape[1], even.shape[0], pixel_format
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


def shrink(picture: Picture, factor: float, *, interpolation: int) -> Picture:
    """Shrink by `factor`, in (0, 1], to 8 pixels a side at least."""
    height, width = picture.shape[:2]
    small_wh = (max(8, round(width * factor)), max(8, round(height * factor)))
    return np.asarray(cv2.resize(picture, small_wh, interpolation=interpolation), dtype=np.uint8)


def enlarge(picture: Picture, size_wh: tuple[int, int], *, interpolation: int = cv2.INTER_LINEAR) -> Picture:
    """Enlarge to a size, as a crop is."""
    return np.asarray(cv2.resize(picture, size_wh, interpolation=interpolation), dtype=np.uint8)


def rescale(picture: Picture, factor: float) -> Picture:
    """Shrink by `factor`, in (0, 1], and enlarge again."""
    return enlarge(shrink(picture, factor, interpolation=cv2.INTER_AREA), (picture.shape[1], picture.shape[0]))


def blur(picture: Picture, sigma_px: float) -> Picture:
    """Blur with a Gaussian of `sigma_px` pixels."""
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma_px), dtype=np.uint8)


def smooth(picture: Picture, sigma: float, radius_px: float) -> Picture:
    """Smooth all but edges (a bilateral filter), as portrait modes, video noise filters and make-up filters do."""
    return np.asarray(cv2.bilateralFilter(picture, 0, sigma, radius_px), dtype=np.uint8)


def sharpen(picture: Picture, sigma_px: float, amount: float) -> Picture:
    """Add `amount` times what a blur of `sigma_px` takes away (an unsharp mask)."""
    soft = cv2.GaussianBlur(picture, (0, 0), sigma_px)
    return np.asarray(cv2.addWeighted(picture, 1 + amount, soft, -amount, 0), dtype=np.uint8)


def equalize(picture: Picture, limit: float) -> Picture:
    """Raise local contrast up to a limit, as phones do that merge exposures."""
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(clipLimit=limit, tileGridSize=(4, 4)).apply(np.ascontiguousarray(lab[..., 0]))
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), dtype=np.uint8)


def resample(picture: Picture, factor: float, rng: np.random.Generator) -> Picture:
    """Shrink by a factor in (0, 1] and enlarge again, each with a method of its own."""
    small = shrink(picture, factor, interpolation=int(rng.choice(_INTERPOLATIONS)))
    return enlarge(small, (picture.shape[1], picture.shape[0]), interpolation=int(rng.choice(_INTERPOLATIONS)))


def add_noise(picture: Picture, sigma: float, rng: np.random.Generator) -> Picture:
    """Add Gaussian noise of standard deviation `sigma`, of 255."""
    noise = rng.normal(0, sigma, picture.shape).astype(np.float32)
    return np.asarray(np.clip(picture + noise, 0, 255), dtype=np.uint8)
