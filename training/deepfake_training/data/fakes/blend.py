"""Puts one face into another picture: alpha, Poisson and Laplacian blending under soft masks of random outline."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from deepfake_training.data.fakes.mesh import Mask, Mesh, Picture, Region, draw_region

RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
"""How much of the source of a self-blend is blended in, drawn evenly, as in the paper on self-blended images."""
METHODS = ("alpha", "poisson", "laplacian")


def random_mask(mesh: Mesh, region: Region, size_hw: tuple[int, int], rng: np.random.Generator) -> Mask:
    """Return a part of the face, grown or shrunk, with a bent outline; 0 or 1."""
    face_px = float(np.ptp(mesh[:, 0]))
    mask = draw_region(mesh, region, size_hw)
    grow = round(rng.uniform(-0.07, 0.05) * face_px)
    if grow:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * abs(grow) + 1,) * 2)
        mask = np.asarray((cv2.dilate if grow > 0 else cv2.erode)(mask, kernel), dtype=np.float32)
    if rng.random() < 0.7:
        bend = smooth_field(size_hw, rng.uniform(0.005, 0.04) * face_px, rng)
        mask = np.asarray(displace(mask, bend), dtype=np.float32)
    return (mask > 0.5).astype(np.float32)


def square_mask(mesh: Mesh, size_hw: tuple[int, int], rng: np.random.Generator) -> Mask:
    """Return the aligned square or ellipse that one-shot swaps paste back; 0 or 1."""
    center, reach = mesh.mean(axis=0), np.ptp(mesh, axis=0).max() / 2 * rng.uniform(0.75, 1.15)
    eyes = mesh[263] - mesh[33]
    angle = float(np.degrees(np.arctan2(eyes[1], eyes[0])))
    mask = np.zeros(size_hw, dtype=np.float32)
    if rng.random() < 0.5:
        corners = cv2.boxPoints(((float(center[0]), float(center[1])), (2 * reach, 2 * reach), angle))
        cv2.fillConvexPoly(mask, np.rint(corners).astype(np.int32), 1.0)
    else:
        axes = (round(reach * rng.uniform(0.8, 1)), round(reach))
        cv2.ellipse(mask, np.rint(center).astype(int).tolist(), axes, angle, 0, 360, 1.0, -1)
    return mask


def soften(mask: Mask, face_px: float, rng: np.random.Generator) -> Mask:
    """Blur the mask's edge by a random width; for half of the masks inwards, so the outline's rim stays untouched."""
    sigma = max(0.6, face_px * float(np.exp(rng.uniform(np.log(0.006), np.log(0.08)))))
    soft = np.asarray(cv2.GaussianBlur(mask, (0, 0), sigma), dtype=np.float32)
    if rng.random() < 0.5:
        soft = np.clip(2 * soft - 1, 0, 1)
        soft = np.asarray(cv2.GaussianBlur(soft, (0, 0), sigma / 2), dtype=np.float32)
    return soft


def blend(target: Picture, inner: Picture, mask: Mask, face_px: float, rng: np.random.Generator) -> Picture:
    """Put `inner` into `target` where the mask (0 or 1) is, by a method that is drawn at random."""
    method = str(rng.choice(METHODS, p=(0.6, 0.2, 0.2)))
    if method == "poisson":
        return _poisson(target, inner, mask)
    if method == "laplacian":
        return _laplacian(target, inner, mask, levels=int(rng.integers(2, 5)))
    return mix(target, inner, soften(mask, face_px, rng))


def mix(target: Picture, inner: Picture, weight: Mask) -> Picture:
    """Return ``target + weight * (inner - target)``."""
    blended = target + (inner.astype(np.float32) - target) * weight[..., None]
    return np.asarray(np.clip(np.rint(blended), 0, 255), dtype=np.uint8)


def smooth_field(size_hw: tuple[int, int], amplitude_px: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a smooth random displacement, float32 ``[H, W, 2]``, of about `amplitude_px`."""
    coarse = rng.normal(0, amplitude_px, (6, 6, 2)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, size_hw[::-1], interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def displace(values: NDArray[Any], field: NDArray[np.float32]) -> NDArray[Any]:
    """Move the pixels of a picture or a mask by a displacement."""
    height, width = values.shape[:2]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    moved = cv2.remap(
        values, columns + field[..., 0], rows + field[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(moved)


def _poisson(target: Picture, inner: Picture, mask: Mask) -> Picture:
    """Blend gradients instead of colors (Perez et al., 2003); the mask keeps off the picture's border."""
    inside = np.zeros(mask.shape, dtype=np.uint8)
    inside[2:-2, 2:-2] = (mask[2:-2, 2:-2] > 0.5) * np.uint8(255)
    x, y, width, height = cv2.boundingRect(inside)
    if width < 3 or height < 3:
        return target
    center = (x + width // 2, y + height // 2)
    return np.asarray(cv2.seamlessClone(inner, target, inside, center, cv2.NORMAL_CLONE), dtype=np.uint8)


def _laplacian(target: Picture, inner: Picture, mask: Mask, *, levels: int) -> Picture:
    """Blend each band of detail with a mask as soft as it is coarse (Burt and Adelson, 1983)."""
    ours, theirs, weight = target.astype(np.float32), inner.astype(np.float32), mask
    bands = []
    for _ in range(levels):
        size_wh = (ours.shape[1], ours.shape[0])
        smaller = [np.asarray(cv2.pyrDown(each), dtype=np.float32) for each in (ours, theirs, weight)]
        detail = [
            each - cv2.pyrUp(small, dstsize=size_wh) for each, small in zip((ours, theirs), smaller[:2], strict=True)
        ]
        bands.append(detail[0] + (detail[1] - detail[0]) * weight[..., None])
        ours, theirs, weight = smaller
    result = ours + (theirs - ours) * weight[..., None]
    for band in reversed(bands):
        result = cv2.pyrUp(result, dstsize=(band.shape[1], band.shape[0])) + band
    return np.asarray(np.clip(np.rint(result), 0, 255), dtype=np.uint8)
