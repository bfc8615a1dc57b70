"""Videos whose stored pictures are not what a player shows."""

import io
import struct
from fractions import Fraction

import av
import cv2
import media
import numpy as np
import pytest

from deepfake_preprocess.errors import MediaOpenError
from deepfake_preprocess.media.opening import open_media
from deepfake_preprocess.media.pictures.cropping import stated_crop
from deepfake_preprocess.media.pictures.tone import HLG, PQ, to_sdr
from deepfake_preprocess.media.sampling import Sampling


def middle(path):
    """The middle frame of a video, and what was noted."""
    with open_media(path) as opened:
        (frame,) = opened.frames(Sampling(1))
        assert (frame.width_px, frame.height_px) == (opened.width_px, opened.height_px)
        return frame.to_rgb(), opened.stats.notes


def difference(image, other):
    return float(np.abs(image.astype(int) - other).mean())


def rewritten(path, target, bitstream_filter):
    """Copy an H.264 video through one of FFmpeg's bitstream filters."""
    with av.open(str(path)) as source, av.open(str(target), "w") as output:
        stream = source.streams.video[0]
        out = output.add_stream_from_template(stream)
        convert = av.bitstream.BitStreamFilterContext(bitstream_filter, stream, out)
        for packet in source.demux(stream):
            for converted in convert.filter(packet if packet.size else None):
                converted.stream = out
                output.mux(converted)
    return target


@pytest.mark.parametrize(("stored_wh", "sar"), [((108, 240), "80/27"), ((320, 120), "1/2"), ((160, 240), "2/1")])
def test_pixels_become_square(tmp_path, stored_wh, sar):
    whole = media.picture(320, 240)
    stored = cv2.resize(whole, stored_wh, interpolation=cv2.INTER_AREA)
    media.write_video(tmp_path / "a.mp4", [stored] * 5)
    image, _ = middle(rewritten(tmp_path / "a.mp4", tmp_path / "b.mkv", f"h264_metadata=sample_aspect_ratio={sar}"))
    height = stored_wh[1]
    width = round(stored_wh[0] * Fraction(sar))
    assert image.shape == (height, width, 3)
    assert difference(image, cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)) < 8


def test_pixels_that_are_square_but_for_rounding_stay(tmp_path):
    media.write_video(tmp_path / "a.mp4", [media.picture(320, 240)] * 5)
    path = rewritten(tmp_path / "a.mp4", tmp_path / "b.mkv", "h264_metadata=sample_aspect_ratio=404/405")
    assert middle(path)[0].shape == (240, 320, 3)


def test_interlaced_pictures_are_not_combed(tmp_path):
    path = tmp_path / "a.mp4"
    moving = list(media.numbered_pictures(320, 240, 60, moving=True))
    moving = [np.roll(image, 4 * number, axis=1) for number, image in enumerate(moving)]
    woven = [first.copy() for first in moving[::2]]
    for number, image in enumerate(woven):
        image[1::2] = moving[2 * number + 1][1::2]
    media.write_video(path, woven, options={"x264-params": "tff=1"}, b_frames=0)
    image, notes = middle(path)
    assert difference(image, moving[30]) < 0.6 * difference(woven[15], moving[30])
    rows = image.astype(int)
    combing = np.abs(rows[1:-1] - (rows[:-2] + rows[2:]) / 2).mean()
    stored = woven[15].astype(int)
    assert combing < 0.5 * np.abs(stored[1:-1] - (stored[:-2] + stored[2:]) / 2).mean()
    assert notes == ["interlaced pictures were made whole from one field each"]


@pytest.mark.parametrize(("transfer", "name", "white"), [("arib-std-b67", "HLG", 0.75), ("smpte2084", "PQ", 0.5807)])
def test_hdr_is_mapped_and_noted(tmp_path, transfer, name, white):
    path = tmp_path / "a.mkv"
    # White of ordinary pictures: ITU-R BT.2408, table 1.
    signal = np.full((96, 128, 3), round(255 * white), dtype=np.uint8)
    media.write_video(
        path, [signal] * 3, pix_fmt="yuv420p10le",
        options={"x264-params": f"colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"}, color=(9, 1),
    )  # fmt: skip
    image, notes = middle(path)
    assert image.mean() > 235
    assert notes == [f"HDR ({name}) was mapped to ordinary brightness and colors"]


@pytest.mark.parametrize("transfer", [HLG, PQ])
def test_tones_keep_their_order(transfer):
    ramp = np.repeat(np.arange(0, 65536, 256, dtype=np.uint16)[None, :, None], 3, axis=2)
    shown = to_sdr(ramp, transfer, 9)[0, :, 1].astype(int)
    assert shown[0] == 0
    assert shown[-1] >= 250
    assert (np.diff(shown) >= 0).all()


def test_turns_that_only_keyframes_state_hold_for_all(tmp_path):
    plain = media.make_clip(tmp_path / "a.mp4", size_wh=(160, 96), b_frames=0)
    turned = rewritten(plain, tmp_path / "b.mp4", "h264_metadata=display_orientation=insert:rotate=90")
    for sampling in (Sampling(1), Sampling(7), Sampling(None, 25.0)):
        with open_media(turned) as opened:
            shapes = {frame.to_rgb().shape for frame in opened.frames(sampling)}
            assert shapes == {(160, 96, 3)} == {(opened.height_px, opened.width_px, 3)}


def test_ycgco_is_converted(tmp_path):
    image = np.zeros((96, 128, 3), dtype=np.float32)
    image[:, :64], image[:, 64:] = (200, 40, 60), (30, 180, 220)
    red, green, blue = (image[..., channel] / 255 for channel in range(3))
    coded = [
        (219 * (red / 4 + green / 2 + blue / 4) + 16),
        224 * (-red / 4 + green / 2 - blue / 4) + 128,
        224 * (red / 2 - blue / 2) + 128,
    ]
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv444p"
        stream.codec_context.options = {"crf": "5", "x264-params": "colormatrix=ycgco"}
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.rint(np.stack(coded)).astype(np.uint8), format="yuv444p")
            frame.colorspace = 8
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    shown, _ = middle(path)
    np.testing.assert_allclose(shown[48, [20, 100]].astype(int), image[48, [20, 100]], atol=5)


@pytest.mark.parametrize("matrix", [3, 12, 200])
def test_reserved_color_matrices_count_as_none(tmp_path, matrix):
    plain = media.make_clip(tmp_path / "a.mp4", size_wh=(64, 48), duration_s=0.4)
    other = rewritten(plain, tmp_path / "b.mp4", f"h264_metadata=matrix_coefficients={matrix}")
    assert difference(middle(other)[0], middle(plain)[0]) < 1


@pytest.mark.parametrize("matrix", [10, 14])
def test_colors_that_cannot_be_converted_are_refused_in_one_sentence(tmp_path, matrix):
    plain = media.make_clip(tmp_path / "a.mp4", size_wh=(64, 48), duration_s=0.4)
    other = rewritten(plain, tmp_path / "b.mp4", f"h264_metadata=matrix_coefficients={matrix}")
    with pytest.raises(MediaOpenError, match=r"b\.mp4 are coded as .* convert it to MP4"):
        middle(other)


def test_side_data_that_nobody_knows_are_passed_over(tmp_path):
    tiff = b"MM\x00\x2a\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00"
    exif = b"Exif\x00\x00" + tiff
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuvj420p"
        for number, image in enumerate(media.numbered_pictures(160, 96, 20)):
            jpeg = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
            jpeg = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
            packet = av.Packet(jpeg)
            packet.pts = packet.dts = number
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 25), True
            container.mux(packet)
    with open_media(path) as opened:
        assert [media.read_number(frame.to_rgb()) for frame in opened.frames(Sampling(4))] == [2, 7, 12, 17]


def box(kind, *content):
    data = b"".join(content)
    return struct.pack(">I", 8 + len(data)) + kind + data


def mp4_header(clap):
    entry = box(b"avc1", bytes(78), box(b"clap", struct.pack(">8i", *clap)))
    tkhd = box(b"tkhd", bytes(12), struct.pack(">I", 7), bytes(60))
    stsd = box(b"stsd", struct.pack(">II", 0, 1), entry)
    trak = box(b"trak", tkhd, box(b"mdia", box(b"minf", box(b"stbl", stsd))))
    return box(b"ftyp", b"isom") + box(b"mdat", bytes(99)) + box(b"moov", trak)


def element(identity, *content):
    data = b"".join(content)
    return bytes.fromhex(identity) + struct.pack(">I", 0x10000000 | len(data)) + data


def matroska_header(crops):
    names = ("54cc", "54bb", "54dd", "54aa")
    video = element("e0", *(element(name, bytes([crop])) for name, crop in zip(names, crops, strict=True)))
    tracks = element("1654ae6b", element("ae", element("83", b"\2")), element("ae", element("83", b"\1"), video))
    return element("1a45dfa3", bytes(8)) + element("18538067", element("ec", bytes(40)), tracks)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (mp4_header((100, 1, 60, 1, -10, 1, 5, 1)), (20, 25, 40, 15)),
        (mp4_header((100, 0, 60, 1, 0, 1, 0, 1)), (0, 0, 0, 0)),
        (mp4_header((999, 1, 60, 1, 0, 1, 0, 1)), (0, 0, 0, 0)),
        (matroska_header((1, 2, 3, 4)), (1, 2, 3, 4)),
        (matroska_header((90, 0, 90, 0)), (0, 0, 0, 0)),
        (b"", (0, 0, 0, 0)),
        (bytes(1000), (0, 0, 0, 0)),
    ],
)
def test_what_headers_leave_out(data, expected):
    assert stated_crop(io.BytesIO(data), 0, 7, (160, 100)) == expected


def test_crop_rectangles_are_applied(tmp_path, monkeypatch):
    path = media.make_clip(tmp_path / "a.mp4", size_wh=(160, 96), duration_s=0.4, rotation=90)
    whole, _ = middle(path)
    monkeypatch.setattr("deepfake_preprocess.media.video.stated_crop", lambda *given: (16, 8, 32, 4))
    cropped, _ = middle(path)
    assert cropped.shape == (112, 84, 3)
    np.testing.assert_array_equal(cropped, np.rot90(np.rot90(whole, -1)[8:92, 16:128]))
