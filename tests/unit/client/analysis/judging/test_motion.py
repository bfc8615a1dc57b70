"""A picture on the wall is told from a person, whatever the camera does."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from media import astronaut
from numpy.typing import NDArray

from deepfake_client.analysis.judging.motion import MIN_PATCHES, moves, patch_of
from deepfake_preprocess.faces.detector import Face
from deepfake_preprocess.media.frame import ArrayFrame

COUNT = 14
CAMERAS = ("still", "pan", "zoom", "shake")


def face_picture(side: int, number: int, *, alive: bool) -> NDArray[np.uint8]:
    """The astronaut's face, `side` pixels wide; alive, its mouth region and eyes move as in speech."""
    portrait = cv2.resize(astronaut()[40:240, 125:325], (2 * side, 2 * side), interpolation=cv2.INTER_AREA)
    if not alive:
        return np.asarray(portrait, np.uint8)
    y, x = np.mgrid[: 2 * side, : 2 * side].astype(np.float32)
    near = np.exp(-(((x - side) / (0.3 * side)) ** 2) - ((y - 1.1 * side) / (0.3 * side)) ** 2)
    moved = 0.06 * side * np.sin(1.7 * number)
    return np.asarray(cv2.remap(portrait, x, y + (near * moved).astype(np.float32), cv2.INTER_LINEAR), np.uint8)


def patches(side: int, *, alive: bool, camera: str, blur: float = 0.0, noise: float = 2.0) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    wall = cv2.resize(rng.integers(90, 170, (9, 16, 3), dtype=np.uint8), (640, 360), interpolation=cv2.INTER_CUBIC)
    result = []
    for number in range(COUNT):
        image = wall.copy()
        picture = face_picture(side, number, alive=alive)
        if blur:
            picture = cv2.GaussianBlur(picture, (0, 0), blur * side)
        image[60 : 60 + 2 * side, 300 : 300 + 2 * side] = picture
        center, scale, shift = np.array([300.0 + side, 60.0 + side]), 1.0, np.zeros(2)
        if camera == "pan":
            shift = np.array([4.0, 1.5]) * number
        elif camera == "zoom":
            scale = 1 + 0.02 * number
        elif camera == "shake":
            shift = rng.normal(0, 4, 2)
        to_screen = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        image = cv2.warpAffine(image, to_screen, (640, 360), borderMode=cv2.BORDER_REFLECT)
        image = np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)
        x, y = center * scale + shift + rng.normal(0, 0.04 * side, 2)  # detectors are not exact
        reach = side * scale / 2
        face = Face(np.array([x - reach, y - reach, x + reach, y + reach], np.float32), 0.99)
        frame = ArrayFrame.from_rgb(image)
        result.append(patch_of(frame, frame.to_rgb((320, 180)), face))
    return result


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("side", [36, 90])
def test_a_picture_never_moves_by_itself_and_a_person_does(side: int, camera: str) -> None:
    assert moves(patches(side, alive=False, camera=camera), side) is False
    assert moves(patches(side, alive=True, camera=camera), side) is True


@pytest.mark.parametrize("camera", CAMERAS)
def test_a_blurred_picture_is_a_picture(camera: str) -> None:
    assert moves(patches(40, alive=False, camera=camera, blur=0.05), 40) is False


def test_somebody_who_passes_in_front_does_not_bring_a_picture_to_life() -> None:
    seen = patches(60, alive=False, camera="still")
    for number in (4, 5):
        seen[number] = seen[number].copy()
        seen[number][:, 20:60] = 40
    assert moves(seen, 60) is False


def test_a_picture_at_the_border_is_a_picture() -> None:
    seen = patches(60, alive=False, camera="still")
    for patch in seen:
        patch[:, :25] = 0
    assert moves(seen, 60) is False


def test_a_head_that_moves_in_front_of_the_wall_moves() -> None:
    rng = np.random.default_rng(1)
    wall = cv2.resize(rng.integers(40, 220, (45, 80, 3), dtype=np.uint8), (640, 360), interpolation=cv2.INTER_CUBIC)
    seen = []
    for number in range(COUNT):
        image, x = wall.copy(), 250 + 9 * (number % 5)
        head = cv2.resize(astronaut()[60:220, 160:290], (52, 64), interpolation=cv2.INTER_AREA)
        image[100:164, x : x + 52] = head
        frame = ArrayFrame.from_rgb(image)
        seen.append(patch_of(frame, frame.to_rgb(), Face(np.array([x, 100, x + 52, 164], np.float32), 0.99)))
    assert moves(seen, 64) is True


def test_of_few_frames_nothing_is_said() -> None:
    still, alive = (patches(60, alive=alive, camera="still") for alive in (False, True))
    assert moves(alive[: MIN_PATCHES - 1], 60) is None
    assert moves(still[:MIN_PATCHES], 60) is None
    assert moves(alive[:MIN_PATCHES], 60) is True
