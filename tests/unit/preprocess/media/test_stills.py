"""Picture files: made of tiles, animated, and of the kinds that OpenCV reads."""

import io
import struct
import zlib

import cv2
import heif
import media
import numpy as np
import pytest

from deepfake_preprocess.errors import MediaOpenError
from deepfake_preprocess.media.opening import open_file, open_media
from deepfake_preprocess.media.sampling import Sampling
from deepfake_preprocess.media.video import Video

CLAP = heif.box("clap", struct.pack(">8i", 100, 1, 80, 1, -20, 1, 10, 1))


def only(data):
    with open_media(data) as still:
        (frame,) = still.frames()
        assert still.kind == "image"
        assert (frame.width_px, frame.height_px) == (still.width_px, still.height_px)
        return frame.to_rgb()


def near(image, expected):
    return image.shape == expected.shape and np.abs(image.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("size_wh", [(256, 128), (200, 150), (128, 128)])
def test_tiles_make_one_picture(size_wh):
    picture = media.picture(*size_wh)
    assert near(only(heif.write_grid(picture, 128)), picture)


@pytest.mark.parametrize(
    ("properties", "shown"),
    [
        ([heif.box("irot", b"\1")], lambda image: np.rot90(image)),
        ([heif.box("irot", b"\3")], lambda image: np.rot90(image, -1)),
        ([heif.box("imir", b"\0")], lambda image: image[::-1]),
        ([heif.box("imir", b"\1")], lambda image: image[:, ::-1]),
        ([CLAP], lambda image: image[45:125, 30:130]),
        ([CLAP, heif.box("irot", b"\1")], lambda image: np.rot90(image[45:125, 30:130])),
    ],
)
def test_the_whole_is_cropped_and_turned(properties, shown):
    picture = media.picture(200, 150)
    assert near(only(heif.write_grid(picture, 128, properties=properties)), shown(picture))


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"kind": "iovl"}, r"kind that is not read \('iovl' item\)"),
        ({"tiles_left_out": 1}, r"do not fit together|cannot be read"),
    ],
)
def test_what_is_not_read_whole_is_refused_in_one_sentence(odd, message):
    data = heif.write_grid(media.picture(256, 128), 128, **odd)
    with pytest.raises(MediaOpenError, match=message):
        open_media(data)


def test_a_tile_that_is_missing_from_the_file_is_missed():
    data = heif.write_grid(media.picture(256, 128), 128)
    with pytest.raises(MediaOpenError, match=r"missing or damaged|cannot be read"):
        open_media(data[:-3000])


@pytest.mark.parametrize("ending", ["avif", "bmp", "tiff", "jp2"])
def test_pictures_of_other_kinds(ending):
    picture = media.picture(200, 120)
    assert near(only(cv2.imencode(f".{ending}", picture[..., ::-1])[1].tobytes()), picture)


def test_sizes_are_checked_before_pixels_are_decoded():
    bmp = bytearray(cv2.imencode(".bmp", np.zeros((2, 2, 3), np.uint8))[1].tobytes())
    struct.pack_into("<ii", bmp, 18, 50_000, 50_000)
    with pytest.raises(MediaOpenError, match="50000x50000 pixels"):
        open_media(bytes(bmp))


def test_what_opencv_cannot_read_is_refused():
    with pytest.raises(MediaOpenError, match=r"damaged or cut short|cannot be read"):
        open_media(b"\xff\x0a" + bytes(100))


def animation(ending, count=6):
    moving = cv2.Animation()
    moving.frames = [np.ascontiguousarray(image[..., ::-1]) for image in media.numbered_pictures(160, 96, count)]
    moving.durations = [80] * count
    done, data = cv2.imencodeanimation(f".{ending}", moving)
    assert done
    return data.tobytes()


@pytest.mark.parametrize("ending", ["webp", "png", "gif"])
def test_all_pictures_of_an_animation_are_seen(ending):
    with open_media(animation(ending)) as opened:
        assert opened.kind == "video"
        for _ in range(2):
            frames = list(opened.frames(Sampling(32)))
            assert [media.read_number(frame.to_rgb()) for frame in frames] == list(range(6))
            assert [frame.pts_seconds for frame in frames] == pytest.approx([0.08 * n for n in range(6)], abs=0.011)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_the_picture_before_an_animation_is_seen_too():
    moving = animation("png", 2)
    chunks, position = [], 8
    while position < len(moving):
        length = int.from_bytes(moving[position : position + 4])
        chunks.append((moving[position + 4 : position + 8], moving[position + 8 : position + 8 + length]))
        position += 12 + length
    (control,) = [data for kind, data in chunks if kind == b"fcTL"][1:]
    (frame,) = [data for kind, data in chunks if kind == b"fdAT"]
    header = png_chunk(b"IHDR", chunks[0][1]) + png_chunk(b"acTL", struct.pack(">II", 1, 0))
    hidden = next(data for kind, data in chunks if kind == b"IDAT")
    data = moving[:8] + header + png_chunk(b"IDAT", hidden) + png_chunk(b"fcTL", bytes(4) + control[4:])
    data += png_chunk(b"fdAT", struct.pack(">I", 1) + frame[4:]) + png_chunk(b"IEND", b"")
    with open_media(data) as opened:
        assert next(media.read_number(picture.to_rgb()) for picture in opened.frames()) == 0
        assert len(list(opened.frames())) == 2


def test_jpegs_in_a_row_are_a_video_and_a_jpeg_with_an_appendix_is_not():
    jpegs = [cv2.imencode(".jpg", image[..., ::-1])[1].tobytes() for image in media.numbered_pictures(160, 96, 8)]
    with open_media(io.BytesIO(b"".join(jpegs))) as opened:
        assert [media.read_number(frame.to_rgb()) for frame in opened.frames()] == list(range(8))
    smaller = cv2.imencode(".jpg", media.picture(80, 48))[1].tobytes()
    announced = jpegs[0][:2] + b"\xff\xe2\x00\x06MPF\0" + jpegs[0][2:] + jpegs[1]
    for data in (jpegs[0] + smaller, jpegs[0] + bytes(500), jpegs[0] + b"ftypmp42" * 9, announced):
        assert only(data).shape == (96, 160, 3)


def test_tiles_at_an_address_are_refused_rather_than_taken_for_the_picture():
    data = heif.write_grid(media.picture(256, 128), 128)
    with pytest.raises(MediaOpenError, match="made of tiles and no video"):
        Video(lambda: open_file(io.BytesIO(data), "a.heic"), "a.heic")
