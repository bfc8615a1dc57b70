"""Frames that an application hands over: which are looked at, what is refused, and that memory stays bounded."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deepfake_preprocess.errors import InputError, MediaOpenError, OptionError
from deepfake_preprocess.media.frames_source import open_array, open_frames
from deepfake_preprocess.media.sampling import Sampling

GRAY = np.full((40, 60, 3), 90, np.uint8)


def some(count: int) -> Iterator[NDArray[np.uint8]]:
    return (np.full((40, 60, 3), number % 256, np.uint8) for number in range(count))


@pytest.mark.parametrize(("count", "num_frames"), [(100, 10), (9, 3), (5, 8), (1, 1)])
def test_known_and_unknown_lengths_are_sampled_evenly(count: int, num_frames: int) -> None:
    by_list = [frame.index for frame in open_frames(list(some(count))).frames(Sampling(num_frames=num_frames))]
    assert by_list == sorted({(2 * part + 1) * count // (2 * num_frames) for part in range(num_frames)})
    by_generator = [frame.index for frame in open_frames(some(count)).frames(Sampling(num_frames=num_frames))]
    assert len(by_generator) == min(count, num_frames)
    gaps = np.diff([-0.5, *by_generator, count - 0.5])
    assert gaps[1:-1].max(initial=1) <= 2 * count / num_frames
    assert max(gaps[0], gaps[-1]) <= 1.5 * count / num_frames + 1


def test_a_generator_of_any_length_keeps_a_bounded_number_of_frames() -> None:
    alive: list[weakref.ref[NDArray[np.uint8]]] = []
    most = 0

    def counted() -> Iterator[NDArray[np.uint8]]:
        nonlocal most
        for image in some(500):
            alive.append(weakref.ref(image))
            yield image
            del image
            gc.collect(0)
            most = max(most, sum(ref() is not None for ref in alive))

    assert len(list(open_frames(counted()).frames(Sampling(num_frames=5)))) == 5
    assert most <= 2 * 5 + 3


def test_by_rate_the_frame_on_screen_is_taken_as_it_comes() -> None:
    taken: list[int] = []

    def noting() -> Iterator[NDArray[np.uint8]]:
        for number, image in enumerate(some(100)):
            taken.append(number)
            yield image

    frames = open_frames(noting(), fps=20).frames(Sampling(num_frames=None, fps=4))
    first = next(frames)
    second = next(frames)
    assert (first.index, second.index) == (0, 5)
    assert second.pts_seconds == 0.25
    assert max(taken) < 8, "no more is read than the frame needs"
    assert [frame.index for frame in frames] == list(range(10, 100, 5))


def test_times_may_come_with_the_frames() -> None:
    pairs = [(10.0, GRAY), (10.1, GRAY), (10.9, GRAY), (11.0, GRAY), (11.3, GRAY)]
    frames = list(open_frames(iter(pairs)).frames(Sampling(num_frames=None, fps=2)))
    assert [(frame.index, frame.pts_seconds) for frame in frames] == [(0, 10.0), (1, 10.1), (3, 11.0), (4, 11.3)]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (GRAY.astype(np.float32), r"float32 \[40, 60, 3\]; values in \[0, 1\] become it"),
        (GRAY[..., 0], r"uint8 \[40, 60\]; repeat the gray channel"),
        (GRAY.transpose(2, 0, 1), r"uint8 \[3, 40, 60\]; put channels last"),
        (np.zeros((40, 60, 4), np.uint8), r"leave out alpha"),
        (GRAY[:0], r"uint8 \[0, 60, 3\]"),
        (GRAY.astype(np.int64), r"int64 \[40, 60, 3\]; from OpenCV, cv2\.cvtColor"),
        ("clip.mp4", "a str; for files use analyze_many"),
        ([1, 2], "a list; np.asarray"),
    ],
)
def test_what_is_no_rgb_array_is_refused_with_the_way_to_make_one(image: object, words: str) -> None:
    with pytest.raises(MediaOpenError, match=words):
        open_frames([image])  # type: ignore[list-item]
    if isinstance(image, np.ndarray):
        with pytest.raises(InputError, match=words):
            open_array(image)


def test_a_wrong_frame_in_the_middle_is_named() -> None:
    media = open_frames([GRAY, GRAY, GRAY[:20]], name="camera 4")
    with pytest.raises(MediaOpenError, match=r"camera 4: frame 2 has 60x20 pixels and the first 60x40"):
        list(media.frames(Sampling(num_frames=3)))
    backwards = open_frames([(0.2, GRAY), (0.1, GRAY)])
    with pytest.raises(MediaOpenError, match=r"frame 1 has the time 0.1; .* later than the previous one"):
        list(backwards.frames(Sampling(num_frames=2)))


def test_no_frame_a_bad_rate_and_a_second_pass_are_refused() -> None:
    with pytest.raises(MediaOpenError, match="there are no frames"):
        open_frames([])
    with pytest.raises(OptionError, match="fps is 0"):
        open_frames([GRAY], fps=0)
    media = open_frames([GRAY])
    assert len(list(media.frames())) == 1
    with pytest.raises(OptionError, match="pass them in again"):
        media.frames()


def test_arrays_of_three_and_of_four_axes() -> None:
    assert open_array(GRAY).kind == "image"
    several = open_array(np.stack([GRAY, GRAY]))
    assert (several.kind, several.width_px, several.height_px) == ("video", 60, 40)
    assert len(list(several.frames())) == 2


@pytest.mark.parametrize("sampling", [Sampling(num_frames=8), Sampling(num_frames=None, fps=5)])
def test_an_iterator_may_use_one_buffer_for_all_its_frames(sampling: Sampling) -> None:
    def grab() -> Iterator[NDArray[np.uint8]]:
        buffer = np.empty((4, 6, 3), np.uint8)
        for number in range(50):
            buffer[:] = number
            yield buffer

    frames = list(open_frames(grab()).frames(sampling))
    assert len(frames) >= 8
    assert [int(frame.to_rgb()[0, 0, 0]) for frame in frames] == [frame.index for frame in frames]


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, Fraction])
def test_times_may_be_numbers_of_any_kind(kind: Callable[[int], Any]) -> None:
    frames = open_frames([(kind(second), GRAY) for second in range(3)]).frames()
    assert [frame.pts_seconds for frame in frames] == [0.0, 1.0, 2.0]
