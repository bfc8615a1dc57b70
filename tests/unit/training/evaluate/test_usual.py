"""What is usual for a calibration's clips, and whether later ones drift away from it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import verdicts
from numpy.typing import NDArray

from deepfake_client.analysis.judging.abstaining import LOOKS, unlikeness
from deepfake_client.result.verdict import Verdict
from deepfake_preprocess.contract.spec import Calibration
from deepfake_preprocess.errors import OptionError
from deepfake_training.evaluate.usual import MIN_CLIPS, Drift, drift_of, figures_of, histogram_of, learn_looks


def looks_of(count: int, seed: int) -> NDArray[np.float64]:
    """Looks that depend on each other, as those of real faces do."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(0, 1, (count, len(LOOKS))) @ np.tril(np.full((len(LOOKS),) * 2, 0.5))
    return np.asarray(mixed + 3, dtype=np.float64)


@pytest.mark.parametrize("count", [20, 60])
def test_few_clips_of_the_same_kind_are_called_unlike(count: int) -> None:
    shares = []
    for seed in range(6):
        learned = learn_looks(looks_of(count, seed))
        assert learned is not None
        shares.append(np.mean([unlikeness(look, learned[0]) > 1 for look in looks_of(60, 1000 + seed)]))
    assert np.mean(shares) <= max(0.02, 1 / (count + 1)) + 0.02
    learned = learn_looks(looks_of(count, 0))
    assert learned is not None
    assert learned[1].max() >= 1, "the limit is one of the distances"
    assert unlikeness(looks_of(1, 5)[0] + 6, learned[0]) > 1.5


def test_of_few_clips_no_looks_are_learned() -> None:
    assert learn_looks(looks_of(MIN_CLIPS - 1, 0)) is None
    assert learn_looks(np.empty(0)) is None
    assert learn_looks(np.ones((MIN_CLIPS, len(LOOKS)))) is not None


def clips(count: int, *, seed: int, shift: float = 0.0) -> list[Verdict]:
    scores = np.clip(np.random.default_rng(seed).beta(2, 5, count) + shift, 0, 1)
    return [verdicts.verdict(f"{number}.mp4", score=float(score)) for number, score in enumerate(scores)]


def drift(later: list[Verdict]) -> Drift:
    figures = [figures_of(clip) for clip in clips(60, seed=0)]
    histograms = tuple(histogram_of(name, [clip[name] for clip in figures]) for name in ("score", "size", "weight"))
    calibration = Calibration(60, 0, 0.05, 0.5, None, histograms)
    return drift_of(later, calibration, model="tiny", version=2)


def test_the_same_kind_of_clips_does_not_drift() -> None:
    found = [drift(clips(40, seed=seed)) for seed in range(1, 41)]
    assert sum(item.drifted for item in found) <= 1
    assert {figure.figure for figure in found[0].figures} == {"score", "size", "weight"}
    assert found[0].num_clips == 40


def test_other_scores_and_faces_drift() -> None:
    moved = drift(clips(40, seed=1, shift=0.3))
    assert [figure.figure for figure in moved.figures if figure.drifted] == ["score"]
    small = [
        dataclasses.replace(
            clip,
            frames=tuple(
                dataclasses.replace(
                    frame, faces=tuple(dataclasses.replace(face, box_xyxy=(0, 0, 9, 9)) for face in frame.faces)
                )
                for frame in clip.frames
            ),
        )
        for clip in clips(40, seed=2)
    ]
    assert [figure.figure for figure in drift(small).figures if figure.drifted] == ["size"]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(OptionError, match=r"'tiny' version 2 has no calibration .* `deepfake calibrate`"):
        drift_of(clips(40, seed=1), None, model="tiny", version=2)
    faceless = [verdicts.inconclusive() for _ in range(30)]
    with pytest.raises(OptionError, match="5 of 35 clips show a face that counts, and 20 are needed"):
        drift([*clips(5, seed=1), *faceless])
    assert figures_of(faceless[0]) == {}
