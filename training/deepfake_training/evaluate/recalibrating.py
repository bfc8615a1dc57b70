"""From a user's own scored clips to a model's threshold, temperature and calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from deepfake_client.options import CALIBRATED_AGGREGATION
from deepfake_preprocess.contract.spec import Calibration, ModelSpec
from deepfake_preprocess.support.json_data import JsonData
from deepfake_preprocess.support.ranking import roc_auc
from deepfake_training.data.labels import LabelName
from deepfake_training.evaluate.calibration import TEMPERATURES, find_temperature
from deepfake_training.evaluate.evaluation import CHANCE_AUC, LabeledScores, scores_of
from deepfake_training.evaluate.operating_point import OperatingPoint, find_operating_point
from deepfake_training.evaluate.scoring import ScoredFile
from deepfake_training.evaluate.usual import MIN_CLIPS, deciding_face, figures_of, histogram_of, learn_looks

MIN_FOR_TEMPERATURE = 10
"""Real clips, and fake clips, below which the temperature stays as it is."""


@dataclass(frozen=True, slots=True)
class LeftOut(JsonData):
    """A clip that was named and does not count."""

    source: str
    label: LabelName
    reason: str


@dataclass(frozen=True, slots=True)
class CalibrationResult(JsonData):
    """What a user's clips say about a model.

    Attributes:
        model: its name.
        version: the version that was measured.
        threshold_before: its threshold.
        temperature_before: its temperature.
        temperature: the new one.
        point: the new threshold, and what it does.
        num_real: real clips that count.
        num_fake: fake clips that count.
        roc_auc: of the clips; None without fakes.
        calibration: what goes into the spec.
        left_out: clips that do not count, each with its reason.
        notes: what limits this, as sentences.
    """

    model: str
    version: int
    threshold_before: float
    temperature_before: float
    temperature: float
    point: OperatingPoint
    num_real: int
    num_fake: int
    roc_auc: float | None
    calibration: Calibration
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]

    def apply_to(self, spec: ModelSpec) -> ModelSpec:
        """Return a spec with what was found."""
        return dataclasses.replace(
            spec, threshold=self.point.threshold, temperature=self.temperature, calibration=self.calibration
        )


def calibrate_model(scored: Sequence[ScoredFile], spec: ModelSpec, *, false_alarms: float) -> CalibrationResult:
    """Find threshold, temperature and calibration.

    Args:
        scored: the clips, scored without abstaining (`AnalyzeOptions.abstain`) and by the mean of their frames.
        spec: of the model that gave the scores.
        false_alarms: wanted share of real clips that are called fake, in (0, 1).

    Raises:
        OptionError: there are too few real clips with a face for that share, or their scores are too high.
    """
    usable = [item for item in scored if item.fake_probability is not None]
    measured = scores_of(usable)
    factor, notes = _temperature_factor(usable, measured)
    temperature = round(spec.temperature * factor, 4)
    factor = temperature / spec.temperature
    usable = [item.with_temperature(factor, CALIBRATED_AGGREGATION) for item in usable]
    found = scores_of(usable)
    point = find_operating_point(found.labels, found.probabilities, false_alarms)
    num_fake = int(found.labels.sum())
    calibration = Calibration(len(usable) - num_fake, num_fake, false_alarms, point.undecided_from)
    return CalibrationResult(
        model=spec.name,
        version=spec.version,
        threshold_before=spec.threshold,
        temperature_before=spec.temperature,
        temperature=temperature,
        point=point,
        num_real=calibration.num_real,
        num_fake=num_fake,
        roc_auc=_auc(measured),
        calibration=_with_usual(calibration, usable),
        left_out=tuple(
            LeftOut(item.source, item.label, item.reason) for item in scored if item.fake_probability is None
        ),
        notes=(*notes, *_limits(point, measured)),
    )


def _temperature_factor(usable: Sequence[ScoredFile], measured: LabeledScores) -> tuple[float, list[str]]:
    """Return by what the temperature is multiplied, and why it is not where it stays."""
    fakes = int(measured.labels.sum())
    kept = "so the temperature stays as it is"
    if min(fakes, len(usable) - fakes) < MIN_FOR_TEMPERATURE:
        return 1.0, [
            f"a temperature needs at least {MIN_FOR_TEMPERATURE} real and as many fake clips, {kept}: read scores as "
            "a rank, not as a probability"
        ]
    auc = _auc(measured)
    if auc is not None and auc <= CHANCE_AUC:
        return 1.0, [f"the scores do not tell these real clips from these fakes (ROC-AUC {auc:.2f}), {kept}"]
    pairs = [(item.class_index, score) for item in usable for score in item.frame_probabilities()]
    frames = LabeledScores.of(pairs)
    factor = find_temperature(frames.labels, frames.probabilities)
    low, high = TEMPERATURES
    if not 1.01 * low < factor < 0.99 * high:
        return 1.0, [f"the best temperature is at the bound of its search, {kept}"]
    return factor, []


def _with_usual(calibration: Calibration, usable: Sequence[ScoredFile]) -> Calibration:
    """Add looks and histograms of the clips."""
    clips = [(item, track) for item in usable if item.verdict and (track := deciding_face(item.verdict))]
    figures = {"score": [item.fake_probability or 0.0 for item in usable]}
    for item, _ in clips:
        assert item.verdict is not None  # or it would not be among them
        for name, value in figures_of(item.verdict).items():
            if name in ("size", "weight"):
                figures.setdefault(name, []).append(value)
    looks = learn_looks(np.array([track.look for _, track in clips if track.look]))
    if looks is not None:
        figures["unlikeness"] = looks[1].tolist()
    return dataclasses.replace(
        calibration,
        looks=None if looks is None else looks[0],
        histograms=tuple(histogram_of(name, values) for name, values in figures.items()),
    )


def _limits(point: OperatingPoint, measured: LabeledScores) -> Iterator[str]:
    reals = int((measured.labels == 0).sum())
    if reals < point.clips_to_be_sure:
        yield (
            f"{reals} real clips give a share of false alarms of {point.false_positive_rate:g} on average; it may be "
            f"up to {point.real_called_fake.high or 1:.2f}. From {point.clips_to_be_sure} on it can be had with 95% "
            "confidence"
        )
    if len(measured.labels) < MIN_CLIPS:
        yield f"faces unlike these are not noticed: at least {MIN_CLIPS} clips are needed for that"
    if reals == len(measured.labels):
        yield "without fake clips nothing is known of how many fakes are found"
    elif (auc := _auc(measured)) is not None and auc <= CHANCE_AUC:
        yield (
            f"the detector does not tell these real clips from these fakes (ROC-AUC {auc:.2f}, a coin has 0.5): no "
            "threshold makes it useful for them"
        )


def _auc(measured: LabeledScores) -> float | None:
    both = 0 < measured.labels.sum() < len(measured.labels)
    return roc_auc(measured.probabilities, measured.labels) if both else None
