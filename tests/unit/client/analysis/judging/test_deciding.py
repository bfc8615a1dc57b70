"""Who decides: pictures and poor faces do not, small people do, and many faces do not make a fake."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from deepfake_client import Concern, Label, Reason
from deepfake_client.analysis.judging import deciding
from deepfake_client.analysis.judging.aggregation import STRATEGIES
from deepfake_client.analysis.judging.quality import Quality
from deepfake_client.analysis.judging.scoring import FaceAppearance, Judgment, Rules, ScoredFrame, judge
from deepfake_preprocess.faces.detector import Face

COLORS = np.sqrt(np.full(8, 1 / 8, dtype=np.float32))
RULES = Rules(STRATEGIES["mean"], 0.5)
MOVES, STILL, UNKNOWN = (np.full((80, 80), value, np.uint8) for value in (1, 2, 3))
"""What the patches of a face say; see `motion`."""


@pytest.fixture(autouse=True)
def motion(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    asked: list[int] = []

    def moves(patches: Sequence[np.ndarray], side_px: float) -> bool | None:
        asked.append(len(patches))
        return {1: True, 2: False, 3: None}[int(patches[0][0, 0])]

    monkeypatch.setattr(deciding, "moves", moves)
    return asked


def person(
    score: float, motion: np.ndarray = MOVES, *, side: float = 100, weight: float = 1.0
) -> tuple[float, np.ndarray, float, float]:
    return score, motion, side, weight


def judged(*people: tuple[float, np.ndarray, float, float], frames: int = 12, rules: Rules = RULES) -> Judgment:
    """The same people side by side in every frame."""
    lefts = [400.0 * number for number in range(len(people))]
    boxes = [np.array([x, 0, x + side, side], np.float32) for x, (_, _, side, _) in zip(lefts, people, strict=True)]
    looks = [
        FaceAppearance(Quality(weight, () if weight == 1 else (Concern.BLURRED,)), COLORS, motion)
        for _, motion, _, weight in people
    ]
    scores = np.array([score for score, *_ in people], np.float32)
    faces = [Face(box, 0.99) for box in boxes]
    return judge(
        [
            ScoredFrame(number, number * 0.3, faces, scores, COLORS, looks, size_wh=(4000, 1000))
            for number in range(frames)
        ],
        rules,
    )


def test_a_picture_on_the_wall_does_not_decide_and_is_named() -> None:
    result = judged(person(0.3), person(0.95, STILL, side=60))
    assert (result.label, result.deciding_track) == (Label.REAL, 0)
    assert result.fake_probability == pytest.approx(0.3)
    assert result.detail == "background face 2 looks fake; it did not decide"
    assert [track.background for track in result.tracks] == [False, True]


def test_a_picture_as_large_as_the_speaker_does_not_decide() -> None:
    assert judged(person(0.3), person(0.95, STILL, side=150)).label is Label.REAL


def test_a_small_person_who_moves_decides() -> None:
    result = judged(person(0.3, side=300), person(0.95, side=40, weight=0.5))
    assert (result.label, result.deciding_track) == (Label.FAKE, 1)


def test_a_poor_face_does_not_decide_even_if_it_moves() -> None:
    result = judged(person(0.3), person(0.95, weight=0.2))
    assert (result.label, result.deciding_track) == (Label.REAL, 0)
    assert result.detail.startswith("background face 2 looks fake; it did not decide; 12 of 24 pictures")


def test_a_poor_face_alone_decides_with_a_wide_interval() -> None:
    poor, good = judged(person(0.95, weight=0.2)), judged(person(0.95))
    assert poor.label is good.label is Label.FAKE


def test_a_face_of_unknown_motion_decides_only_if_it_is_large() -> None:
    assert judged(person(0.3), person(0.95, UNKNOWN, side=60)).label is Label.FAKE
    assert judged(person(0.3), person(0.95, UNKNOWN, side=30)).label is Label.REAL


def test_where_all_are_still_the_large_ones_decide() -> None:
    result = judged(person(0.6, STILL), person(0.95, STILL, side=20))
    assert (result.label, result.deciding_track) == (Label.FAKE, 0)


def test_in_a_single_picture_motion_says_nothing(motion: list[int]) -> None:
    assert judged(person(0.3), person(0.95, STILL, side=60), frames=1).label is Label.FAKE
    assert motion == []


def test_motion_is_not_asked_for_where_it_cannot_change_the_answer(motion: list[int]) -> None:
    judged(person(0.9))
    assert motion == []
    judged(person(0.9), person(0.4), person(0.3))
    assert motion == [12]


def test_the_highest_of_many_alike_faces_is_no_fake() -> None:
    scores = np.linspace(0.3, 0.62, 16)
    result = judged(*map(person, scores), frames=1)
    assert result.label is Label.REAL
    assert "the highest score of 16 faces, 0.62, is within chance and counts as 0.45" in result.detail


@pytest.mark.parametrize("num_fakes", [1, 4, 8, 12, 16])
def test_fakes_among_many_are_found_however_many_they_are(num_fakes: int) -> None:
    result = judged(*[person(0.9)] * num_fakes, *[person(0.3)] * (16 - num_fakes), frames=1)
    assert result.label is Label.FAKE


def test_pictures_on_the_wall_do_not_excuse_the_speaker() -> None:
    result = judged(person(0.55), *[person(0.3, STILL, side=60)] * 15)
    assert (result.label, result.deciding_track) == (Label.FAKE, 0)
    assert judged(person(0.55), *[person(0.3)] * 15).label is Label.REAL


def test_intervals_widen_with_the_number_of_faces_and_the_lack_of_weight() -> None:
    def width(*people: tuple[float, float]) -> float:
        frames = [
            ScoredFrame(
                number,
                number * 0.3,
                [Face(np.array([400 * n, 0, 400 * n + 100, 100], np.float32), 0.99) for n in range(len(people))],
                np.array([score + 0.1 * (number % 5 - 2) for score, _ in people], np.float32),
                COLORS,
                [FaceAppearance(Quality(weight, ()), COLORS, MOVES) for _, weight in people],
            )
            for number in range(24)
        ]
        interval = judge(frames, RULES).interval
        assert interval is not None
        return interval.high - interval.low

    assert width((0.7, 1.0)) < width((0.7, 1.0), (0.2, 1.0)) < width(*[(0.7, 1.0)] + [(0.2, 1.0)] * 6)
    assert width((0.7, 0.25)) == pytest.approx(2 * width((0.7, 1.0)), rel=0.05)


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_few_frames_of_a_longer_video_decide_nothing(num_frames: int) -> None:
    frames = [
        ScoredFrame(
            number, float(number), [Face(np.array([0, 0, 90, 90], np.float32), 0.99)], np.array([0.9], np.float32)
        )
        for number in range(num_frames)
    ]
    few = judge(frames, RULES, complete=False)
    assert (few.label, few.reason) == (Label.INCONCLUSIVE, Reason.TOO_FEW_FRAMES)
    assert judge(frames, RULES, complete=True).label is Label.FAKE


def test_small_faces_are_left_out_where_asked_for() -> None:
    people = person(0.3, side=300), person(0.95, side=90)
    for rules in (Rules(STRATEGIES["mean"], 0.5, min_face_px=91), Rules(STRATEGIES["mean"], 0.5, min_face_share=0.1)):
        result = judged(*people, rules=rules)
        assert (result.label, result.deciding_track) == (Label.REAL, 0)
        assert {concern for frame in result.frames for concern in frame.faces[1].concerns} == {Concern.TINY}
    assert judged(*people, rules=Rules(STRATEGIES["mean"], 0.5, min_face_px=90)).label is Label.FAKE


def rolled(degrees: float, score: float, *, number: int) -> ScoredFrame:
    turn = np.radians(degrees)
    shape = np.array([[-20, -15], [20, -15], [0, 5], [-15, 25], [15, 25]]) @ np.array(
        [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
    )
    face = Face(np.array([100, 100, 200, 200], np.float32), 0.99, (shape + 150).astype(np.float32))
    weight = Quality(0.0, (Concern.EXTREME_POSE,)) if abs(degrees) > 65 else Quality(1.0, ())
    return ScoredFrame(
        number, number * 0.3, [face], np.array([score], np.float32), COLORS, [FaceAppearance(weight, COLORS)]
    )


@pytest.mark.parametrize(("degrees", "words"), [(90, "turned by 90"), (-88, "turned by 270"), (178, "upside down")])
def test_a_picture_that_lies_gets_no_verdict_from_faces_that_are_none(degrees: float, words: str) -> None:
    frames = [
        rolled(degrees if number % 4 else 2, 0.3 if number % 4 else 0.95, number=number) for number in range(32)
    ]
    result = judge(frames, RULES)
    assert (result.label, result.reason) == (Label.INCONCLUSIVE, Reason.POOR_FACES)
    assert words in result.detail
    assert "24 of 32 frames with a face" in result.detail
    assert "turn it upright" in result.detail


def test_a_model_that_turns_heads_upright_judges_those_that_lie() -> None:
    frames = [rolled(90 if number % 4 else 2, 0.3 if number % 4 else 0.95, number=number) for number in range(32)]
    for frame in frames:
        frame.appearances = [FaceAppearance(Quality(1.0, ()), COLORS)]
    result = judge(frames, Rules(STRATEGIES["mean"], 0.5, turns_heads=True))
    assert result.label is Label.REAL
    assert result.fake_probability == pytest.approx(0.3)
    assert "turned by 90" in result.detail


def test_a_change_of_resolution_keeps_the_track() -> None:
    frames = []
    for number in range(12):
        scale = 1 if number < 6 else 3
        face = Face(np.array([100, 100, 200, 200], np.float32) * scale, 0.99)
        frames.append(
            ScoredFrame(
                number, number * 0.3, [face], np.array([0.2], np.float32), COLORS, size_wh=(640 * scale, 360 * scale)
            )
        )
    result = judge(frames, RULES)
    assert [track.num_frames for track in result.tracks] == [12]
    assert {frame.size_wh for frame in result.frames} == {(640, 360), (1920, 1080)}
