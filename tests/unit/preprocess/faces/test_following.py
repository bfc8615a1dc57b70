"""Following faces saves detections, and never at the price of a face that is lost, hidden or new."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from media import astronaut, write_video

from deepfake_client import AnalyzeOptions, DeepfakeClient, Sampling
from deepfake_client.transport.testing import FakeTransport
from deepfake_preprocess.faces.detector import Face, FaceDetector, FaceFollower
from deepfake_preprocess.faces.following import DETECT_EVERY, MAX_GAP_S, Sighting, find_faces
from deepfake_preprocess.faces.mtcnn import MtcnnDetector

SIZE_WH = (455, 256)
# The head of skimage's picture, and the face in it, in pixels of the cut.
HEAD = astronaut()[0:260, 90:350]
FACE_XYXY = np.array([87, 63, 181, 187])


class Counting:
    """MTCNN, with a count of what it was asked for."""

    def __init__(self) -> None:
        self.inner = MtcnnDetector()
        self.detected = self.followed = 0
        self.detection_size_wh = self.inner.detection_size_wh

    def detect(self, images_rgb):
        self.detected += 1
        return self.inner.detect(images_rgb)

    def follow(self, image_rgb, faces):
        self.followed += 1
        return self.inner.follow(image_rgb, faces)


class DetectorOnly:
    """Somebody else's detector, which cannot follow."""

    def __init__(self, inner: Counting) -> None:
        self.detect, self.detection_size_wh = inner.detect, inner.detection_size_wh


@pytest.fixture(scope="module")
def mtcnn() -> Counting:
    return Counting()


@pytest.fixture
def detector(mtcnn: Counting) -> Counting:
    mtcnn.detected = mtcnn.followed = 0
    return mtcnn


def scene(*places: tuple[int, int, float], gray: int = 128) -> np.ndarray:
    """Heads on gray; each place is x, y and scale, and later ones hide earlier ones."""
    picture = np.full((SIZE_WH[1], SIZE_WH[0], 3), gray, dtype=np.uint8)
    for x, y, scale in places:
        head = cv2.resize(HEAD, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        picture[y : y + head.shape[0], x : x + head.shape[1]] = head
    return picture


def faint(picture: np.ndarray) -> np.ndarray:
    """A third of the contrast, so that what moves, comes or goes changes the picture little."""
    return (picture // 3 + 85).astype(np.uint8)


def look(detector: FaceDetector, pictures: list[np.ndarray], step_s: float = 0.2) -> list[Sighting]:
    """Detect in the first picture and follow from each to the next."""
    sightings: list[Sighting] = []
    for number, picture in enumerate(pictures):
        sightings.append(find_faces(detector, picture, number * step_s, sightings[-1] if sightings else None))
    return sightings


def assert_at(sighting: Sighting, *places: tuple[int, int, float]) -> None:
    assert len(sighting.faces) == len(places)
    for x, y, scale in places:
        expected = FACE_XYXY * scale + np.array([x, y, x, y])
        off = min(float(np.abs(face.box_xyxy - expected).max()) for face in sighting.faces)
        assert off < 0.25 * scale * 94, (off, sighting.faces)


def test_mtcnn_can_follow():
    assert isinstance(MtcnnDetector(), FaceFollower)


def test_moving_faces_are_followed_without_detection(detector):
    paths = [[(40 + 5 * step, 40, 0.4), (250, 40 + 4 * step, 0.3 + 0.01 * step)] for step in range(6)]
    sightings = look(detector, [faint(scene(*places)) for places in paths])
    for sighting, places in zip(sightings, paths, strict=True):
        assert_at(sighting, *places)
        confidences = [face.confidence for face in sighting.faces]
        assert confidences == sorted(confidences, reverse=True)
    assert (detector.detected, detector.followed) == (1, 5)


def test_followed_faces_are_where_detection_finds_them(detector):
    pictures = [scene((60, 30, 0.7)), scene((72, 36, 0.7))]
    followed = look(detector, pictures)[1].faces[0]
    (detected,) = detector.detect([pictures[1]])[0]
    np.testing.assert_allclose(followed.box_xyxy, detected.box_xyxy, atol=0.06 * 0.7 * 94)
    np.testing.assert_allclose(followed.landmarks_xy, detected.landmarks_xy, atol=0.04 * 0.7 * 94)


def test_a_lost_face_makes_all_be_detected(detector):
    both, one = [(40, 40, 0.6), (250, 40, 0.3)], [(40, 40, 0.6)]
    sightings = look(detector, [faint(scene(*both)), faint(scene(*one)), faint(scene(*one))])
    assert_at(sightings[1], *one)
    assert_at(sightings[2], *one)
    assert (detector.detected, detector.followed) == (2, 2)


def test_a_face_that_leaps_is_found(detector):
    first, second = (40, 40, 0.5), (260, 90, 0.5)
    assert_at(look(detector, [scene(first), scene(second)])[1], second)
    assert detector.detected == 2


def test_of_two_faces_in_one_place_one_is_left_and_the_other_comes_back(detector):
    """The right one passes before the left one."""
    paths = [[(60, 40, 0.6), (60 + gap, 40, 0.6)] for gap in (150, 120, 90, 60, 30, 4, 30, 60, 90, 120)]
    sightings = look(detector, [scene(*places) for places in paths])
    assert_at(sightings[0], *paths[0])
    assert_at(sightings[5], paths[5][1])
    for sighting in sightings:
        centers = [face.box_xyxy[:2] for face in sighting.faces]
        assert all(np.abs(a - b).max() > 10 for n, a in enumerate(centers) for b in centers[:n])
    # Detection, which comes every few frames, sees both again; following the one left could not.
    assert_at(find_faces(detector, scene(*paths[-1]), 9.0, None), *paths[-1])


@pytest.mark.parametrize(
    ("before", "after", "step_s"),
    [
        pytest.param(scene((40, 40, 0.6)), scene((40, 40, 0.6), (240, 40, 0.8), gray=190), 0.2, id="cut"),
        pytest.param(scene(), scene((40, 40, 0.6)), 0.2, id="nobody before"),
        pytest.param(scene((40, 40, 0.6)), scene((40, 40, 0.6)), MAX_GAP_S * 1.1, id="long pause"),
        pytest.param(scene((40, 40, 0.6)), scene((40, 40, 0.6))[:200], 0.2, id="another size"),
    ],
)
def test_detects_where_following_is_not_safe(detector, before, after, step_s):
    sighting = look(detector, [before, after], step_s)[1]
    # Where nobody is seen, the turned picture is tried in three ways.
    assert (detector.detected, detector.followed) in {(2, 0), (5, 0)}
    assert len(sighting.faces) == len(detector.detect([after])[0]) > 0


def test_a_new_face_is_found_with_the_next_detection(detector):
    """Through the client: it comes with frame 2, and frame `DETECT_EVERY` detects."""
    old, new = (faint(scene((40, 40, 0.6), *more)) for more in ([], [(300, 150, 0.3)]))
    pictures = [old if number < 2 else new for number in range(2 * DETECT_EVERY)]
    counts = faces_per_frame(detector, pictures)
    assert counts[:2] == [1, 1]
    assert set(counts[DETECT_EVERY:]) == {2}
    assert detector.detected == 2


def test_a_new_face_that_stands_out_is_found_at_once(detector):
    old, new = (40, 40, 0.6), (300, 150, 0.3)
    assert_at(look(detector, [scene(old), scene(old, new)])[1], old, new)
    assert (detector.detected, detector.followed) == (2, 0)


def test_a_detector_that_cannot_follow_detects_every_frame(detector):
    pictures = [scene((40, 40, 0.6))] * 6
    assert faces_per_frame(DetectorOnly(detector), pictures) == [1] * 6
    assert (detector.detected, detector.followed) == (6, 0)


def faces_per_frame(detector, pictures):
    """Analyze a clip of these pictures, all of them sampled, and return how many faces each frame has."""
    with DeepfakeClient(FakeTransport(), detector=detector, detect_threads=2) as client:
        verdict = client.analyze(
            clip_of(pictures), options=AnalyzeOptions(sampling=Sampling(num_frames=len(pictures)))
        )
    return [len(frame.faces) for frame in verdict.frames]


def clip_of(pictures):
    content = io.BytesIO()
    write_video(content, [picture[:, :454] for picture in pictures], fps=10, container_format="matroska")
    return content.getvalue()


@pytest.mark.parametrize(("turns", "roll"), [(1, -90), (2, 180), (3, 90)])
def test_faces_of_a_picture_that_lies_are_found_with_their_roll(turns: int, roll: int) -> None:
    detector = MtcnnDetector()
    upright = np.ascontiguousarray(cv2.resize(astronaut(), (256, 256), interpolation=cv2.INTER_AREA))
    (expected,) = find_faces(detector, upright, 0.0, None).faces
    (found,) = find_faces(detector, np.ascontiguousarray(np.rot90(upright, turns)), 0.0, None).faces
    assert found.roll_deg is not None
    assert abs((found.roll_deg - roll + 180) % 360 - 180) < 15
    back = found.turned(-turns, (256, 256))
    assert np.abs(back.box_xyxy - expected.box_xyxy).max() < 10
    assert back.landmarks_xy is not None
    assert expected.landmarks_xy is not None
    assert np.abs(back.landmarks_xy - expected.landmarks_xy).max() < 10


def test_four_quarter_turns_are_none() -> None:
    points = np.array([[10, 20], [30, 22], [20, 30], [12, 40], [28, 41]], np.float32)
    face = Face(np.array([5, 10, 40, 50], np.float32), 0.9, points)
    turned = face.turned(1, (100, 60))
    assert turned.box_xyxy.tolist() == [10, 60, 50, 95]
    assert turned.landmarks_xy is not None
    assert turned.landmarks_xy[0].tolist() == [20, 90]
    assert turned.turned(3, (60, 100)).box_xyxy.tolist() == face.box_xyxy.tolist()


class Unsure:
    """Finds one upright face with the confidences that it is told, and counts how often it looks."""

    def __init__(self, *confidences: float) -> None:
        self.confidences, self.detected = list(confidences), 0

    def detection_size_wh(self, width_px: int, height_px: int) -> tuple[int, int]:
        return width_px, height_px

    def detect(self, images_rgb):
        self.detected += 1
        upright = np.array([[30, 40], [50, 40], [40, 50], [32, 60], [48, 60]], np.float32)
        sideways = images_rgb[0].shape != (90, 160, 3)
        box = np.array([20, 20, 60, 70], np.float32)
        return [[Face(box, 0.5 if sideways else self.confidences.pop(0), upright)] for _ in images_rgb]


def test_a_picture_turned_in_vain_is_not_turned_again_until_its_face_is_lost() -> None:
    picture = np.zeros((90, 160, 3), np.uint8)
    # Turned upside down, it has its shape again: that detection takes the second confidence.
    detector = Unsure(0.98, 0.5, 0.97, 0.98, 0.6, 0.5)
    first = find_faces(detector, picture, 0.0, None)
    assert detector.detected == 4
    assert first.turned_in_vain
    second = find_faces(detector, picture, 0.1, first)
    third = find_faces(detector, picture, 0.2, second)
    assert detector.detected == 6, "as unsure as before"
    find_faces(detector, picture, 0.3, third)
    assert detector.detected == 10, "nearly lost"
