import av
import media
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_preprocess.media.frame import ArrayFrame
from deepfake_preprocess.media.pictures.planar import Orientation, PlanarFrame

FORMATS = [
    "yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuvj444p", "yuv420p10le", "yuv422p10le", "yuv444p10le",
    "yuv420p12le", "nv12", "p010le", "rgb24", "gbrp", "gray", "yuv411p", "yuva420p",
]  # fmt: skip


def planar(pix_fmt, width=256, height=192):
    # Noise on top: a conversion that is off by a pixel must show.
    noise = np.random.default_rng(1).integers(-40, 40, (height, width, 3))
    image = np.clip(media.picture(width, height).astype(int) + noise, 0, 255).astype(np.uint8)
    picture = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
    return PlanarFrame.of(picture, index=3, pts_seconds=0.5, orientation=Orientation())


@pytest.mark.parametrize("size_wh", [(256, 192), (255, 191), (256, 191), (2, 2)], ids=str)
@pytest.mark.parametrize("pix_fmt", FORMATS)
def test_a_region_is_the_slice_of_the_whole(pix_fmt, size_wh):
    frame = planar(pix_fmt, *size_wh)
    whole = frame.to_rgb()
    assert whole.shape == (size_wh[1], size_wh[0], 3)
    rng = np.random.default_rng(2)
    for _ in range(30):
        left, top = rng.integers(0, size_wh[0]), rng.integers(0, size_wh[1])
        right, bottom = rng.integers(left + 1, size_wh[0] + 1), rng.integers(top + 1, size_wh[1] + 1)
        region = frame.region_rgb(int(left), int(top), int(right), int(bottom))
        assert region.flags.c_contiguous
        np.testing.assert_array_equal(region, whole[top:bottom, left:right])


def test_whole_conversion_is_that_of_pyav():
    frame = planar("yuv420p")
    np.testing.assert_array_equal(frame.to_rgb(), frame.picture.to_ndarray(format="rgb24"))


@pytest.mark.parametrize("pix_fmt", FORMATS)
@pytest.mark.parametrize("color_range", [1, 2])
@pytest.mark.parametrize("size_wh", [(101, 76), (127, 95), (127, 96), (191, 128), (100, 75), (257, 193)], ids=str)
def test_scaling_gives_the_pixels_of_swscale_whatever_the_size(pix_fmt, color_range, size_wh):
    frame = planar(pix_fmt)
    frame.picture.color_range = color_range
    width, height = size_wh
    plain = frame.picture.reformat(width=width, height=height, format="rgb24", interpolation="AREA")
    np.testing.assert_array_equal(frame.to_rgb(size_wh), plain.to_ndarray())


@pytest.mark.parametrize("make", [lambda: planar("yuv420p"), lambda: ArrayFrame.from_rgb(media.picture(256, 192))])
def test_scaling_keeps_the_picture(make):
    frame = make()
    small = frame.to_rgb((64, 48))
    assert (small.shape, small.dtype) == ((48, 64, 3), np.uint8)
    assert small.flags.c_contiguous
    blocks = frame.to_rgb().reshape(48, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(small - blocks).mean() < 6


@given(st.tuples(*[st.integers(-5, 15)] * 4))
def test_regions_beyond_the_picture_are_refused(region):
    left, top, right, bottom = region
    image = np.arange(10 * 8 * 3, dtype=np.uint8).reshape(8, 10, 3)
    frame = ArrayFrame.from_rgb(image)
    if 0 <= left < right <= 10 and 0 <= top < bottom <= 8:
        np.testing.assert_array_equal(frame.region_rgb(*region), image[top:bottom, left:right])
    else:
        with pytest.raises(ValueError, match="region must be a part of 10x8"):
            frame.region_rgb(*region)


def test_repr_says_what_it_is():
    assert repr(planar("nv12")) == "PlanarFrame(index=3, pts_seconds=0.500, size=256x192)"


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_array_frames_refuse_other_arrays(image):
    with pytest.raises(ValueError, match=r"must be uint8 \[H, W, 3\] RGB"):
        ArrayFrame.from_rgb(image)
