import numpy as np
import pytest

from deepfake_preprocess.faces.boxes import iou


def box(*sides):
    return np.array(sides, dtype=np.float32)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (box(0, 0, 10, 10), 1.0),
        (box(5, 0, 15, 10), 1 / 3),
        (box(2, 2, 4, 4), 0.04),
        (box(10, 0, 20, 10), 0.0),
        (box(50, 50, 60, 60), 0.0),
        (box(5, 5, 5, 5), 0.0),
    ],
    ids=["same", "half a side to the right", "inside", "touching", "far away", "a point"],
)
def test_iou_is_the_shared_area_over_the_covered_area(other, expected):
    first = box(0, 0, 10, 10)
    assert iou(first, other) == pytest.approx(expected)
    assert iou(other, first) == pytest.approx(expected)
