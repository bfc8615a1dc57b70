import numpy as np
import pytest
from fixed_detector import LEFT, RIGHT, FixedDetector

from deepfake_preprocess.faces.detector import Face, detection_image, faces_in, faces_in_frame
from deepfake_preprocess.media.frame import ArrayFrame


@pytest.fixture
def frame():
    return ArrayFrame.from_rgb(np.zeros((60, 100, 3), dtype=np.uint8))


def test_a_detector_sees_the_size_it_asks_for_and_faces_come_back_in_pixels_of_the_frame(frame):
    detector = FixedDetector(LEFT, RIGHT)
    assert detection_image(frame, detector).shape == (30, 50, 3)
    left, right = faces_in(frame, detector)
    np.testing.assert_allclose(left.box_xyxy, [10, 12, 40, 48], rtol=1e-6)
    np.testing.assert_allclose(right.box_xyxy, [60, 12, 90, 48], rtol=1e-6)


def test_landmarks_go_back_to_the_frame_with_their_face(frame):
    points = np.arange(10, dtype=np.float32).reshape(5, 2)
    found = Face(np.array([1, 2, 3, 4], np.float32), 0.8, points)
    (face,) = faces_in_frame(frame, np.zeros((15, 20, 3), np.uint8), [found])
    np.testing.assert_allclose(face.landmarks_xy, points * np.array([5, 4]))
    assert face.confidence == 0.8
