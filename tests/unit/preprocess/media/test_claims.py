"""Files whose headers, indexes or times do not say what is in them."""

import io
import struct
import threading
from fractions import Fraction

import av
import http_files
import media
import numpy as np
import pytest

from deepfake_preprocess.media.live import LiveOptions, open_live
from deepfake_preprocess.media.opening import open_media
from deepfake_preprocess.media.packets.clock import Clock
from deepfake_preprocess.media.remote import open_url
from deepfake_preprocess.media.sampling import Sampling


def clip(path, *, seconds=4.0, **encoding):
    return media.make_clip(path, size_wh=(128, 96), duration_s=seconds, **encoding)


def seen(path, sampling=None):
    """Sample: the numbers drawn on the frames in order of time, and the media."""
    with open_media(path) as opened:
        frames = sorted(opened.frames(sampling or Sampling(16)), key=lambda frame: frame.pts_seconds)
        times = [frame.pts_seconds for frame in frames]
        assert times == sorted(set(times))
        return [media.read_number(frame.to_rgb()) for frame in frames], opened


def watched(path):
    live = open_live(path, fps=4.0, stop=threading.Event(), options=LiveOptions(idle_s=0))
    return [(round(frame.pts_seconds, 2), media.read_number(frame.to_rgb())) for frame in live.frames]


def replaced(data, box, at, value):
    """Overwrite four bytes of a box's content."""
    start = data.index(box) + 4 + at
    return data[:start] + struct.pack(">I", value) + data[start + 4 :]


@pytest.mark.parametrize("ending", ["mkv", "ts", "flv"])
def test_sound_that_is_longer_does_not_count(tmp_path, ending):
    numbers, opened = seen(clip(tmp_path / f"a.{ending}", seconds=2.0, audio_s=20.0))
    assert 16 <= len(numbers) <= 18
    assert numbers[-1] >= 45
    assert opened.duration_s == pytest.approx(2.0, abs=0.2)
    assert opened.stats.unread_s == 0


@pytest.mark.parametrize("start_ms", [-2000, 3_600_000, 1_000_000_000])
def test_a_start_that_is_not_at_zero_does_not_matter(tmp_path, start_ms):
    path = tmp_path / "a.mkv"
    media.write_video(path, media.numbered_pictures(128, 96, 100), ticks=[start_ms + 40 * n for n in range(100)])
    numbers, opened = seen(path)
    assert len(numbers) == 16
    assert numbers[0] <= 6
    assert numbers[-1] >= 93
    assert opened.stats.unread_s == 0


def test_a_gap_of_an_hour_does_not_hide_what_follows(tmp_path):
    path = tmp_path / "a.mkv"
    ticks = [40 * n + (3_600_000 if n >= 50 else 0) for n in range(100)]
    media.write_video(path, media.numbered_pictures(128, 96, 100), ticks=ticks)
    numbers, _ = seen(path)
    assert len(numbers) == 16
    assert sum(number >= 50 for number in numbers) == 8


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_what_follows_the_stated_end_is_looked_at(tmp_path, ending):
    path = clip(tmp_path / f"a.{ending}", gop=25)
    data = path.read_bytes()
    if ending == "mp4":
        path.write_bytes(
            replaced(data, b"mdhd", 16, struct.unpack(">I", data[data.index(b"mdhd") + 20 :][:4])[0] // 10)
        )
    else:
        at = data.index(b"\x44\x89\x88") + 3
        path.write_bytes(data[:at] + struct.pack(">d", 400.0) + data[at + 8 :])
    numbers, opened = seen(path)
    assert numbers[-1] >= 90
    assert len(numbers) == 16
    assert opened.duration_s == pytest.approx(4.0, abs=0.1)
    assert [media.read_number(frame.to_rgb()) for frame in open_media(path).frames(Sampling(None, 2.0))][-1] >= 80


def test_a_second_file_behind_the_first_is_seen_by_both_ways(tmp_path):
    data = clip(tmp_path / "a.ts", seconds=2.0).read_bytes()
    path = tmp_path / "two.ts"
    path.write_bytes(data + data)
    with open_media(path) as opened:
        frames = list(opened.frames(Sampling(16)))
        assert sum(frame.pts_seconds >= 2.0 for frame in frames) >= 7
        assert opened.duration_s == pytest.approx(4.0)
        by_rate = [(f.pts_seconds, media.read_number(f.to_rgb())) for f in opened.frames(Sampling(None, 4.0))]
        # The times that were reported find the same frames, here and in a media opened anew.
        later = tuple(sorted(frame.pts_seconds for frame in frames))
        assert [f.pts_seconds for f in opened.frames(Sampling(None, at_seconds=later))] == pytest.approx(later)
    with open_media(path) as anew:
        assert [f.pts_seconds for f in anew.frames(Sampling(None, at_seconds=later))] == pytest.approx(later)
    live = watched(path)
    assert len(live) == pytest.approx(len(by_rate), abs=1)
    assert live[-1][0] == pytest.approx(by_rate[-1][0], abs=0.3)


def test_what_is_opened_anew_may_be_at_an_address_or_in_a_file_object(tmp_path):
    data = clip(tmp_path / "a.ts", seconds=2.0).read_bytes()
    with http_files.serving() as site:
        site.files["/a.ts"] = data + data
        for opened in (open_url(f"{site.url}/a.ts"), open_media(io.BytesIO(data + data))):
            with opened:
                assert max(frame.pts_seconds for frame in opened.frames(Sampling(8))) > 3.0
                assert opened.duration_s == pytest.approx(4.0)


@pytest.mark.parametrize("ending", ["mkv", "mpg", "h264"])
def test_joined_files_of_other_kinds(tmp_path, ending):
    encoding = {"codec": "mpeg2video"} if ending == "mpg" else {}
    data = clip(tmp_path / f"a.{ending}", seconds=2.0, **encoding).read_bytes()
    path = tmp_path / f"two.{ending}"
    path.write_bytes(data + data)
    numbers, opened = seen(path)
    assert opened.duration_s == pytest.approx(4.0, abs=0.25)
    assert sum(number < 25 for number in numbers) == pytest.approx(len(numbers) / 2, abs=3)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "flv", "avi"])
def test_of_a_file_that_is_cut_off_what_is_there_is_sampled_and_the_rest_reported(tmp_path, ending):
    if ending == "mp4":
        path = media.make_truncated(
            tmp_path / "a.mp4", playable=True, size_wh=(128, 96), duration_s=4.0, options={"crf": "10"}
        )
    else:
        encoding = {"codec": "mpeg4"} if ending == "avi" else {"options": {"crf": "10"}}
        data = clip(tmp_path / f"whole.{ending}", **encoding).read_bytes()
        path = tmp_path / f"a.{ending}"
        path.write_bytes(data[: len(data) // 2])
    numbers, opened = seen(path)
    assert len(numbers) >= 10
    assert numbers[-1] >= 9
    assert opened.stats.unread_s + opened.duration_s == pytest.approx(4.0, abs=0.25)
    assert opened.stats.unread_s > 1.0
    assert any("only the first" in note and "cut short" in note for note in opened.stats.notes)


def test_an_empty_sample_does_not_end_reading(tmp_path):
    path = clip(tmp_path / "a.mp4", seconds=2.0, gop=1, b_frames=0)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data, (position, size) = path.read_bytes(), places[20]
    data = replaced(data, b"stsz", 12 + 4 * 20, 0)
    mdat = data.index(b"mdat")
    length = struct.unpack(">I", data[mdat - 4 : mdat])[0]
    data = data[: mdat - 4] + struct.pack(">I", length - size) + data[mdat:position] + data[position + size :]
    numbers, _ = seen(data, Sampling(None, 25.0))
    assert numbers == [*range(20), *range(21, 50)]
    path.write_bytes(data)
    assert watched(path)[-1][1] >= 43


def test_damage_is_left_out_up_to_the_next_keyframe(tmp_path):
    path = clip(tmp_path / "a.mp4", gop=50, b_frames=0, moving=True)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data, (position, size) = bytearray(path.read_bytes()), places[20]
    data[position + size // 3 : position + size // 3 + 24] = bytes(
        byte ^ 0x5A for byte in data[position + size // 3 : position + size // 3 + 24]
    )
    numbers, opened = seen(bytes(data), Sampling(None, 25.0))
    assert numbers == [*range(20), *range(50, 100)]
    assert opened.stats.packets_corrupt == 30
    assert opened.stats.unread_s == pytest.approx(1.2)


def test_frames_that_damage_hides_are_not_replaced_by_others(tmp_path):
    path = clip(tmp_path / "a.mp4", seconds=2.0, gop=50, b_frames=0, moving=True)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data, (position, size) = bytearray(path.read_bytes()), places[10]
    data[position + 4 : position + size] = b"\xff" * (size - 4)
    for sampling in (Sampling(10), Sampling(50), Sampling(100)):
        numbers, opened = seen(bytes(data), sampling)
        assert numbers == [number for number in numbers if number < 10]
        assert len(numbers) == sampling.num_frames // 5 if sampling.num_frames < 100 else 10
        assert opened.stats.unread_s == pytest.approx(1.6)


def test_avi_with_b_frames_is_in_order(tmp_path):
    path = clip(tmp_path / "a.avi", seconds=2.0, b_frames=3)
    with open_media(path) as opened:
        found = [(f.index, media.read_number(f.to_rgb()), f.pts_seconds) for f in opened.frames(Sampling(None, 25.0))]
    assert [number for _, number, _ in found] == list(range(50))
    assert [index for index, _, _ in found] == list(range(50))
    assert [time for _, _, time in found] == pytest.approx([n / 25 for n in range(50)], abs=0.021)


def test_damage_does_not_move_what_follows_in_an_avi(tmp_path):
    path = clip(tmp_path / "a.avi", b_frames=2, gop=25, moving=True)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data, (position, size) = bytearray(path.read_bytes()), places[30]
    data[position + 12 : position + size] = b"\xff" * (size - 12)
    with open_media(bytes(data)) as opened:
        frames = list(opened.frames(Sampling(None, 25.0)))
        assert len(frames) < 100
        last = frames[-1]
        assert (media.read_number(last.to_rgb()), last.pts_seconds) == (99, pytest.approx(99 / 25, abs=0.05))


def test_of_several_streams_it_is_said_which_was_taken(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mjpeg", rate=25) for _ in range(2)]
        for number, stream in enumerate(streams):
            stream.width = stream.height = 64 * (number + 1)
            stream.pix_fmt = "yuvj420p"
        for time in range(10):
            for number, stream in enumerate(streams):
                side = 64 * (number + 1)
                frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), 99, np.uint8), format="rgb24")
                frame.pts = time
                container.mux(stream.encode(frame))
    with open_media(path) as opened:
        number = 1 if opened.width_px == 64 else 2
        assert opened.stats.notes == [
            f"of 2 video streams, number {number} was taken ({opened.width_px}x{opened.height_px})"
        ]


def test_times_that_are_ages_ahead_end_nothing():
    clock = Clock(step=40, max_gap=86_400_000, window=640)
    times = [0, 40, 80, 2**60, 120, 160]
    told = [time + clock.shift(time, is_keyframe=False) for time in times]
    assert told == [0, 40, 80, 120, 160, 200]


@pytest.mark.parametrize("times", [[5, 5, 5, 5], [0, 40, 40, 80], [0, 40, 0, 40]])
def test_times_that_repeat_become_others(times):
    clock = Clock(step=40, max_gap=10**9, window=640)
    told = [time + clock.shift(time, is_keyframe=time == 0) for time in times]
    assert told == sorted(set(told))


@pytest.mark.parametrize(
    ("codec", "container", "pix_fmt"),
    [
        ("apng", "apng", "rgb24"),
        ("gif", "gif", "rgb8"),
        ("mpeg2video", "mpeg", "yuv420p"),
        ("vp8", "webm", "yuv420p"),
    ],
)
@pytest.mark.parametrize("fps", [24, 25, 90])
def test_a_rate_from_the_clips_own_on_takes_every_frame(tmp_path, codec, container, pix_fmt, fps):
    """Times in hundredths of a second come late, and an MPEG program stream states too short a length."""
    path = tmp_path / f"clip.{container}"
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=24, options={"bf": "2"} if codec == "mpeg2video" else {})
        stream.width, stream.height, stream.pix_fmt = 160, 120, pix_fmt
        for number in range(24):
            image = np.full((120, 160, 3), 10 * number, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 24)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with open_media(path) as media:
        frames = list(media.frames(Sampling(num_frames=None, fps=fps)))
    assert [round(frame.pts_seconds * 24) for frame in frames] == list(range(24))
