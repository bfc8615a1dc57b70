"""Which real faces a detector learns from: those that look at the camera, upright, with something around them.

The client counts faces that are turned away less or not at all, and of such faces no fake is made that looks like one
of the world: triangles fold, and what was hidden is smeared.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from deepfake_training.data.fakes.mesh import Mesh
from deepfake_training.data.labels import REAL
from deepfake_training.data.packed_faces import PackedFaces

MAX_TURN: Final = 0.22
"""How far the tip of the nose may lie from the middle between the outer corners of the eyes, as a share of their
distance."""
MAX_ROLL_DEG: Final = 25.0
LEAST_ROOM: Final = 0.93
"""Side of the largest square around the center of a face that lies in the picture, as a share of the box's longer."""
_TIP, _OUTER_CORNERS = 1, (33, 263)


def suitable(faces: PackedFaces) -> NDArray[np.bool_]:
    """Return for each face whether to learn from it, bool ``[N]``. Given fakes are taken as they are."""
    return np.array([faces.labels[index] != REAL or _suits(faces, index) for index in range(len(faces))], dtype=bool)


def _suits(faces: PackedFaces, index: int) -> bool:
    turn, roll_deg = pose_of(faces.mesh(index))
    if turn > MAX_TURN or roll_deg > MAX_ROLL_DEG:
        return False
    height, width = faces.picture_rgb(index).shape[:2]
    box = faces.boxes_xyxy[index]
    center = (box[:2] + box[2:]) / 2
    room = 2 * float(min(center.min(), ((width, height) - center).min()))
    return room >= LEAST_ROOM * float((box[2:] - box[:2]).max())


def pose_of(mesh: Mesh) -> tuple[float, float]:
    """Return how far a head is turned (see `MAX_TURN`) and how far it is rolled, in degrees; neither below 0."""
    start, end = mesh[list(_OUTER_CORNERS)]
    axis = end - start
    length = float(axis @ axis)
    if not length:
        return float("inf"), 0.0
    turn = abs(float((mesh[_TIP] - start) @ axis) / length - 0.5)
    return turn, abs(float(np.degrees(np.arctan2(axis[1], axis[0]))))
