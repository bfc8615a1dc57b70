"""Verdicts that are left open: near the threshold, and of faces that the model was not calibrated on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from media import astronaut

from deepfake_client import AnalyzeOptions, Label, Reason
from deepfake_client.analysis.judging.abstaining import COLORED, LOOKS, look_of
from deepfake_client.analysis.judging.quality import Quality
from deepfake_client.analysis.judging.scoring import FaceAppearance, Judgment, Rules, ScoredFrame, judge
from deepfake_preprocess.contract.spec import Calibration, Looks, ModelSpec
from deepfake_preprocess.faces.detector import Face

COLORS = np.sqrt(np.full(8, 1 / 8, dtype=np.float32))
KNOWN = Looks(
    (0.0,) * len(LOOKS), (0.5,) * len(LOOKS), tuple(tuple(map(float, row)) for row in np.eye(len(LOOKS))), 4.0
)
SPEC = ModelSpec("tiny", "torchscript", threshold=0.6, calibration=Calibration(40, 30, 0.05, 0.4, KNOWN))


def judged(*scores: float, look: float = 0.0, options: AnalyzeOptions | None = None) -> Judgment:
    """Judge one face with these scores, whose third look is `look` standard deviations from the mean."""
    looks = np.zeros(len(LOOKS))
    looks[2] = look * 0.5
    frames = [
        ScoredFrame(
            number,
            number * 0.3,
            [Face(np.array([0, 0, 100, 100], np.float32), 0.99)],
            np.array([score], np.float32),
            COLORS,
            [FaceAppearance(Quality(1.0, ()), COLORS, look=looks)],
        )
        for number, score in enumerate(scores)
    ]
    return judge(frames, Rules.of(options or AnalyzeOptions(), SPEC))


def test_scores_between_the_band_and_the_threshold_are_left_open() -> None:
    assert judged(*[0.39] * 8).label is Label.REAL
    assert judged(*[0.61] * 8).label is Label.FAKE
    open_ = judged(*[0.5] * 8)
    assert (open_.label, open_.reason) == (Label.INCONCLUSIVE, Reason.NEAR_THRESHOLD)
    assert (open_.fake_probability, open_.deciding_track) == (None, None)
    assert open_.detail.startswith("the score of 0.50 lies between 0.40 and 0.60")
    assert open_.tracks[0].fake_probability == pytest.approx(0.5), "what was found stays to be seen"
    assert [judged(*[score] * 8).tracks[0].label.value for score in (0.39, 0.5, 0.61)] == [
        "REAL", "INCONCLUSIVE", "FAKE",
    ]  # fmt: skip


def test_scores_that_move_across_the_whole_band_are_left_open() -> None:
    moving = judged(0.02, 0.95, 0.9, 0.02, 0.05, 0.02)
    assert moving.reason is Reason.NEAR_THRESHOLD
    assert "others of the same clip could have given anything from" in moving.detail
    # Of a single picture any interval is possible, which says nothing.
    assert judged(0.2).label is Label.REAL


def test_faces_unlike_those_of_the_calibration_are_left_open() -> None:
    assert judged(*[0.9] * 8, look=3.9).label is Label.FAKE
    unlike = judged(*[0.9] * 8, look=-8)
    assert unlike.reason is Reason.OUT_OF_DISTRIBUTION
    assert "those of the 70 clips" in unlike.detail
    assert "2.0 times the limit, mostly by its detail" in unlike.detail
    assert unlike.tracks[0].unlikeness == pytest.approx(2.0)


def test_without_a_calibration_or_with_another_threshold_every_score_decides() -> None:
    assert judged(*[0.5] * 8, options=AnalyzeOptions(abstain=False)).label is Label.REAL
    assert judged(*[0.9] * 8, look=50, options=AnalyzeOptions(abstain=False)).label is Label.FAKE
    assert judged(*[0.5] * 8, options=AnalyzeOptions(threshold=0.55)).label is Label.REAL
    assert judged(*[0.5] * 8, options=AnalyzeOptions(aggregation="median")).label is Label.REAL
    assert judged(*[0.9] * 8, look=50, options=AnalyzeOptions(threshold=0.55)).reason is Reason.OUT_OF_DISTRIBUTION
    plain = Rules.of(AnalyzeOptions(), dataclasses.replace(SPEC, calibration=None))
    assert plain.calibration is None


def test_a_calibration_travels_with_the_spec() -> None:
    assert ModelSpec.from_parameters(SPEC.to_parameters()) == SPEC
    assert ModelSpec.from_dict(SPEC.to_dict()) == SPEC
    plain = dataclasses.replace(SPEC, calibration=None)
    assert not any("calibration" in key for key in plain.to_parameters())
    assert ModelSpec.from_parameters(plain.to_parameters()) == plain


def test_looks_do_not_tell_brightness_or_the_tone_of_a_skin() -> None:
    face, bright = Face(np.array([0, 0, 110, 150], np.float32), 0.9), astronaut()[60:210, 170:280].copy()
    plain = look_of(face, bright, 0.3, SPEC)
    # In deviations between real clips, of which the smallest is about a tenth.
    for tone in ((0.5, 0.5, 0.5), (0.6, 0.45, 0.4), (1.0, 0.85, 0.7)):
        other = look_of(face, (bright * np.array(tone)).astype(np.uint8), 0.3, SPEC)
        assert other == pytest.approx(plain, abs=0.2), tone
    gray = np.repeat(bright.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    assert look_of(face, gray, 0.3, SPEC)[5] < 0.01 < plain[5] == COLORED
    for size in ((3, 3), (16, 9)):  # the smallest crops, and plain ones
        assert np.isfinite(look_of(face, np.zeros((*size, 3), np.uint8), 0.0, SPEC)).all()
