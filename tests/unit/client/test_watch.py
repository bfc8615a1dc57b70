"""`watch`: a rolling verdict that follows its source, loses nothing it need not lose, and counts what it drops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from fixed_detector import LEFT, RIGHT, FixedDetector
from media import write_video
from numpy.typing import NDArray

from deepfake_client import (
    AsyncDeepfakeClient,
    DeepfakeClient,
    Label,
    MediaNotFoundError,
    MediaOpenError,
    OptionError,
    Reason,
    ServedModel,
    ServerUnavailableError,
    Verdict,
    WatchOptions,
    open_frames,
    open_media,
)
from deepfake_client.transport.testing import FakeTransport
from deepfake_preprocess.faces.detector import Face


def image(brightness: int) -> NDArray[np.uint8]:
    return np.full((60, 80, 3), brightness, np.uint8)


def watched(client: DeepfakeClient, source: object, **options: object) -> list[Verdict]:
    return list(client.watch(source, options=WatchOptions(**{"fps": 25, "idle_s": 0.2, **options})))  # type: ignore[arg-type]


@pytest.fixture
def client() -> Iterator[DeepfakeClient]:
    with DeepfakeClient(FakeTransport(), detector=FixedDetector(LEFT)) as client:
        yield client


def live_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "deepfake-live"]


def test_the_verdict_follows_the_source_and_is_yielded_when_it_changes(client: DeepfakeClient) -> None:
    frames = [image(30)] * 100 + [image(220)] * 100
    first, *verdicts = watched(client, frames, window_s=1.0, step_s=0.2)
    assert first.reason is Reason.TOO_FEW_FRAMES
    assert (verdicts[0].label, verdicts[-1].label) == (Label.REAL, Label.FAKE)
    scores = [verdict.fake_probability or 0 for verdict in verdicts]
    assert scores == sorted(scores)
    assert 4 <= len(verdicts) <= 9, "one at the start, one for each step of the change, one at the end"
    for verdict in verdicts:
        times = [frame.pts_seconds for frame in verdict.frames]
        assert times == sorted(times)
        assert times[-1] - times[0] < 1.0
        assert [track.track for track in verdict.tracks] == [0], "the face keeps its track"
        assert verdict.frames_dropped == 0
    assert verdicts[-1].frames[-1].pts_seconds == pytest.approx(199 / 25)


def test_every_step_is_yielded_when_asked_for(client: DeepfakeClient) -> None:
    assert len(watched(client, [image(30)] * 100, step_s=0.4, min_change=0)) == 10
    assert len(watched(client, [image(30)] * 100, step_s=0.4)) == 2, "the first and the last"


def test_frames_are_taken_at_the_rate_asked_for(client: DeepfakeClient, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, [image(100)] * 50)
    for source in (path, open_frames([image(100)] * 50)):
        (*_, last) = watched(client, source, fps=5)
        assert [frame.index for frame in last.frames] == list(range(0, 50, 5))
    (*_, last) = watched(client, path.read_bytes(), fps=5)
    early = [due - frame.index for due, frame in zip(range(0, 50, 5), last.frames, strict=True)]
    assert all(0 <= frames <= 2 for frames in early), "or shortly before, where that is cheaper to decode"
    with open_media(path) as media:
        assert len(watched(client, media, fps=5)[-1].frames) == 10
        assert next(media.frames()).width_px == 80, "what the caller opened stays open"


def test_tracks_keep_their_ids_when_faces_come_and_go() -> None:
    class Scripted(FixedDetector):
        """The left face until frame 60, the right one from frame 30 on, the left one again from frame 130 on."""

        def __init__(self) -> None:
            super().__init__()
            self.number = -1

        def detect(self, images_rgb: Sequence[NDArray[np.uint8]]) -> list[list[Face]]:
            self.number += 1
            boxes = [RIGHT] if self.number >= 30 else []
            if self.number < 60 or self.number >= 130:
                boxes.append(LEFT)
            height, width = images_rgb[0].shape[:2]
            size = np.array([width, height, width, height], np.float32)
            return [[Face(np.array(box, np.float32) * size, 0.9) for box in boxes]]

    with DeepfakeClient(FakeTransport(), detector=Scripted(), detect_threads=1) as client:
        verdicts = watched(client, [image(80)] * 160, window_s=0.8, step_s=0.2, min_change=0)
    seen = [tuple(track.track for track in verdict.tracks) for verdict in verdicts]
    assert list(dict.fromkeys(seen)) == [(0,), (0, 1), (1,), (1, 2)]
    for verdict in verdicts[1:]:
        assert verdict.deciding_track in {track.track for track in verdict.tracks}
        assert {face.track for frame in verdict.frames for face in frame.faces} == {t.track for t in verdict.tracks}


def test_a_face_that_just_came_counts_after_ten_sightings(client: DeepfakeClient) -> None:
    options = {"step_s": 0.04, "min_change": 0, "window_s": 4}
    early = watched(client, [image(200)] * 30, **options)
    assert early[0].reason is Reason.TOO_FEW_FRAMES
    assert early[0].detail.endswith("a face counts once it was scored on 10: wait, or raise `fps`")
    assert all((verdict.label is Label.FAKE) == (len(verdict.frames) >= 10) for verdict in early)
    short = watched(client, [image(200)] * 8, **options)
    assert short[-1].label is Label.FAKE, "what was shorter is judged like a video at its end"
    seldom = watched(client, [image(200)] * 100, fps=2, window_s=5)
    assert len(seldom[0].frames) < 10
    assert seldom[-1].label is Label.FAKE, "or half of the window, where ten frames are more"


class Gated(FakeTransport):
    """Answers nothing before it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self._open = threading.Event()

    async def infer(
        self, model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        self.asked.set()
        await asyncio.to_thread(self._open.wait, 30)
        return await super().infer(model, faces, timeout_s=timeout_s)

    def open(self) -> None:
        self._open.set()


def opening_at_the_end(transport: Gated, count: int) -> Iterator[NDArray[np.uint8]]:
    """`count` frames as fast as they are taken; the server answers only after the last."""
    for _ in range(count):
        yield image(70)
    transport.open()


def test_frames_that_a_slow_server_cannot_take_are_dropped_and_counted() -> None:
    transport = Gated()
    with DeepfakeClient(transport, detector=FixedDetector(LEFT)) as client:
        frames = opening_at_the_end(transport, 400)
        (*_, last) = watched(client, frames, on_slow="drop", window_s=100)
    assert last.frames_dropped > 300
    assert len(last.frames) + last.frames_dropped == 400


def test_a_source_that_can_wait_waits() -> None:
    transport = Gated()
    taken: list[int] = []

    def frames() -> Iterator[NDArray[np.uint8]]:
        for number in range(400):
            taken.append(number)
            yield image(70)

    with DeepfakeClient(transport, detector=FixedDetector(LEFT)) as client:
        verdicts = client.watch(frames(), options=WatchOptions(window_s=100, fps=25))
        opener = threading.Thread(target=lambda: (transport.asked.wait(30), transport.open()))
        opener.start()
        last = list(verdicts)[-1]
        opener.join()
    assert len(last.frames) == 400
    assert last.frames_dropped == 0


def test_leaving_the_loop_stops_the_source_and_its_thread() -> None:
    def endless() -> Iterator[NDArray[np.uint8]]:
        while True:
            yield image(20)

    for on_slow in ("drop", "wait"):
        with DeepfakeClient(FakeTransport(), detector=FixedDetector(LEFT)) as client:
            for verdict in client.watch(endless(), options=WatchOptions(on_slow=on_slow, step_s=0.1)):  # type: ignore[arg-type]
                assert verdict.reason is Reason.TOO_FEW_FRAMES, "there may be more"
                break
            assert live_threads() == []


def test_a_server_that_fails_for_a_while_is_told_and_the_watch_goes_on() -> None:
    class Failing(FakeTransport):
        async def infer(
            self, model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float | None = None
        ) -> NDArray[np.float32]:
            if 100 <= np.median(faces) < 200:
                raise ServerUnavailableError("restarting")
            return await super().infer(model, faces, timeout_s=timeout_s)

    frames = [image(30)] * 60 + [image(150)] * 60 + [image(40)] * 60
    with DeepfakeClient(Failing(), detector=FixedDetector(LEFT)) as client:
        paced = watched(client, frames, on_slow="drop", max_latency_s=60, window_s=1, step_s=0.2, fps=25)
        ended = watched(client, frames, on_slow="wait", window_s=1, step_s=0.2)
    reasons = [verdict.reason for verdict in paced if verdict.frames_dropped == 0]
    assert reasons.count(Reason.SERVER_UNAVAILABLE) <= 1
    assert (ended[-1].reason, paced[-1].label) == (Reason.SERVER_UNAVAILABLE, Label.REAL)
    assert "restarting" in ended[-1].detail
    assert ended[-1].frames[-1].pts_seconds < 110 / 25, "a file is not gone through without a server"


def test_a_growing_file_is_read_on_and_ends_when_it_stops_growing(client: DeepfakeClient, tmp_path: Path) -> None:
    whole = tmp_path / "whole.ts"
    write_video(whole, [image(30)] * 100 + [image(220)] * 100)
    data = whole.read_bytes()
    path = tmp_path / "growing.ts"
    path.write_bytes(data[: len(data) // 2])
    verdicts = client.watch(path, options=WatchOptions(fps=10, idle_s=2.0, window_s=1.0, step_s=0.5))
    first = next(verdicts)
    assert first.label is Label.REAL
    with path.open("ab") as file:
        file.write(data[len(data) // 2 :])
    *_, last = verdicts
    assert last.label is Label.FAKE
    assert last.frames[-1].pts_seconds == pytest.approx(7.9, abs=0.11)
    assert live_threads() == []


@pytest.mark.parametrize("muxing", [{"movflags": "frag_keyframe+empty_moov"}, {"movflags": "faststart"}, {}])
def test_mp4_files_are_watched_whether_or_not_their_index_comes_last(
    client: DeepfakeClient, tmp_path: Path, muxing: dict[str, str]
) -> None:
    whole = tmp_path / "whole.mp4"
    write_video(whole, [image(200)] * 50, muxing=muxing)
    path = tmp_path / "growing.mp4"
    path.write_bytes(b"")
    data = whole.read_bytes()

    def write() -> None:
        with path.open("ab", buffering=0) as file:
            for start in range(0, len(data), 300):
                file.write(data[start : start + 300])

    writer = threading.Thread(target=write)
    writer.start()
    (*_, last) = watched(client, path, idle_s=1.0)
    writer.join()
    assert len(last.frames) == 50


def test_what_cannot_be_watched_is_said_in_one_sentence(client: DeepfakeClient, tmp_path: Path) -> None:
    with pytest.raises(MediaNotFoundError, match=r"none\.ts"):
        client.watch(tmp_path / "none.ts")
    with pytest.raises(MediaOpenError, match="is a folder"):
        client.watch(tmp_path)
    (tmp_path / "empty.ts").touch()
    with pytest.raises(MediaOpenError, match=r"empty\.ts is empty"):
        watched(client, tmp_path / "empty.ts")
    write_video(tmp_path / "clip.mp4", [image(1)] * 5)
    unfinished = tmp_path / "unfinished.mp4"
    unfinished.write_bytes((tmp_path / "clip.mp4").read_bytes()[:-400])
    with pytest.raises(MediaOpenError, match=r"MP4 file without its index.*MPEG-TS, Matroska or fragmented"):
        watched(client, unfinished)
    (tmp_path / "text.ts").write_text("no video at all\n" * 100)
    with pytest.raises(MediaOpenError, match=r"text\.ts cannot be read as a video"):
        watched(client, tmp_path / "text.ts")
    with pytest.raises(MediaOpenError, match=r"cannot be opened .*check that it is a video camera"):
        watched(client, "/dev/null")
    assert live_threads() == []


def test_an_error_of_the_source_comes_after_the_last_verdict(client: DeepfakeClient) -> None:
    def broken() -> Iterator[NDArray[np.uint8]]:
        yield from [image(10)] * 20
        raise OSError("the grabber is gone")

    verdicts = client.watch(broken(), options=WatchOptions(fps=25))
    assert len(next(verdicts).frames) == 19, "the one after shows how long a frame stays"
    with pytest.raises(MediaOpenError, match="raised OSError: the grabber is gone"):
        next(verdicts)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window_s": 0}, "`window_s` is 0"),
        ({"step_s": -1}, "`step_s` is -1"),
        ({"fps": float("nan")}, "`fps` is nan"),
        ({"max_latency_s": 0}, "`max_latency_s` is 0"),
        ({"min_change": 2}, "`min_change` is 2"),
        ({"on_slow": "block"}, "`on_slow` is 'block'; allowed: 'drop', 'wait'"),
        ({"idle_s": -1}, "`idle_s` is -1"),
        ({"reconnects": -1}, "`reconnects` is -1"),
        ({"aggregation": "best"}, "`aggregation` is 'best'; allowed: mean"),
        ({"threshold": 0}, "strictly between"),
    ],
)
def test_options_out_of_range_are_refused_at_once(options: dict[str, object], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        WatchOptions(**options)  # type: ignore[arg-type]


def test_the_async_client_has_it_too() -> None:
    async def labels(until: Callable[[Verdict], bool]) -> list[Label]:
        found = []
        async with (
            AsyncDeepfakeClient(FakeTransport(), detector=FixedDetector(LEFT)) as client,
            aclosing(client.watch([image(200)] * 50, options=WatchOptions(fps=25, min_change=0))) as verdicts,
        ):
            async for verdict in verdicts:
                found.append(verdict.label)
                if until(verdict):
                    break
        return found

    assert asyncio.run(labels(lambda verdict: False)) == [Label.FAKE] * 2
    assert asyncio.run(labels(lambda verdict: True)) == [Label.FAKE]
    assert live_threads() == []
