import dataclasses
import errno
import gc
import io
import math
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import av
import cv2
import media
import numpy as np
import pytest

from deepfake_preprocess.errors import MediaNotFoundError, MediaOpenError, OptionError
from deepfake_preprocess.media import decoding
from deepfake_preprocess.media.decoding import Decoding
from deepfake_preprocess.media.foreign import foreign_errors
from deepfake_preprocess.media.opening import open_media
from deepfake_preprocess.media.packets.decoder import DecodeStats
from deepfake_preprocess.media.packets.packet_references import reference_test
from deepfake_preprocess.media.packets.reading import PacketReader
from deepfake_preprocess.media.sampling import Sampling


def everything(path):
    """Decode plainly: (time, pixels) of every frame."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        start = stream.start_time or 0
        return [
            (float((frame.pts - start) * stream.time_base), frame.to_ndarray(format="rgb24"))
            for frame in container.decode(stream)
        ]


def sample(path, sampling):
    with open_media(path) as clip:
        frames = list(clip.frames(sampling))
        assert clip.stats.frames_sampled == len(frames)
        return frames, clip.stats


CODINGS = {
    "h264": ("mp4", {}),
    "h264-pyramid": ("mp4", {"b_frames": 7, "gop": 250, "options": {"b-pyramid": "normal", "refs": "4"}}),
    "h264-intra": ("mp4", {"gop": 1, "b_frames": 0}),
    "h264-open-gop": ("mp4", {"gop": 20, "options": {"x264-params": "open-gop=1"}}),
    "h264-mkv": ("mkv", {}),
    "h264-pyramid-mkv": ("mkv", {"b_frames": 7, "gop": 250, "options": {"b-pyramid": "normal", "refs": "4"}}),
    "h264-open-gop-mkv": ("mkv", {"gop": 20, "options": {"x264-params": "open-gop=1"}}),
    "h264-ts": ("ts", {}),
    "h264-flv": ("flv", {}),
    "h264-fragmented": ("mp4", {"muxing": {"movflags": "frag_keyframe+empty_moov"}}),
    "hevc": ("mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none:pools=1"}}),
    "hevc-layers": (
        "mp4",
        {"codec": "libx265", "b_frames": 4, "options": {"x265-params": "log-level=none:pools=1:temporal-layers=3"}},
    ),
    "mpeg4-avi": ("avi", {"codec": "mpeg4"}),
    "vp9-webm": ("webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
    "mjpeg": ("mkv", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "10-bit": ("mp4", {"pix_fmt": "yuv420p10le"}),
}


@pytest.fixture(scope="module", params=CODINGS)
def coded_clip(request, tmp_path_factory):
    ending, encoding = CODINGS[request.param]
    path = tmp_path_factory.mktemp("coded") / f"{request.param}.{ending}"
    media.make_clip(path, size_wh=(128, 96), duration_s=3.0, moving=True, **encoding)
    return path, everything(path)


@pytest.mark.parametrize(
    "sampling", [Sampling(3), Sampling(16), Sampling(1000), Sampling(None, 1.5), Sampling(None, 1e4)], ids=str
)
def test_samples_are_frames_of_a_plain_decode(coded_clip, sampling, monkeypatch):
    monkeypatch.setattr(decoding, "MIN_SEEK_S", 0.1)  # so that a short clip makes it seek
    path, whole = coded_clip
    frames, stats = sample(path, sampling)
    with open_media(path) as clip:
        of = clip._video
        reader = PacketReader(of.container, of.stream)
        reader.rewind()
        reference = Decoding(reader, of.shown, DecodeStats())
        reference._may_skip = reference._may_jump = False
        expected = [(frame.index, frame.pts_seconds) for frame in reference.frames(sampling, of.extent)]
    assert [(frame.index, frame.pts_seconds) for frame in frames] == expected
    # FLV and AVI give a length that is off by a frame.
    slack = 0 if sampling.fps is None or path.suffix not in {".flv", ".avi"} else 1
    due = min(len(whole), sampling.num_frames or math.ceil(sampling.fps * 3.0))
    assert due - slack <= len(frames) <= due + slack
    for frame in frames:
        pts_seconds, pixels = whole[frame.index]
        assert frame.pts_seconds == pytest.approx(pts_seconds, abs=1e-9)
        np.testing.assert_array_equal(frame.to_rgb(), pixels)
    assert stats.packets_corrupt == 0
    assert stats.decode_s > 0


def test_the_times_of_frames_find_them_again(coded_clip):
    path, whole = coded_clip
    frames, _ = sample(path, Sampling(9))
    picked = [frames[1], frames[4], frames[8]]
    again, stats = sample(path, Sampling(None, at_seconds=tuple(frame.pts_seconds for frame in picked)))
    assert [frame.index for frame in again] == [frame.index for frame in picked]
    for frame in again:
        np.testing.assert_array_equal(frame.to_rgb(), whole[frame.index][1])
    assert stats.frames_decoded <= len(whole)


@pytest.mark.parametrize(
    "sampling", [Sampling(3, mode="fast"), Sampling(16, mode="fast"), Sampling(None, 4.0, mode="fast")], ids=str
)
def test_fast_samples_are_as_many_frames_of_a_plain_decode(coded_clip, sampling):
    path, whole = coded_clip
    frames, stats = sample(path, sampling)
    usual, usual_stats = sample(path, dataclasses.replace(sampling, mode="uniform"))
    assert len(frames) == len(usual)
    for frame in frames:
        pts_seconds, pixels = whole[frame.index]
        assert frame.pts_seconds == pytest.approx(pts_seconds, abs=1e-9)
        np.testing.assert_array_equal(frame.to_rgb(), pixels)
    assert [frame.index for frame in frames] == sorted({frame.index for frame in frames})
    assert stats.packets_corrupt == 0
    assert stats.frames_decoded <= usual_stats.frames_decoded


def test_fast_samples_stay_between_their_keyframes(tmp_path):
    path = media.make_clip(tmp_path / "a.mp4", size_wh=(64, 48), duration_s=16.0, gop=50, b_frames=0)
    usual = [frame.index for frame in sample(path, Sampling(16))[0]]
    frames, stats = sample(path, Sampling(16, mode="fast"))
    assert [frame.index // 50 for frame in frames] == [index // 50 for index in usual]
    assert [media.read_number(frame.to_rgb()) for frame in frames] == [frame.index for frame in frames]
    assert stats.frames_decoded <= 0.3 * 400


def test_fast_is_uniform_where_keyframes_are_far_apart(tmp_path):
    path = media.make_clip(tmp_path / "a.mp4", size_wh=(64, 48), duration_s=20.0, gop=1000, b_frames=0)
    usual, fast = (sample(path, Sampling(5, mode=mode))[0] for mode in ("uniform", "fast"))
    assert [frame.index for frame in fast] == [frame.index for frame in usual]


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_frames_nobody_needs_are_not_decoded(tmp_path, ending):
    path = media.make_clip(
        tmp_path / f"a.{ending}", duration_s=8.0, gop=400, options={"x264-params": "b-adapt=0:b-pyramid=none"}
    )
    frames, stats = sample(path, Sampling(8))
    assert len(frames) == 8
    assert stats.frames_decoded < 0.7 * 200


@pytest.mark.parametrize("coding", ["h264", "h264-pyramid", "h264-ts", "hevc", "h264-intra", "vp9-webm"])
def test_packets_tell_whether_others_refer_to_them(tmp_path, coding):
    """The decoder itself is the judge: what it leaves out as not referred to."""
    ending, encoding = CODINGS[coding]
    path = media.make_clip(tmp_path / f"a.{ending}", size_wh=(128, 96), moving=True, **encoding)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        is_referenced = reference_test(context.name, context.extradata)
        told = {packet.pts: is_referenced(memoryview(packet)) for packet in container.demux(video=0) if packet.size}
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.skip_frame = "NONREF"
        kept = {frame.pts for frame in container.decode(video=0)}
    if coding != "vp9-webm":  # whose decoder knows no such frames
        assert {pts for pts, referenced in told.items() if referenced} == kept
    assert any(told.values())
    assert all(told.values()) == (coding in {"h264-intra", "vp9-webm"})


def test_packets_without_a_picture_count_as_referred_to():
    assert reference_test("h264", b"")(memoryview(b"\0\0\1\x09\0\0\1"))
    assert reference_test("h264", b"\1\0\0\0\3")(memoryview(b"\0\0\0\xff"))


def test_evenly_spaced_samples_take_frames_others_refer_to(tmp_path):
    path = media.make_clip(
        tmp_path / "a.mp4", duration_s=8.0, gop=400, b_frames=1, options={"x264-params": "b-adapt=0"}
    )
    frames, stats = sample(path, Sampling(20))
    assert len(frames) == 20
    assert stats.frames_decoded <= 101
    for frame, middle in zip(frames, range(5, 200, 10), strict=True):
        assert middle - 1 <= frame.index <= middle
    times = tuple(frame.pts_seconds + 0.04 for frame in frames)
    exact, _ = sample(path, Sampling(None, at_seconds=times))
    assert [frame.index for frame in exact] == [frame.index + 1 for frame in frames]


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_far_targets_are_sought(tmp_path, ending):
    path = media.make_clip(tmp_path / f"a.{ending}", size_wh=(64, 48), duration_s=60.0, gop=25, b_frames=0)
    frames, stats = sample(path, Sampling(5))
    assert [frame.index for frame in frames] == [150, 450, 750, 1050, 1350]
    assert [media.read_number(frame.to_rgb()) for frame in frames] == [150, 450, 750, 1050, 1350]
    assert stats.frames_decoded <= 5 * 25


def test_frames_are_decoded_one_at_a_time(tmp_path):
    path = media.make_clip(tmp_path / "a.mp4", size_wh=(64, 48), duration_s=40.0, gop=25)
    with open_media(path) as clip:
        frames = clip.frames(Sampling(100))
        next(frames)
        assert clip.stats.frames_decoded < 60
        assert clip.stats.frames_sampled == 1


def test_frames_are_freed_without_the_garbage_collector(tmp_path):
    def pictures():
        return sum(type(item) is av.VideoFrame for item in gc.get_objects())

    path = media.make_clip(tmp_path / "a.mp4", size_wh=(64, 48), duration_s=4.0)
    gc.collect()
    before = pictures()
    gc.disable()
    try:
        for _ in range(3):
            assert len(sample(path, Sampling(32))[0]) == 32
        assert pictures() - before < 10  # the orientation is read from a picture when opening and when decoding
    finally:
        gc.enable()


def test_a_media_can_be_iterated_again(tmp_path):
    with open_media(media.make_clip(tmp_path / "a.mp4")) as clip:
        half = clip.frames(Sampling(10))
        next(half)
        first = [frame.index for frame in clip.frames(Sampling(10))]
        assert [frame.index for frame in clip.frames(Sampling(10))] == first


def test_variable_frame_rate_takes_what_is_on_screen(tmp_path):
    ticks = [0, 10, 20, 30, 1000, 1010, 3000, 3900, 3910, 3920]
    path = tmp_path / "a.mkv"
    media.write_video(path, media.numbered_pictures(64, 48, len(ticks)), ticks=ticks)
    frames, _ = sample(path, Sampling(None, 2.0))
    # At 0, 0.5, ... 3.5 s; a held picture is taken once.
    assert [round(frame.pts_seconds * 1000) for frame in frames] == [0, 30, 1000, 1010, 3000]
    assert [media.read_number(frame.to_rgb()) for frame in frames] == [0, 3, 4, 5, 6]


def test_start_after_zero_counts_from_the_first_frame(tmp_path):
    path = tmp_path / "a.mkv"
    media.write_video(path, media.numbered_pictures(64, 48, 5), ticks=[5000, 5100, 5200, 5300, 5400])
    frames, _ = sample(path, Sampling(None, 10.0))
    assert [frame.pts_seconds for frame in frames] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("ending", ["h264", "webm"])
def test_missing_duration_or_times(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    if ending == "webm":
        live = io.BytesIO()
        live.seekable = lambda: False  # the writer then cannot go back to fill in the length
        media.write_video(
            live, media.numbered_pictures(64, 48, 50), codec="libvpx-vp9", container_format="webm",
            options={"deadline": "realtime", "cpu-used": "8"},
        )  # fmt: skip
        path.write_bytes(live.getvalue())
    else:
        media.make_clip(path, size_wh=(64, 48), b_frames=0)
    with open_media(path) as clip:
        assert clip.duration_s is None
        frames = list(clip.frames(Sampling(5)))
    assert [media.read_number(frame.to_rgb()) for frame in frames] == [5, 15, 25, 35, 45]
    assert [frame.index for frame in frames] == [5, 15, 25, 35, 45]


def test_reports_what_it_opened(tmp_path):
    with open_media(media.make_clip(tmp_path / "a.mp4", audio_s=1.0)) as clip:
        assert (clip.name, clip.kind, clip.codec) == ("a.mp4", "video", "h264")
        assert (clip.width_px, clip.height_px) == (320, 240)
        assert clip.duration_s == pytest.approx(2.0)
        assert clip.frame_rate == pytest.approx(25.0)
        assert "a.mp4" in repr(clip)


@pytest.mark.parametrize("kind", ["bytes", "stream", "path", "str"])
def test_sources(tmp_path, kind):
    path = media.make_clip(tmp_path / "a.mp4", size_wh=(64, 48))
    source = {"bytes": path.read_bytes, "stream": lambda: path.open("rb"), "path": lambda: path, "str": path.__str__}[
        kind
    ]()
    with open_media(source) as clip:
        assert clip.name == ("the given data" if kind == "bytes" else "a.mp4")
        assert len(list(clip.frames(Sampling(4)))) == 4
    with open_media(path.read_bytes(), name="upload 7") as clip:
        assert clip.name == "upload 7"
    if kind == "stream":
        source.close()


def test_odd_names_are_files_not_protocols(tmp_path):
    path = media.make_clip(tmp_path / "concat:x.mp4", size_wh=(64, 48))
    assert len(sample(path, Sampling(2))[0]) == 2


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_rotation_is_applied(tmp_path, rotation):
    path = media.make_clip(tmp_path / "a.mp4", size_wh=(160, 96), rotation=rotation)
    stored = everything(path)[25][1]
    upright = np.rot90(stored, rotation // 90)
    with open_media(path) as clip:
        assert (clip.height_px, clip.width_px) == upright.shape[:2]
        (frame,) = clip.frames(Sampling(1))
    assert (frame.height_px, frame.width_px) == upright.shape[:2]
    np.testing.assert_array_equal(frame.to_rgb(), upright)
    assert frame.to_rgb().flags.c_contiguous
    np.testing.assert_array_equal(frame.region_rgb(3, 5, 40, 50), upright[5:50, 3:40])
    assert frame.to_rgb((30, 70)).shape == (70, 30, 3)


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ([-65536, 0, 0, 0, 65536, 0, 0, 0, 2**30], lambda image: image[:, ::-1]),
        ([65536, 0, 0, 0, -65536, 0, 0, 0, 2**30], lambda image: image[::-1]),
        ([0, 65536, 0, 65536, 0, 0, 0, 0, 2**30], lambda image: image.transpose(1, 0, 2)),
    ],
)
def test_mirroring_is_applied(tmp_path, matrix, turn):
    path = media.make_clip(tmp_path / "a.mp4", size_wh=(160, 96), display_matrix=matrix)
    (frame,) = sample(path, Sampling(1))[0]
    upright = turn(everything(path)[25][1])
    np.testing.assert_array_equal(frame.to_rgb(), upright)
    np.testing.assert_array_equal(frame.region_rgb(10, 8, 60, 40), upright[8:40, 10:60])


@pytest.mark.parametrize("color", [(1, 1), (1, 2), (5, 1), (5, 2), (9, 1)], ids=str)
def test_color_matrix_and_range_are_those_of_the_stream(tmp_path, color):
    image = np.zeros((96, 128, 3), dtype=np.uint8)
    image[:, :64], image[:, 64:] = (200, 40, 60), (30, 180, 220)
    media.write_video(tmp_path / "a.mp4", [image] * 3, color=color)
    (frame,) = sample(tmp_path / "a.mp4", Sampling(1))[0]
    np.testing.assert_allclose(frame.to_rgb()[40, [20, 100]].astype(int), image[40, [20, 100]], atol=4)
    np.testing.assert_allclose(frame.region_rgb(16, 36, 24, 44)[4, 4].astype(int), image[40, 20], atol=4)


def test_frames_outlive_the_media_and_convert_in_other_threads(tmp_path):
    path = media.make_clip(tmp_path / "a.mp4")
    whole = everything(path)
    frames, _ = sample(path, Sampling(20))
    gc.collect()
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda frame: frame.to_rgb(), frames * 2))
    for frame, image in zip(frames * 2, images, strict=True):
        np.testing.assert_array_equal(image, whole[frame.index][1])


def test_decodes_in_another_thread(tmp_path):
    path = media.make_clip(tmp_path / "a.mp4", size_wh=(64, 48))
    found = []
    with open_media(path) as clip:
        thread = threading.Thread(target=lambda: found.extend(clip.frames(Sampling(4))))
        thread.start()
        thread.join()
    assert len(found) == 4


def test_8k_frame(tmp_path):
    media.write_video(
        tmp_path / "a.mkv", [np.full((4320, 7680, 3), 90, np.uint8)], codec="mjpeg", pix_fmt="yuvj420p", gop=1
    )
    (frame,) = sample(tmp_path / "a.mkv", Sampling(1))[0]
    assert frame.to_rgb((480, 270)).shape == (270, 480, 3)
    assert frame.region_rgb(1000, 1000, 1400, 1400).shape == (400, 400, 3)


def test_one_pixel_video(tmp_path):
    image = np.full((1, 1, 3), 200, dtype=np.uint8)
    media.write_video(tmp_path / "a.mkv", [image] * 3, codec="ffv1", pix_fmt="yuv444p", gop=1)
    (frame,) = sample(tmp_path / "a.mkv", Sampling(1))[0]
    np.testing.assert_allclose(frame.to_rgb().astype(int), 200, atol=2)


def test_damaged_packets_are_counted_and_skipped(tmp_path):
    path = media.make_clip(tmp_path / "a.mp4", gop=10, b_frames=0)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size in places[12:18]:
        data[position + 4 : position + size] = b"\xff" * (size - 4)
    with open_media(bytes(data)) as clip:
        frames = list(clip.frames(Sampling(None, 25.0)))
        assert clip.stats.packets_corrupt >= 6
    whole = everything(path)
    assert {frame.index for frame in frames} >= {*range(12), *range(20, 50)}
    for frame in frames:
        if not 12 <= frame.index < 20:
            np.testing.assert_array_equal(frame.to_rgb(), whole[frame.index][1])


@pytest.mark.parametrize("sampling", [Sampling(8), Sampling(1000), Sampling(None, 5.0)], ids=str)
def test_what_is_left_of_a_cut_file_decodes(tmp_path, sampling):
    path = media.make_truncated(tmp_path / "a.mp4", playable=True, duration_s=4.0)
    frames, _ = sample(path, sampling)
    assert frames
    assert all(frame.pts_seconds < 3.0 for frame in frames)


def test_a_clip_without_a_sound_packet_yields_nothing(tmp_path):
    path = media.make_clip(tmp_path / "a.mp4", size_wh=(64, 48), b_frames=0)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size in places:
        data[position + 4 : position + size] = b"\xff" * (size - 4)
    with open_media(bytes(data)) as clip:
        assert list(clip.frames()) == []
        assert clip.stats.packets_corrupt > 0


def test_missing_file(tmp_path):
    with pytest.raises(MediaNotFoundError, match=r"no file .*gone\.mp4.*check the path"):
        open_media(tmp_path / "gone.mp4")


def bad_file(kind, folder):
    path = folder / "clip.mp4"
    if kind == "text":
        path.write_text("this is no video\n" * 200)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(50_000))
    elif kind == "sound only":
        media.make_audio_only(path)
    elif kind == "no index":
        media.make_truncated(path)
    elif kind == "playlist":
        media.make_clip(folder / "real.mp4", size_wh=(64, 48))
        path.write_text("ffconcat version 1.0\nfile real.mp4\n")
    elif kind == "damaged image":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    elif kind == "wide image":
        path.write_bytes(cv2.imencode(".png", np.zeros((2, 17000), dtype=np.uint8))[1].tobytes())
    elif kind == "wide video":
        media.write_video(path.with_suffix(".mkv"), [np.zeros((2, 17000, 3), np.uint8)], codec="ffv1", gop=1)
        path = path.with_suffix(".mkv")
    return path


BAD_FILES = {
    "text": "cannot be read as a video or an image",
    "empty": "is empty",
    "folder": "is a folder",
    "pipe": "is a pipe or a device",
    "noise": "cannot be read as a video or an image",
    "sound only": "no video stream",
    "no index": "damaged, or cut off; copy or download it again",
    "playlist": "cannot be read as a video or an image",
    "damaged image": "damaged",
    "wide image": "17000x2 pixels; at most 16384",
    "wide video": "17000x2 pixels; at most 16384",
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_unusable_files_are_refused_at_once_with_one_sentence(tmp_path, kind, capfd):
    path = bad_file(kind, tmp_path)
    with pytest.raises(MediaOpenError, match=BAD_FILES[kind]) as caught:
        open_media(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    assert kind == "damaged image" or capfd.readouterr().err == ""  # OpenCV has its own log


@pytest.mark.parametrize(
    "foreign",
    [getattr(av.error, name) for name in dir(av.error) if name.endswith("Error") and name != "FFmpegError"],
    ids=lambda error: error.__name__,
)
def test_no_foreign_error_gets_out(foreign):
    if not issubclass(foreign, av.error.FFmpegError):
        pytest.skip("no FFmpeg error")
    with pytest.raises((MediaOpenError, MediaNotFoundError)) as caught, foreign_errors("clip.mp4"):
        raise foreign(errno.EIO, "Input/output error")
    assert "Input/output" not in str(caught.value)


def test_what_the_callers_own_object_says_is_kept():
    with (
        pytest.raises(MediaOpenError, match=r"clip\.mp4 cannot be read .*\(the bucket is gone\): "),
        foreign_errors("clip.mp4"),
    ):
        raise RuntimeError("the bucket\nis gone")


def test_streams_that_cannot_be_rewound_are_refused():
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    with pytest.raises(MediaOpenError, match="cannot be rewound"):
        open_media(Pipe(b"abc"))


def test_closed_media_says_so(tmp_path):
    clip = open_media(media.make_clip(tmp_path / "a.mp4", size_wh=(64, 48)))
    clip.close()
    clip.close()
    with pytest.raises(OptionError, match="was closed"):
        next(clip.frames())


@pytest.mark.parametrize(("ending", "codec"), [(".jpg", "jpeg"), (".png", "png"), (".webp", "webp")])
def test_images_are_videos_of_one_frame(tmp_path, ending, codec):
    image = media.picture(200, 120)
    path = tmp_path / f"a{ending}"
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    with open_media(path) as still:
        assert (still.kind, still.codec, still.width_px, still.height_px) == ("image", codec, 200, 120)
        assert (still.duration_s, still.frame_rate) == (None, None)
        (frame,) = still.frames(Sampling(32))
        assert still.stats.frames_sampled == 1
    assert (frame.index, frame.pts_seconds) == (0, 0.0)
    assert np.abs(frame.to_rgb().astype(int) - image).mean() < 4


def test_image_alpha_is_dropped_and_gray_expanded(tmp_path):
    color = np.full((20, 30, 4), (10, 20, 200, 0), dtype=np.uint8)
    for image, expected in ((color, (200, 20, 10)), (np.full((20, 30), 77, np.uint8), (77, 77, 77))):
        with open_media(cv2.imencode(".png", image)[1].tobytes()) as still:
            (frame,) = still.frames()
        np.testing.assert_array_equal(frame.to_rgb(), np.broadcast_to(np.uint8(expected), (20, 30, 3)))


def test_exif_orientation_is_applied():
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    image[:20] = 255
    plain = cv2.imencode(".jpg", image)[1].tobytes()
    # One entry, tag 0x0112 (orientation), type SHORT, value 6: turn right by 90 degrees.
    tiff = b"MM\x00\x2a\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    exif = b"Exif\x00\x00" + tiff
    turned = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
    with open_media(turned) as still:
        assert (still.width_px, still.height_px) == (40, 60)
        (frame,) = still.frames()
    assert frame.to_rgb()[30, 35].min() > 200
    assert frame.to_rgb()[30, 5].max() < 50


def test_opening_leaves_nothing_behind(tmp_path):
    path = media.make_clip(tmp_path / "a.mp4", size_wh=(64, 48))
    code = (
        "import os, sys, warnings\n"
        "warnings.simplefilter('error')\n"
        "from deepfake_preprocess.media.opening import open_media\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        "for _ in range(5):\n"
        "    with open_media(sys.argv[1]) as clip:\n"
        "        next(clip.frames())\n"
        "assert len(os.listdir('/proc/self/fd')) == before\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
