"""Early stop: it looks at the whole video, saves frames where the evidence suffices, and keeps the answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media import numbered_pictures, read_number, write_video
from numpy.typing import NDArray

from deepfake_client import (
    AnalyzeOptions,
    DeepfakeClient,
    Label,
    OptionError,
    Reason,
    Sampling,
    ServerUnavailableError,
    Verdict,
)
from deepfake_client.analysis.judging.aggregation import STRATEGIES, score_tracks
from deepfake_client.analysis.stopping import StopRule, passes
from deepfake_client.result.verdict import FaceScore, FrameResult
from deepfake_client.transport.testing import FakeTransport
from deepfake_preprocess.faces.detector import Face

FACE, OTHER = (8, 8, 56, 56), (100, 8, 148, 56)
NUM_PICTURES = 96


@given(st.integers(1, 3000))
def test_passes_take_every_frame_once_and_leave_no_gap_for_a_face(num_frames: int) -> None:
    plan = passes(num_frames)
    assert sorted(position for part in plan for position in part) == list(range(num_frames))
    assert all(part == sorted(part) for part in plan)
    first = plan[0]
    if num_frames >= 3:
        gaps = np.diff([-1, *first, num_frames]) - 1
        assert max(gaps) < max(3, 0.1 * num_frames), "a face that would count is seen in the first pass"


@pytest.mark.parametrize(("value", "confidence"), [(False, None), (True, 0.99), (0.9, 0.9)])
def test_what_until_sure_means(value: bool | float, confidence: float | None) -> None:
    assert AnalyzeOptions(until_sure=value).confidence == confidence


@pytest.mark.parametrize("value", [0.2, 1.0, 2, float("nan")])
def test_a_confidence_out_of_range_is_refused_before_anything_is_opened(value: float) -> None:
    with pytest.raises(OptionError, match=r"`until_sure` is .*; allowed: True, False, or a confidence"):
        AnalyzeOptions(until_sure=value)


def answer_after(num_passes: int, scores: Sequence[float], strategy: str = "mean") -> bool:
    taken = sorted(position for part in passes(len(scores))[:num_passes] for position in part)
    frames = tuple(
        FrameResult(position, float(position), (FaceScore(0, FACE, 1.0, scores[position]),)) for position in taken
    )
    rule = STRATEGIES[strategy]
    tracks = score_tracks(frames, strategy=rule, threshold=0.5)
    return StopRule(len(scores), rule, 0.5, 0.99).suffices(frames, tracks, num_passes=num_passes)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("level", [0.06, 0.94])
def test_clear_scores_suffice_after_the_first_pass_under_every_rule(strategy: str, level: float) -> None:
    assert answer_after(1, [level + 0.03 * (-1) ** n for n in range(32)], strategy)


def test_what_is_unclear_or_changes_over_time_does_not_suffice() -> None:
    assert not answer_after(1, [0.05] * 16 + [0.95] * 16)
    assert not answer_after(1, [0.45 + 0.2 * (n % 5 - 2) for n in range(32)])
    assert not answer_after(1, [0.9] * 9), "too few frames for any confidence"


def test_a_stop_hardly_ever_changes_the_answer() -> None:
    rng = np.random.default_rng(5)
    stopped = wrong = 0
    for _ in range(400):
        noise = rng.standard_normal(32)
        logits = noise.copy()
        for n in range(1, 32):
            logits[n] = 0.8 * logits[n - 1] + 0.6 * noise[n]
        scores = 1 / (1 + np.exp(-(0.4 + 1.5 * logits)))
        if answer_after(1, list(scores)):
            stopped += 1
            first = scores[passes(32)[0]].mean()
            wrong += (first >= 0.5) != (scores.mean() >= 0.5)
    assert stopped > 40, "the check must have something to check"
    assert wrong <= 4


class Script:
    """Finds the faces and gives the scores that a function of the picture's number says."""

    def __init__(self, scores: Callable[[int], Sequence[float]]) -> None:
        self.numbers: list[int] = []
        self._scores = scores
        self._waiting: deque[Sequence[float]] = deque()

    def detection_size_wh(self, width_px: int, height_px: int) -> tuple[int, int]:
        return width_px, height_px

    def detect(self, images_rgb: Sequence[NDArray[np.uint8]]) -> list[list[Face]]:
        (image,) = images_rgb
        self.numbers.append(read_number(image))
        self._waiting.append(self._scores(self.numbers[-1]))
        boxes = (FACE, OTHER)[: len(self._waiting[-1])]
        return [[Face(np.array(box, np.float32), 0.99) for box in boxes]]

    def score(self, faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        found: list[float] = []
        while len(found) < len(faces):  # of several frames
            found += self._waiting.popleft()
        return np.array(found, np.float32)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media") / "numbered.mp4"
    write_video(path, numbered_pictures(160, 96, NUM_PICTURES, faces=1), fps=25)
    return path


def analyze(
    clip: Path, scores: Callable[[int], Sequence[float]], sampling: Sampling = Sampling(), **options: Any
) -> tuple[Verdict, list[int]]:
    script = Script(scores)
    # One thread and one request at a time, so that scores are asked for in the order of detection.
    transport = FakeTransport(script.score)
    with DeepfakeClient(transport, detector=script, detect_threads=1, max_requests_in_flight=1) as client:
        return client.analyze(clip, options=AnalyzeOptions(sampling=sampling, **options)), script.numbers


@pytest.mark.parametrize(("level", "label"), [(0.95, Label.FAKE), (0.05, Label.REAL)])
def test_clear_videos_are_answered_from_a_third_of_the_frames(clip: Path, level: float, label: Label) -> None:
    verdict, numbers = analyze(clip, lambda number: [level], until_sure=True)
    assert verdict.label is label
    assert verdict.frames_saved == 21
    assert len(verdict.frames) == 11
    assert "11 of 32 frames sufficed, at confidence 0.99" in verdict.detail
    assert min(numbers) < NUM_PICTURES * 0.1
    assert max(numbers) > NUM_PICTURES * 0.9, "the frames are spread over the whole video"


def test_without_until_sure_every_frame_is_looked_at(clip: Path) -> None:
    verdict, _ = analyze(clip, lambda number: [0.95])
    assert (verdict.frames_saved, len(verdict.frames)) == (0, 32)


def test_frames_of_several_passes_give_the_same_verdict_as_one_pass(clip: Path) -> None:
    def late_swap(number: int) -> list[float]:
        return [0.95 if number > 60 else 0.2]

    whole, _ = analyze(clip, late_swap)
    early, numbers = analyze(clip, late_swap, until_sure=True)
    assert early.frames_saved == 0
    assert len(numbers) == len(set(numbers)) == 32
    assert [(frame.index, frame.faces) for frame in early.frames] == [
        (frame.index, frame.faces) for frame in whole.frames
    ]
    assert early.fake_probability == whole.fake_probability


def test_a_fake_face_that_appears_late_is_not_missed(clip: Path) -> None:
    verdict, _ = analyze(clip, lambda number: [0.05, 0.95] if number >= 84 else [0.05], until_sure=True)
    assert verdict.label is Label.FAKE
    assert verdict.deciding_track == 1


def test_a_rate_is_sampled_to_its_end(clip: Path) -> None:
    sampling = Sampling(num_frames=None, fps=8.0)
    whole, _ = analyze(clip, lambda number: [0.9 * (number % 2)], sampling)
    early, _ = analyze(clip, lambda number: [0.9 * (number % 2)], sampling, until_sure=True)
    assert [frame.index for frame in early.frames] == [frame.index for frame in whole.frames]


def test_a_clip_of_which_every_frame_is_sampled_is_read_once(clip: Path) -> None:
    verdict, numbers = analyze(clip, lambda number: [0.95], Sampling(num_frames=200), until_sure=True)
    assert verdict.frames_saved == 0
    assert sorted(numbers) == list(range(NUM_PICTURES))


def test_fast_sampling_takes_its_frames_in_one_pass(clip: Path) -> None:
    sampling = Sampling(16, mode="fast")
    whole, _ = analyze(clip, lambda number: [0.95], sampling)
    early, _ = analyze(clip, lambda number: [0.95], sampling, until_sure=True)
    assert early.frames_saved == 0
    assert [frame.index for frame in early.frames] == [frame.index for frame in whole.frames]


def test_a_server_that_fails_ends_the_passes(clip: Path) -> None:
    script = Script(lambda number: [0.5])
    transport = FakeTransport(script.score, fail_after=1, error=ServerUnavailableError("gone"))
    with DeepfakeClient(transport, detector=script, detect_threads=1) as client:
        verdict = client.analyze(clip, options=AnalyzeOptions(until_sure=True))
    assert verdict.reason is Reason.SERVER_UNAVAILABLE
    assert verdict.frames_saved == 0
    assert len(verdict.frames) <= 11
