"""Self-blended images (Shiohara and Yamasaki, CVPR 2022): fakes made of real faces alone.

Two slightly different versions of one face, "source" and "target", are blended under a mask of the face's hull. What
remains to be learned is what all face swaps share, the seam and the mismatch of color, sharpness and geometry between
inside and outside, and not the marks of one generator.

Departures from the paper, each for a reason:

- The hull is a face outline fitted to five landmarks, which is what the project's detector gives; the paper uses 81.
- Besides whole faces, masks of the inner and the lower face occur, because reenactment replaces those only.
- The source may lose more sharpness than in the paper, as the output of a face-swap network of low resolution does.
- The source may be another person's face, aligned by its landmarks and matched in color (`swap_source`).

Everything is drawn from the generator that is handed in: the same generator, the same picture.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.faces.detector import Face

Picture = NDArray[np.uint8]
Mask = NDArray[np.float32]
Points = NDArray[np.float32]

TEMPLATE_LANDMARKS: Points = np.array(
    [[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]], dtype=np.float32
)
"""Where the five landmarks of a frontal face are in a picture of 112 px; the outlines below are drawn in it."""

_FOREHEAD = [(88, 28), (73, 15), (56, 12), (39, 15), (24, 28)]
_BROWS = [(90, 41), (80, 34), (67, 33), (56, 36), (45, 33), (32, 34), (22, 41)]
_JAW = [
    (19, 50), (20, 62), (23, 75), (28, 88), (36, 99), (46, 107), (56, 110),
    (66, 107), (76, 99), (84, 88), (89, 75), (92, 62), (93, 50),
]  # fmt: skip
_OUTLINES: dict[str, list[tuple[int, int]]] = {
    "whole": _JAW + _FOREHEAD,
    "face": _JAW + _BROWS,
    "inner": [(25, 42), (30, 75), (36, 98), (56, 103), (76, 98), (82, 75), (87, 42), (72, 36), (56, 39), (40, 36)],
    "lower": [(26, 76), (29, 88), (36, 99), (46, 107), (56, 110), (66, 107), (76, 99), (83, 88), (86, 76), (56, 66)],
}
_OUTLINE_SHARES = (0.35, 0.4, 0.1, 0.15)

BLEND_RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
"""How much of the source is blended in, drawn evenly from these; as in the paper."""


def self_blend(picture: Picture, face: Face, rng: np.random.Generator, *, source: Picture | None = None) -> Picture:
    """Return a fake made of one real face, which has landmarks, in a uint8 ``[H, W, 3]`` RGB picture.

    `source`, of the same shape, is what is blended in; by default the picture itself. Outside of the soft mask the
    result equals `picture`, or is changed in color and sharpness as a whole, as either version may be the changed
    one.
    """
    mask = hull_mask(picture.shape[:2], face, rng)
    size_px = max(face.width_px, face.height_px)
    target = picture
    inner = picture if source is None else source
    if source is not None or rng.random() < 0.5:
        inner = _change_look(inner, rng)
    else:
        target = _change_look(target, rng)
    inner, mask = _move(inner, mask, face, size_px, rng)
    mask = _soften(mask, size_px, rng) * np.float32(rng.choice(BLEND_RATIOS))
    weight = mask[..., None]
    blended = target + (inner.astype(np.float32) - target) * weight
    return np.asarray(np.clip(np.rint(blended), 0, 255), dtype=np.uint8)


def swap_source(target: Picture, target_face: Face, donor: Picture, donor_face: Face) -> Picture:
    """Return another person's face, laid over `target`: aligned by landmarks, with the target's colors.

    Both pictures are uint8 ``[H, W, 3]`` RGB, of any size.
    """
    matrix = _fit_affine(_landmarks(donor_face), _landmarks(target_face))
    height, width = target.shape[:2]
    warped = cv2.warpAffine(donor, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    hull = _draw(_OUTLINES["face"], (height, width), target_face, 0.0, None) > 0.5
    if not hull.any():
        return np.asarray(warped, dtype=np.uint8)
    lab_target = cv2.cvtColor(target, cv2.COLOR_RGB2LAB).astype(np.float32)
    lab = cv2.cvtColor(warped, cv2.COLOR_RGB2LAB).astype(np.float32)
    mean, std = lab[hull].mean(axis=0), lab[hull].std(axis=0) + 1
    lab = (lab - mean) / std * (lab_target[hull].std(axis=0) + 1) + lab_target[hull].mean(axis=0)
    matched = cv2.cvtColor(np.clip(lab, 0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB)
    return np.asarray(matched, dtype=np.uint8)


def misfit(target_face: Face, donor_face: Face) -> float:
    """Return how badly a donor's face can be laid over the target's: 0 is perfect, below about 0.05 looks natural.

    Landmarks that no affine map brings together mean another pose; a map that squeezes means another view.
    """
    points, onto = _landmarks(donor_face), _landmarks(target_face)
    matrix = _fit_affine(points, onto)
    left = np.linalg.norm(points @ matrix[:, :2].T + matrix[:, 2] - onto, axis=1).mean() / target_face.height_px
    largest, smallest = np.linalg.svd(matrix[:, :2], compute_uv=False)
    mirrored = np.linalg.det(matrix[:, :2]) <= 0
    return float("inf") if mirrored or smallest <= 0 else float(left + 0.1 * (largest / smallest - 1))


def hull_mask(size_hw: tuple[int, int], face: Face, rng: np.random.Generator) -> Mask:
    """Return a mask of the face or of a part of it, float32 ``[H, W]``, 0 or 1, with a random outline."""
    name = rng.choice(list(_OUTLINES), p=_OUTLINE_SHARES)
    mask = _draw(_OUTLINES[str(name)], size_hw, face, 2.5, rng)
    rounded = cv2.GaussianBlur(mask, (0, 0), max(1.0, 0.03 * face.width_px))
    mask = (np.asarray(rounded) > 0.5).astype(np.float32)
    grow = round(rng.uniform(-0.06, 0.06) * face.width_px)
    if grow:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * abs(grow) + 1,) * 2)
        mask = np.asarray((cv2.dilate if grow > 0 else cv2.erode)(mask, kernel), dtype=np.float32)
    return mask


def _draw(
    outline: list[tuple[int, int]],
    size_hw: tuple[int, int],
    face: Face,
    jitter: float,
    rng: np.random.Generator | None,
) -> Mask:
    """Draw an outline of the template, with each corner moved by about `jitter` of 112 px."""
    corners = np.array(outline, dtype=np.float32)
    if rng is not None:
        corners = corners + rng.normal(0, jitter, corners.shape).astype(np.float32)
    matrix = _fit_affine(TEMPLATE_LANDMARKS, _landmarks(face))
    corners = corners @ matrix[:, :2].T + matrix[:, 2]
    mask = np.zeros(size_hw, dtype=np.float32)
    cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], 1.0)
    return mask


def _landmarks(face: Face) -> Points:
    if face.landmarks_xy is None:
        raise ValueError("self-blending needs a face with landmarks")
    return face.landmarks_xy


def _fit_affine(points: Points, onto: Points) -> NDArray[np.float32]:
    """Return the ``[2, 3]`` affine map that takes `points` nearest to `onto`; narrow for a face in profile."""
    system = np.column_stack([points, np.ones(len(points), dtype=np.float32)])
    solution, *_ = np.linalg.lstsq(system.astype(np.float64), onto.astype(np.float64), rcond=None)
    return solution.T.astype(np.float32)


def _change_look(picture: Picture, rng: np.random.Generator) -> Picture:
    """Change color, then sharpness: the paper's source-target transforms."""
    strength = rng.uniform(0.3, 1)  # most swaps match colors well, so small changes must occur often
    contrast = 1 + strength * rng.uniform(-0.1, 0.1)
    brightness = strength * 255 * rng.uniform(-0.1, 0.1)
    shift = strength * rng.uniform(-20, 20, 3)
    shifted = (picture.astype(np.float32) - 127) * contrast + (127 + brightness + shift)
    hsv = cv2.cvtColor(np.clip(shifted, 0, 255).astype(np.uint8), cv2.COLOR_RGB2HSV).astype(np.int16)
    hue, saturation, value = (round(strength * rng.uniform(-limit, limit)) for limit in (5, 25, 15))
    hsv[..., 0] = (hsv[..., 0] + hue) % 180
    hsv[..., 1:] = np.clip(hsv[..., 1:] + np.array([saturation, value], dtype=np.int16), 0, 255)
    changed = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    height, width = changed.shape[:2]
    if rng.random() < 0.6:
        scale = rng.uniform(0.35, 0.95)
        small = cv2.resize(
            changed, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
        )
        changed = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    else:
        soft = cv2.GaussianBlur(changed, (0, 0), rng.uniform(0.8, 1.6))
        amount = rng.uniform(0.2, 0.8)
        changed = cv2.addWeighted(changed, 1 + amount, soft, -amount, 0)
    return np.asarray(changed, dtype=np.uint8)


def _move(inner: Picture, mask: Mask, face: Face, size_px: float, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Shift, scale and bend the source together with its mask, and bend the mask once more on its own."""
    height, width = mask.shape
    center = ((face.box_xyxy[:2] + face.box_xyxy[2:]) / 2).astype(float)
    matrix = cv2.getRotationMatrix2D(tuple(center.tolist()), rng.uniform(-2, 2), rng.uniform(0.95, 1 / 0.95))
    shift = rng.uniform(-1, 1, 2) * (0.03 * face.width_px, 0.015 * face.height_px)
    matrix = np.column_stack([matrix[:, :2], matrix[:, 2] + shift])
    inverse = cv2.invertAffineTransform(matrix).astype(np.float32)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    bend = _smooth_field((height, width), 0.012 * size_px, rng)
    map_x = inverse[0, 0] * columns + inverse[0, 1] * rows + inverse[0, 2] + bend[..., 0]
    map_y = inverse[1, 0] * columns + inverse[1, 1] * rows + inverse[1, 2] + bend[..., 1]
    moved = cv2.remap(inner, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    bend = _smooth_field((height, width), 0.03 * size_px, rng)
    mask = np.asarray(
        cv2.remap(mask, map_x + bend[..., 0], map_y + bend[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT),
        dtype=np.float32,
    )
    return np.asarray(moved, dtype=np.uint8), mask


def _smooth_field(size_hw: tuple[int, int], amplitude_px: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a smooth random displacement, float32 ``[H, W, 2]``, of about `amplitude_px`."""
    coarse = rng.normal(0, amplitude_px, (6, 6, 2)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, size_hw[::-1], interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def _soften(mask: Mask, size_px: float, rng: np.random.Generator) -> Mask:
    """Blur the mask's edge by a random width; for half of the masks inwards, the hull's rim stays untouched."""
    sigma = size_px * float(np.exp(rng.uniform(np.log(0.008), np.log(0.07))))
    soft = np.asarray(cv2.GaussianBlur(mask, (0, 0), sigma), dtype=np.float32)
    if rng.random() < 0.5:
        soft = np.clip(2 * soft - 1, 0, 1)
        soft = np.asarray(cv2.GaussianBlur(soft, (0, 0), sigma / 2), dtype=np.float32)
    return soft
