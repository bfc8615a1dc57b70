"""`ShapeModel`: other expressions and poses of a face, and the smooth flow by which networks animate a still.

The meshes of a set are laid onto the mean mesh, and their principal components are taken (Cootes, Taylor, Cooper and
Graham, Active Shape Models, CVIU 1995): what is left after the affine map are jaws, lips, eyes, turns of the head,
and whose face it is. A network that animates a still (Siarohin et al., First Order Motion Model, NeurIPS 2019) moves
it on a coarse grid and draws the result anew; the driver's shape leaks into it, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import cv2
import numpy as np

from deepfake_training.data.fakes.mesh import Mesh, Picture, fit_affine, mean_mesh

COMPONENTS: Final = 16
GRID: Final = 48
"""Cells of the flow, along each edge of the picture; First Order Motion Model has 64 for a head and shoulders."""
_NEAR, _FAR = 0.05, 0.25
"""How far a point of the mesh takes its surroundings along, in widths of the face: skin nearby, hair and neck."""
_FAR_WEIGHT, _STILL_WEIGHT = 1e-2, 1e-2


class ShapeModel:
    """Principal components of meshes of faces.

    Args:
        meshes: at least two.

    Raises:
        ValueError: there are fewer.
    """

    def __init__(self, meshes: Iterable[Mesh]) -> None:
        flat = np.stack([_moved(mesh, fit_affine(mesh, mean_mesh())).ravel() for mesh in meshes])
        if len(flat) < 2:
            raise ValueError("a shape model needs at least two meshes")
        variance, basis = np.linalg.eigh(np.cov(flat, rowvar=False))  # the smallest first
        self._basis = basis[:, : -1 - COMPONENTS : -1].T
        self._deviation = np.sqrt(np.maximum(variance[: -1 - COMPONENTS : -1], 0))

    def other(self, mesh: Mesh, rng: np.random.Generator) -> Mesh:
        """Return the mesh of the same face with another expression, moved, turned and scaled a little."""
        strength = rng.uniform(0.4, 1.4) * self._deviation
        change = ((rng.normal(0, 1, len(strength)) * strength) @ self._basis).reshape(mesh.shape)
        there = fit_affine(mean_mesh(), mesh)
        changed = mesh + change.astype(np.float32) @ there[:, :2].T
        face_px, center = float(np.ptp(mesh[:, 0])), mesh.mean(axis=0)
        turn = cv2.getRotationMatrix2D((0, 0), rng.normal(0, 4), rng.uniform(0.95, 1.05))[:, :2]
        shift = rng.normal(0, 0.03, 2) * face_px
        return np.asarray((changed - center) @ turn.T + center + shift, dtype=np.float32)


def animate(picture: Picture, mesh: Mesh, onto: Mesh) -> Picture:
    """Move a still, so that its face comes from one mesh to another, along a smooth flow on a coarse grid.

    Args:
        picture: of the face.
        mesh: its mesh.
        onto: where each point goes.

    Returns:
        A picture of the same size. What is far from the face stays where it is.
    """
    height, width = picture.shape[:2]
    face_px = float(np.ptp(onto[:, 0]))
    across = (np.arange(GRID, dtype=np.float32) + 0.5) / GRID
    cells = np.stack(np.meshgrid(across * width, across * height), axis=-1).reshape(-1, 1, 2)
    squares = ((cells - onto) ** 2).sum(axis=2) / face_px**2
    weights = np.exp(-squares / (2 * _NEAR**2)) + _FAR_WEIGHT * np.exp(-squares / (2 * _FAR**2))
    flow = weights @ (mesh - onto) / (weights.sum(axis=1, keepdims=True) + _STILL_WEIGHT)
    field = cv2.resize(flow.reshape(GRID, GRID, 2), (width, height), interpolation=cv2.INTER_CUBIC)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    x, y = (columns + field[..., 0]).astype(np.float32), (rows + field[..., 1]).astype(np.float32)
    moved = cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(moved, dtype=np.uint8)


def _moved(mesh: Mesh, matrix: np.ndarray) -> Mesh:
    return np.asarray(mesh @ matrix[:, :2].T + matrix[:, 2], dtype=np.float32)
