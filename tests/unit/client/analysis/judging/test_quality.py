"""Faces that a score cannot be trusted on count less, ordinary ones count in full, and the reason is named."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import pytest
from media import astronaut

from deepfake_client.analysis.following.appearance import face_colors, likeness, picture_colors
from deepfake_client.analysis.judging.quality import assess, blur, pose_deg
from deepfake_client.result.verdict import Concern
from deepfake_preprocess.contract.spec import Crop, ModelSpec
from deepfake_preprocess.faces.crop import crop_face
from deepfake_preprocess.faces.detector import Face
from deepfake_preprocess.faces.mtcnn import MtcnnDetector
from deepfake_preprocess.media.frame import ArrayFrame

SPEC = ModelSpec(name="test", architecture="timm:efficientnet_b0")


def found(image: np.ndarray) -> list[Face]:
    return MtcnnDetector().detect([image])[0]


@cache
def astronauts_face() -> Face:
    return found(astronaut())[0]


def quality_of(image: np.ndarray, face: Face, spec: ModelSpec = SPEC) -> tuple[float, tuple[Concern, ...]]:
    frame = ArrayFrame.from_rgb(image)
    result = assess(face, crop_face(frame, face, spec), (frame.width_px, frame.height_px), spec)
    return result.weight, result.concerns


def scaled(factor: float) -> tuple[np.ndarray, Face]:
    size = round(512 * factor)
    image = cv2.resize(astronaut(), (size, size), interpolation=cv2.INTER_AREA)
    return image, astronauts_face().scaled(size / 512, size / 512)


@pytest.mark.parametrize("factor", [0.6, 0.8, 1.0, 2.0, 4.0])
def test_an_ordinary_face_counts_in_full_at_any_resolution(factor: float) -> None:
    assert quality_of(*scaled(factor)) == (1.0, ())


def test_a_face_of_few_pixels_counts_less_and_then_not_at_all() -> None:
    weight, concerns = quality_of(*scaled(0.3))
    assert 0 < weight < 1
    assert concerns == (Concern.TINY,)
    assert quality_of(*scaled(0.15))[0] == 0


def test_what_is_tiny_depends_on_the_networks_input() -> None:
    large = ModelSpec(name="test", architecture="timm:efficientnet_b7", input_height_px=600, input_width_px=600)
    assert quality_of(*scaled(1.0))[0] == 1
    assert Concern.TINY in quality_of(*scaled(1.0), large)[1]


def test_blur_is_noticed_relative_to_the_face_and_not_before_it_hides_detail() -> None:
    face = astronauts_face()
    side = face.height_px
    weights = [
        quality_of(np.asarray(cv2.GaussianBlur(astronaut(), (0, 0), side * share)), face)
        for share in (1 / 128, 1 / 24, 1 / 12)
    ]
    assert weights[0] == (1.0, ())
    assert weights[1][0] < 1
    assert weights[1][1] == (Concern.BLURRED,)
    assert weights[2][0] == 0


@pytest.mark.parametrize("gain", [0.3, 1.0])
def test_blur_does_not_depend_on_contrast(gain: float) -> None:
    image = (astronaut()[60:210, 170:280] * gain + 40 * (1 - gain)).astype(np.uint8)
    assert blur(image) == pytest.approx(blur(astronaut()[60:210, 170:280]), abs=0.02)


def test_nothing_is_said_of_the_sharpness_of_a_plain_surface() -> None:
    assert blur(np.full((90, 90, 3), 128, np.uint8)) == 0


def turned(yaw_deg: float = 0, pitch_deg: float = 0, roll_deg: float = 0) -> np.ndarray:
    """The five points of a head model, turned and projected; right, down, towards the camera."""
    points = np.array([[-160, -170, -135], [160, -170, -135], [0, 0, 0], [-150, 150, -125], [150, 150, -125]], float)
    yaw, pitch, roll = np.radians([yaw_deg, pitch_deg, roll_deg])
    about_y = [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
    about_x = [[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]]
    about_z = [[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]]
    return (points @ np.transpose(about_y) @ np.transpose(about_x) @ np.transpose(about_z))[:, :2].astype(np.float32)


@pytest.mark.parametrize("angle", [-60, -40, -20, 0, 20, 40, 60])
def test_the_pose_of_a_head_model_is_recovered(angle: float) -> None:
    assert pose_deg(turned(yaw_deg=angle)) == pytest.approx((angle, 0, 0), abs=3)
    assert pose_deg(turned(pitch_deg=angle)) == pytest.approx((0, angle, 0), abs=5)
    assert pose_deg(turned(roll_deg=angle)) == pytest.approx((0, 0, angle), abs=3)


@pytest.mark.parametrize(
    ("angles", "weight"),
    [
        ({"yaw_deg": 40}, 1.0),
        ({"yaw_deg": 56}, 0.45),
        ({"yaw_deg": -75}, 0.0),
        ({"pitch_deg": 70}, 0.0),
        ({"roll_deg": 30}, 1.0),
        ({"roll_deg": 180}, 0.0),
    ],
)
def test_faces_that_are_turned_far_away_count_less(angles: dict[str, float], weight: float) -> None:
    face = astronauts_face()
    turned_face = Face(face.box_xyxy, 1.0, turned(**angles) / 5 + 220)
    result, concerns = quality_of(astronaut(), turned_face)
    assert result == pytest.approx(weight, abs=0.1)
    assert concerns == ((Concern.EXTREME_POSE,) if weight < 1 else ())


def test_a_crop_that_is_turned_upright_has_no_roll() -> None:
    aligned = ModelSpec(name="test", architecture="timm:efficientnet_b0", crop=Crop(align="eyes"))
    face = Face(astronauts_face().box_xyxy, 1.0, turned(roll_deg=70) / 5 + 220)
    assert quality_of(astronaut(), face)[1] == (Concern.EXTREME_POSE,)
    assert Concern.EXTREME_POSE not in quality_of(astronaut(), face, aligned)[1]


def test_landmarks_that_no_face_has_are_an_extreme_pose_and_missing_ones_are_none() -> None:
    box = astronauts_face().box_xyxy
    upside_down = np.array([[0, 100], [50, 100], [25, 50], [0, 0], [50, 0]], dtype=np.float32)
    assert quality_of(astronaut(), Face(box, 1.0, upside_down))[0] == 0
    assert quality_of(astronaut(), Face(box, 1.0, np.zeros((5, 2), np.float32)))[0] == 0
    assert quality_of(astronaut(), Face(box, 1.0)) == (1.0, ())


def test_a_face_that_leaves_the_picture_counts_by_what_is_seen_of_it() -> None:
    face = astronauts_face()
    width = face.width_px
    left = float(face.box_xyxy[0])
    results = [
        quality_of(astronaut()[:, round(left + width * hidden) :].copy(), moved(face, left + width * hidden))
        for hidden in (0.1, 0.35, 0.6)
    ]
    assert results[0] == (1.0, ())
    assert results[1][0] == pytest.approx(0.5, abs=0.1)
    assert results[1][1] == (Concern.CUT_OFF,)
    assert results[2][0] == 0


def moved(face: Face, by_px: float) -> Face:
    return Face((face.box_xyxy - np.array([by_px, 0, by_px, 0])).astype(np.float32), face.confidence)


def test_colors_tell_pictures_apart_and_survive_movement_and_light() -> None:
    image = astronaut()
    assert likeness(picture_colors(image), picture_colors(image[:, ::-1])) > 0.95
    assert likeness(picture_colors(image), picture_colors(np.roll(image, 40, axis=1))) > 0.95
    assert likeness(picture_colors(image), picture_colors(image[..., ::-1].copy())) < 0.7
    face = image[60:210, 170:280]
    assert likeness(face_colors(face), face_colors((face * 0.8).astype(np.uint8))) > 0.7
    assert likeness(face_colors(face), face_colors(face[..., ::-1].copy())) < 0.5
