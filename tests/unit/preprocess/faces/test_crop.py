import tracemalloc

import cv2
import media
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_preprocess.contract.spec import Crop, ModelSpec
from deepfake_preprocess.faces.crop import crop_face
from deepfake_preprocess.faces.detector import Face
from deepfake_preprocess.media.frame import ArrayFrame


def spec(width=64, height=64, margin=0.0, align="none"):
    crop = Crop(margin, align)
    return ModelSpec("m", "timm:m", input_width_px=width, input_height_px=height, crop=crop)


def face(left, top, right, bottom, eyes=None):
    landmarks = None
    if eyes is not None:
        landmarks = np.array([*eyes, (0, 0), (0, 0), (0, 0)], dtype=np.float32)
    return Face(np.array([left, top, right, bottom], dtype=np.float32), 0.9, landmarks)


def painted(left, top, right, bottom, size_wh=(640, 480)):
    """Gray, with a white rectangle."""
    image = np.full((size_wh[1], size_wh[0], 3), 50, dtype=np.uint8)
    image[top:bottom, left:right] = 255
    return ArrayFrame.from_rgb(image)


def white_box(crop):
    """Left, top, right, bottom of what is white."""
    rows, columns = np.nonzero(crop[..., 0] > 150)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_without_margin_the_box_fills_the_crop():
    crop = crop_face(painted(200, 100, 328, 228), face(200, 100, 328, 228), spec())
    assert (crop.shape, crop.dtype, crop.flags.c_contiguous) == ((64, 64, 3), np.uint8, True)
    assert (crop == 255).all()


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_margin_is_a_share_of_the_longer_side_on_each_side(size):
    # 100 + 2 * 50 = 200 pixels: the square takes the middle half.
    crop = crop_face(painted(200, 100, 300, 200), face(200, 100, 300, 200), spec(size, size, margin=0.5))
    assert white_box(crop) == (size // 4, size // 4, size * 3 // 4, size * 3 // 4)


def test_the_longer_side_decides_and_the_center_stays():
    crop = crop_face(painted(200, 100, 264, 228), face(200, 100, 264, 228), spec(128, 128))
    assert white_box(crop) == (32, 0, 96, 128)


@pytest.mark.parametrize(("width", "height", "box"), [(128, 64, (32, 0, 96, 64)), (64, 128, (0, 32, 64, 96))])
def test_other_aspect_ratios_see_more_and_do_not_stretch(width, height, box):
    crop = crop_face(painted(200, 100, 328, 228), face(200, 100, 328, 228), spec(width, height))
    assert crop.shape == (height, width, 3)
    assert white_box(crop) == box


def test_same_size_is_a_plain_cut():
    image = media.picture(300, 300)
    crop = crop_face(ArrayFrame.from_rgb(image), face(50, 60, 114, 124), spec())
    np.testing.assert_array_equal(crop, image[60:124, 50:114])


def test_shrinking_averages():
    image = np.zeros((256, 256, 3), dtype=np.uint8)
    image[::2] = 200
    crop = crop_face(ArrayFrame.from_rgb(image), face(0, 0, 256, 256), spec())
    assert (crop == 100).all()


@pytest.mark.parametrize(
    ("box", "black"),
    [
        ((-64, 0, 64, 128), np.s_[:, :32]),
        ((0, -64, 128, 64), np.s_[:32]),
        ((576, 0, 704, 128), np.s_[:, 32:]),
        ((0, 416, 128, 544), np.s_[32:]),
        ((-500, -500, -372, -372), np.s_[:]),
    ],
    ids=str,
)
def test_outside_the_picture_is_black(box, black):
    crop = crop_face(painted(0, 0, 640, 480), face(*box), spec())
    mask = np.zeros((64, 64), dtype=bool)
    mask[black] = True
    assert (crop[mask] == 0).all()
    assert (crop[~mask] == 255).all()


@pytest.mark.parametrize("degrees", [-60, -20, 5, 30, 90])
@pytest.mark.parametrize("size", [32, 64, 200])
def test_eyes_come_out_level_and_where_they_must(degrees, size):
    angle = np.deg2rad(degrees)
    center = np.array([320.0, 240.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # Two discs, 25 px left and right of the center and 20 px above it, in a face turned by `degrees`.
    eyes = [center + turn @ np.array([x, -20.0]) for x in (-25.0, 25.0)]
    yy, xx = np.mgrid[:480, :640] + 0.5
    image = np.zeros((480, 640, 3), dtype=np.uint8)
    for x, y in eyes:
        image[np.hypot(xx - x, yy - y) < 6] = 255
    found = face(270, 190, 370, 290, eyes=eyes)
    crop = crop_face(ArrayFrame.from_rgb(image), found, spec(size, size, margin=0.25, align="eyes"))
    scale = size / 150
    for half, sign in ((np.s_[:, : size // 2], -1), (np.s_[:, size // 2 :], 1)):
        rows, columns = np.mgrid[:size, :size] + 0.5
        weight = crop[half][..., 0].astype(float)
        seen = [(axis[half] * weight).sum() / weight.sum() for axis in (columns, rows)]
        np.testing.assert_allclose(seen, [size / 2 + sign * 25 * scale, size / 2 - 20 * scale], atol=0.3)


@pytest.mark.parametrize("eyes", [None, [(10, 10), (10, 10)], [(np.nan, 1), (2, 3)], [(20, 30), (60, 30)]], ids=str)
def test_alignment_without_use_is_the_upright_cut(eyes):
    frame = ArrayFrame.from_rgb(media.picture(300, 300))
    upright = crop_face(frame, face(50, 60, 200, 210), spec(margin=0.3))
    aligned = crop_face(frame, face(50, 60, 200, 210, eyes=eyes), spec(margin=0.3, align="eyes"))
    np.testing.assert_array_equal(aligned, upright)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.floats(-3000, 3000, width=32)] * 2, *[st.floats(0, 5000, width=32)] * 2),
    st.sampled_from(["none", "eyes"]),
    st.sampled_from([(16, 16), (64, 48), (48, 64)]),
)
def test_any_box_gives_a_crop(box, align, size_wh):
    left, top, width, height = box
    found = face(left, top, left + width, top + height, eyes=[(left, top), (left + width, top + height)])
    frame = ArrayFrame.from_rgb(media.picture(120, 90))
    crop = crop_face(frame, found, spec(*size_wh, margin=0.3, align=align))
    assert (crop.shape, crop.dtype, crop.flags.c_contiguous) == ((size_wh[1], size_wh[0], 3), np.uint8, True)


def test_boxes_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="must be finite"):
        crop_face(painted(0, 0, 9, 9), face(0, 0, np.nan, 4), spec())


@pytest.mark.parametrize("degrees", [15, 30, 75])
def test_a_head_rolled_far_is_cut_upright_and_one_rolled_little_as_it_is(degrees):
    """A bar along the eye line is level in the crop, or as slanted as it was."""
    image = np.full((400, 400, 3), 50, dtype=np.uint8)
    turn = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    left, right = (200 - 60 * turn, 200 + 60 * turn)
    cv2.line(image, tuple(left.astype(int).tolist()), tuple(right.astype(int).tolist()), (255, 255, 255), 8)
    crop = crop_face(ArrayFrame.from_rgb(image), face(100, 100, 300, 300, eyes=(left, right)), spec(128, 128))
    x0, y0, x1, y1 = white_box(crop)
    slope = np.degrees(np.arctan2(y1 - y0 - 5, x1 - x0))
    assert slope == pytest.approx(15 if degrees == 15 else 0, abs=4)


def test_the_eye_line_of_a_face_in_profile_says_nothing():
    image = painted(200, 100, 328, 228)
    profile = face(200, 100, 328, 228, eyes=((260, 150), (268, 158)))
    assert np.array_equal(crop_face(image, profile, spec()), crop_face(image, face(200, 100, 328, 228), spec()))


@pytest.mark.parametrize("eyes", [None, ((0, 15_000), (2, 25_000))])
def test_a_box_as_long_as_a_strip_takes_little_memory(eyes):
    """The cut is a square of 64,000 pixels, of which the picture is a line in the middle."""
    image = np.full((40_000, 3, 3), 255, dtype=np.uint8)
    tracemalloc.start()
    crop = crop_face(ArrayFrame.from_rgb(image), face(0, 0, 3, 40_000, eyes), spec(margin=0.3, align="eyes"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500e6
    assert crop.shape == (64, 64, 3)
    across = crop.any(axis=(0 if eyes is None else 1, 2))  # the eyes are one above the other: it lies down
    assert across[24:40].any()
    assert not across[:20].any()
    assert not across[44:].any()
