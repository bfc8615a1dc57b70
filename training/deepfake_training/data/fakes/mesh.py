"""Dense meshes of faces: 468 points in the order of MediaPipe's face mesh, and what is drawn and warped by them.

A face has a mesh of its own, where one was measured when the set was packed, or the mean of all meshes, fitted to its
five landmarks. Everything that makes fakes works with either.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final, Literal, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay

from deepfake_preprocess.faces.detector import Face

Picture: TypeAlias = NDArray[np.uint8]
"""uint8 ``[H, W, 3]`` RGB."""
Mask: TypeAlias = NDArray[np.float32]
"""float32 ``[H, W]`` in [0, 1]."""
Mesh: TypeAlias = NDArray[np.float32]
"""float32 ``[468, 2]``, x and y in pixels of the picture."""
Region = Literal["whole", "inner", "lower", "mouth"]

NUM_POINTS: Final = 468
_OVAL = [
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
]  # fmt: skip
_BROWS = [276, 282, 283, 285, 293, 295, 296, 300, 334, 336, 46, 52, 53, 55, 63, 65, 66, 70, 105, 107]
_LIPS = [61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185]
_JAW = [323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136, 172, 58, 132, 93]
REGIONS: Final[dict[Region, list[int]]] = {
    "whole": _OVAL,
    "inner": [*_BROWS, *_LIPS, 152, 175, 199, 50, 280],
    "lower": [*_JAW, 4, 50, 280],
    "mouth": [*_LIPS, 2, 200, 186, 410, 43, 273],
}
"""Points whose convex hull is each part: the face, what lies between brows and chin, below the eyes, the mouth."""
_LANDMARKS = [[33, 133], [362, 263], [1], [61], [291]]
"""Points whose mean is each of the detector's landmarks."""


class Portrait(NamedTuple):
    """A picture of a face and the face's mesh in it."""

    picture: Picture
    mesh: Mesh

    @property
    def face_px(self) -> float:
        """Width of the face."""
        return float(np.ptp(self.mesh[:, 0]))


@cache
def mean_mesh() -> Mesh:
    """Return the mean of measured meshes, about 100 px wide; frontal and symmetric."""
    with (files(__package__) / "mean_mesh.npy").open("rb") as file:
        return np.asarray(np.load(file), dtype=np.float32)


@cache
def _triangles() -> NDArray[np.int64]:
    return np.asarray(Delaunay(mean_mesh()).simplices, dtype=np.int64)


def landmarks_of(mesh: Mesh) -> NDArray[np.float32]:
    """Return the detector's five landmarks, float32 ``[5, 2]``, as the mesh has them."""
    return np.stack([mesh[points].mean(axis=0) for points in _LANDMARKS])


def fit_mesh(face: Face) -> Mesh:
    """Return the mean mesh, laid over a face by its landmarks.

    Raises:
        ValueError: the face has no landmarks.
    """
    if face.landmarks_xy is None:
        raise ValueError("a fake is made of a face with landmarks")
    matrix = fit_affine(landmarks_of(mean_mesh()), face.landmarks_xy)
    return np.asarray(mean_mesh() @ matrix[:, :2].T + matrix[:, 2], dtype=np.float32)


def misfit(mesh: Mesh, onto: Mesh) -> float:
    """Return how badly one face can be laid over another: 0 is perfect, below about 0.06 looks natural.

    Points that no affine map brings together mean another pose; a map that squeezes means another view.
    """
    matrix = fit_affine(mesh, onto)
    left = np.linalg.norm(mesh @ matrix[:, :2].T + matrix[:, 2] - onto, axis=1).mean() / np.ptp(onto[:, 1])
    largest, smallest = np.linalg.svd(matrix[:, :2], compute_uv=False)
    mirrored = np.linalg.det(matrix[:, :2]) <= 0
    return float("inf") if mirrored or smallest <= 0 else float(left + 0.1 * (largest / smallest - 1))


def draw_region(mesh: Mesh, region: Region, size_hw: tuple[int, int]) -> Mask:
    """Return the mask of a part of the face, 0 or 1."""
    hull = cv2.convexHull(mesh[REGIONS[region]].astype(np.float32))
    mask = np.zeros(size_hw, dtype=np.float32)
    cv2.fillConvexPoly(mask, np.rint(hull).astype(np.int32), 1.0)
    return mask


def warp(picture: Picture, mesh: Mesh, onto: Mesh, size_hw: tuple[int, int]) -> tuple[Picture, Mask]:
    """Move a face, triangle by triangle, to where another mesh has its points.

    Args:
        picture: of the face.
        mesh: its mesh.
        onto: where each point goes.
        size_hw: of the result.

    Returns:
        The moved face in a picture of that size, which goes on beyond the face as the best affine map has it, and
        the mask of what the mesh covers.
    """
    height, width = size_hw
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    back = fit_affine(onto, mesh)
    map_x = back[0, 0] * columns + back[0, 1] * rows + back[0, 2]
    map_y = back[1, 0] * columns + back[1, 1] * rows + back[1, 2]
    triangles = _triangles()
    label = np.full(size_hw, -1, dtype=np.int32)
    corners = np.rint(onto[triangles] * 16).astype(np.int32)
    for number, triangle in enumerate(corners):
        cv2.fillConvexPoly(label, triangle, number, shift=4)
    covered = label >= 0
    # Each triangle has an affine map of its own from the result to the picture.
    ones = np.ones((len(triangles), 3, 1), dtype=np.float64)
    system = np.concatenate([onto[triangles], ones], axis=2)
    flat = np.abs(np.linalg.det(system)) < 1e-3
    system[flat] = np.eye(3)
    maps = np.linalg.solve(system, mesh[triangles].astype(np.float64)).astype(np.float32)
    maps[flat] = back.T
    chosen = maps[label[covered]]
    places = np.stack([columns[covered], rows[covered], np.ones(covered.sum(), dtype=np.float32)], axis=1)
    map_x[covered], map_y[covered] = np.einsum("ni,nij->jn", places, chosen)
    x, y = map_x.astype(np.float32), map_y.astype(np.float32)
    moved = cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(moved, dtype=np.uint8), covered.astype(np.float32)


def fit_affine(points: NDArray[np.float32], onto: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the ``[2, 3]`` affine map that takes `points` nearest to `onto`; narrow for a face in profile."""
    system = np.column_stack([points, np.ones(len(points), dtype=np.float32)])
    solution, *_ = np.linalg.lstsq(system.astype(np.float64), onto.astype(np.float64), rcond=None)
    return np.asarray(solution.T, dtype=np.float32)
