"""Changes of color, sharpness and detail: what tells the inside of a fake from its surroundings."""

from __future__ import annotations

import cv2
import numpy as np

from deepfake_training.data.degradations import compress_jpeg, resample, sharpen, smooth
from deepfake_training.data.fakes.mesh import Mask, Picture
from deepfake_training.data.fakes.upsampler import Upsampler


def change_look(picture: Picture, rng: np.random.Generator) -> Picture:
    """Change color, then sharpness: the source-target transforms of self-blended images."""
    strength = rng.uniform(0.2, 1)  # most swaps match colors well, so small changes must occur often
    contrast = 1 + strength * rng.uniform(-0.1, 0.1)
    brightness = strength * 255 * rng.uniform(-0.1, 0.1)
    shift = strength * rng.uniform(-20, 20, 3)
    shifted = (picture.astype(np.float32) - 127) * contrast + (127 + brightness + shift)
    hsv = cv2.cvtColor(_as_picture(shifted), cv2.COLOR_RGB2HSV).astype(np.int16)
    hue, saturation, value = (round(strength * rng.uniform(-limit, limit)) for limit in (5, 25, 15))
    hsv[..., 0] = (hsv[..., 0] + hue) % 180
    hsv[..., 1:] = np.clip(hsv[..., 1:] + np.array([saturation, value], dtype=np.int16), 0, 255)
    changed = np.asarray(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB), dtype=np.uint8)
    if rng.random() < 0.6:
        return resample(changed, rng.uniform(0.35, 0.95), rng)
    return sharpen(changed, rng.uniform(0.8, 1.6), rng.uniform(0.2, 0.8))


def match_colors(picture: Picture, target: Picture, hull: Mask, rng: np.random.Generator) -> Picture:
    """Give a face the colors of another one within a hull, more or less completely.

    Mean and deviation of each channel of CIELAB are carried over (Reinhard et al., 2001), or the channels' whole
    distributions.
    """
    inside = hull > 0.5
    if not inside.any():
        return picture
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).astype(np.float32)
    wanted = cv2.cvtColor(target, cv2.COLOR_RGB2LAB).astype(np.float32)
    if rng.random() < 0.7:
        mean, std = lab[inside].mean(axis=0), lab[inside].std(axis=0) + 1
        matched = (lab - mean) / std * (wanted[inside].std(axis=0) + 1) + wanted[inside].mean(axis=0)
    else:
        shares = np.linspace(0, 1, 33)
        matched = np.empty_like(lab)
        for each in range(3):
            ours, theirs = (np.quantile(values[inside, each], shares) for values in (lab, wanted))
            matched[..., each] = np.interp(lab[..., each], ours, theirs)
    completeness = rng.choice([1.0, 1.0, rng.uniform(0.6, 1)])
    lab += completeness * (matched - lab)
    return np.asarray(cv2.cvtColor(_as_picture(lab), cv2.COLOR_LAB2RGB), dtype=np.uint8)


def remake(picture: Picture, face_px: float, rng: np.random.Generator, upsampler: Upsampler | None) -> Picture:
    """Make a picture anew from little, as a network of low resolution does: less detail, then sharpness of its own.

    Args:
        picture: of a face.
        face_px: width of the face in it.
        rng: random numbers.
        upsampler: invents the detail that is lost, half of the times.
    """
    if upsampler is not None and rng.random() < 0.5:
        size_px = float(np.exp(rng.uniform(np.log(32), np.log(72))))
        remade = _enhanced(picture, min(1.0, size_px / face_px), upsampler)
    else:
        size_px = float(np.exp(rng.uniform(np.log(48), np.log(192))))
        remade = resample(picture, min(0.95, size_px / face_px), rng)
    if rng.random() < 0.4:
        sigma = rng.uniform(10, 50)
        remade = smooth(remade, sigma, rng.uniform(1, 3))
    if rng.random() < 0.2:
        remade = np.asarray(cv2.medianBlur(remade, 3), dtype=np.uint8)
    if rng.random() < 0.2:
        remade = compress_jpeg(remade, int(rng.integers(25, 80)))
    if rng.random() < 0.5:
        remade = sharpen(remade, rng.uniform(0.8, 2.5), rng.uniform(0.3, 1.5))
    if rng.random() < 0.15:
        remade = _checkered(remade, rng)
    return remade


def paint(picture: Picture, rng: np.random.Generator) -> Picture:
    """Make a picture look painted or rendered: flat skin, clean edges, strong colors, as generated stills have."""
    method = rng.choice(["shift", "strokes", "smooth"])
    if method == "shift":
        painted = cv2.pyrMeanShiftFiltering(picture, rng.uniform(3, 10), rng.uniform(10, 28))
    elif method == "strokes":
        painted = _strokes(picture, int(rng.integers(2, 6)))
    else:
        reach = picture.shape[1] * rng.uniform(0.04, 0.12)
        painted = cv2.edgePreservingFilter(picture, sigma_s=reach, sigma_r=rng.uniform(0.15, 0.4))
        if rng.random() < 0.5:
            painted = cv2.detailEnhance(painted, sigma_s=10, sigma_r=rng.uniform(0.05, 0.2))
    hsv = cv2.cvtColor(painted, cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 1] *= rng.uniform(0.9, 1.4)
    painted = cv2.cvtColor(_as_picture(hsv), cv2.COLOR_HSV2RGB)
    if rng.random() < 0.5:
        painted = sharpen(np.asarray(painted, dtype=np.uint8), rng.uniform(0.8, 2.0), rng.uniform(0.3, 1.0))
    return np.asarray(painted, dtype=np.uint8)


def _strokes(picture: Picture, radius: int) -> Picture:
    """Give each pixel the mean of the calmest of the four squares around it (Kuwahara et al., 1976)."""
    values = picture.astype(np.float32)
    gray = values.mean(axis=2)
    means = cv2.blur(values, (radius + 1, radius + 1))
    variances = cv2.blur(gray * gray, (radius + 1, radius + 1)) - cv2.blur(gray, (radius + 1, radius + 1)) ** 2
    half = max(1, radius // 2)
    squares = [(down, right) for down in (-half, half) for right in (-half, half)]
    calmest = np.stack([np.roll(variances, square, axis=(0, 1)) for square in squares]).argmin(axis=0)
    shifted = np.stack([np.roll(means, square, axis=(0, 1)) for square in squares])
    return _as_picture(np.take_along_axis(shifted, calmest[None, ..., None], axis=0)[0])


def _enhanced(picture: Picture, share: float, upsampler: Upsampler) -> Picture:
    """Shrink a picture to a share of its size, and let the upsampler enlarge it again."""
    height, width = picture.shape[:2]
    small_wh = (max(1, round(width * share)), max(1, round(height * share)))
    small = np.asarray(cv2.resize(picture, small_wh, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    enlarged = cv2.resize(upsampler.enlarged(small), (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(enlarged, dtype=np.uint8)


def _checkered(picture: Picture, rng: np.random.Generator) -> Picture:
    """Add the faint grid that upsampling layers leave."""
    height, width = picture.shape[:2]
    step = int(rng.choice([2, 4, 8]))
    tile = rng.normal(0, rng.uniform(0.8, 3), (step, step, 1)).astype(np.float32)
    grid = np.tile(tile, (height // step + 1, width // step + 1, 1))[:height, :width]
    return _as_picture(picture + grid)


def _as_picture(values: np.ndarray) -> Picture:
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)
