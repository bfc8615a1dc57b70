"""From scored files to an `Evaluation`, and the found temperature and threshold into a spec."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from deepfake_client.result.verdict import Reason
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.files import write_whole, writing
from deepfake_preprocess.support.json_data import JsonData
from deepfake_training.data.labels import LabelName
from deepfake_training.evaluate.calibration import (
    TEMPERATURES,
    false_positive_share,
    find_temperature,
    find_threshold,
)
from deepfake_training.evaluate.metrics import DetectionMetrics, Estimate, Float, Int, measure, share_of
from deepfake_training.evaluate.scoring import ScoredFile

FALSE_POSITIVE_RATE = 0.05
"""The share of reals called fake that is always reported, whatever rule the threshold follows."""
CHANCE_AUC = 0.55
"""Up to this ROC-AUC a detector is taken to guess (0.5 is a coin), and nothing can be calibrated on its scores."""
FEW = 20
"""Files of a class below which a note says how little they prove."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """How scored files are measured.

    Attributes:
        aggregation: name of the client's strategy that the scores were made with.
        rule: how the proposed threshold is found; see `find_threshold`.
        resamples: samples of the bootstrap; 0 gives no intervals.
        seed: of the bootstrap.
    """

    aggregation: str = "mean"
    rule: str = "max-accuracy"
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        false_positive_share(self.rule)  # refuses an unknown rule
        if self.resamples < 0:
            raise OptionError(f"`resamples` must be at least 0, got {self.resamples}")


@dataclass(frozen=True, slots=True, eq=False)
class LabeledScores:
    """Scores that were measured.

    Attributes:
        labels: ``[N]``, 1 for fake.
        probabilities: ``[N]`` in [0, 1].
    """

    labels: Int
    probabilities: Float

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, float]]) -> LabeledScores:
        """Return pairs of label and probability as arrays; there may be none."""
        labels, scores = np.array([*pairs], dtype=np.float64).reshape(-1, 2).T
        return cls(labels.astype(np.int64), scores)


@dataclass(frozen=True, slots=True)
class RobustnessPoint(JsonData):
    """Figures at one level of a degradation.

    Attributes:
        level: how strong it is, in the degradation's own unit.
        roc_auc: per file; None where a class is missing.
        accuracy: per file, at the threshold of the model.
        inconclusive: files without a verdict.
    """

    level: float
    roc_auc: float | None
    accuracy: float | None
    inconclusive: int


@dataclass(frozen=True, slots=True)
class Abstaining(JsonData):
    """What users of a calibrated model get, who are told "don't know" where it says so; shares of files.

    Attributes:
        undecided: share of all files that is left open.
        near_threshold: files left open for their score.
        out_of_distribution: files left open for the looks of their face.
        real_called_fake: of the real files.
        fake_found: of the fake files.
        fake_called_real: of the fake files.
    """

    undecided: Estimate
    near_threshold: int
    out_of_distribution: int
    real_called_fake: Estimate
    fake_found: Estimate
    fake_called_real: Estimate


@dataclass(frozen=True, slots=True)
class Evaluation(JsonData):
    """Everything an evaluation found.

    Attributes:
        model: name of the model and hash of its checkpoint.
        through: ``server`` or ``checkpoint``.
        settings: how it was done, as plain data.
        per_file: figures per video or image.
        per_frame: figures per frame.
        found: proposed temperature and thresholds, by name.
        by_source: figures per file of each source, where there are several; see `by_source`.
        abstaining: figures with verdicts left open; None for a model without a calibration. All others decide always.
        robustness: by kind of degradation, from mild to strong.
        files: every file; one without a verdict is not in the figures.
        notes: what limits these figures, as sentences.
        file_scores: what `per_file` was computed from.
        frame_scores: what `per_frame` was computed from.
    """

    model: dict[str, str]
    through: str
    settings: dict[str, Any]
    per_file: DetectionMetrics
    per_frame: DetectionMetrics
    found: dict[str, float | None]
    by_source: dict[str, DetectionMetrics]
    abstaining: Abstaining | None
    robustness: dict[str, tuple[RobustnessPoint, ...]]
    files: tuple[ScoredFile, ...]
    notes: tuple[str, ...]
    file_scores: LabeledScores = field(metadata={"exclude": True})
    frame_scores: LabeledScores = field(metadata={"exclude": True})

    @property
    def inconclusive(self) -> list[ScoredFile]:
        """The files without a verdict."""
        return [item for item in self.files if item.fake_probability is None]


def evaluate_files(
    scored: Sequence[ScoredFile],
    spec: ModelSpec,
    options: EvaluateOptions,
    *,
    through: str,
    settings: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Measure scored files.

    Args:
        scored: what `score_files` returned.
        spec: of the model that gave the scores.
        options: how.
        through: ``server`` or ``checkpoint``.
        settings: more about how it was done, for the report.
    """
    usable = [item for item in scored if item.fake_probability is not None]
    files = scores_of(usable)
    on_frames = [(item, score) for item in usable for score in item.frame_probabilities()]
    frames = LabeledScores.of((item.class_index, score) for item, score in on_frames)
    measured = partial(measure, threshold=spec.threshold, resamples=options.resamples, seed=options.seed)
    proposed = _found(usable, files.labels, frames, spec, options)
    return Evaluation(
        model={"name": spec.name, "checkpoint_sha256": spec.checkpoint_sha256 or "unknown"},
        through=through,
        settings={**(settings or {}), "aggregation": options.aggregation, "bootstrap samples": options.resamples},
        per_file=measured(files.labels, files.probabilities),
        per_frame=measured(frames.labels, frames.probabilities, units=[item.source for item, _ in on_frames]),
        found=proposed,
        by_source={
            source: measured(found.labels, found.probabilities) for source, found in by_source(usable).items()
        },
        abstaining=_abstaining(usable, spec, options.aggregation),
        robustness={},
        files=tuple(scored),
        notes=(*_limits(scored), *_at_bound(proposed["temperature"], spec)),
        file_scores=files,
        frame_scores=frames,
    )


def evaluate_apart(
    choosing: Sequence[ScoredFile],
    reported: Sequence[ScoredFile],
    spec: ModelSpec,
    options: EvaluateOptions,
    *,
    through: str,
    settings: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Choose temperature and threshold on some files, and measure others with them; see `clips.split_files`.

    Where nothing can be chosen, those of the spec stay, and a note says why. A calibration in the spec, which belongs
    to its own threshold, is left out.

    Args:
        choosing: what `score_files` returned for the files to choose on.
        reported: likewise for the files that the figures are of.
        spec: of the model that gave the scores.
        options: how.
        through: ``server`` or ``checkpoint``.
        settings: more about how it was done, for the report.
    """
    spec = dataclasses.replace(spec, calibration=None)
    chosen = evaluate_files(choosing, spec, dataclasses.replace(options, resamples=0), through=through)
    proposal, notes = spec, [f"temperature and threshold were chosen on {len(choosing)} other files"]
    try:
        proposal = calibrated_spec(spec, chosen, options.rule)
    except OptionError as exc:
        notes = [f"those of the model were kept: on the {len(choosing)} files to choose on, {exc}"]
    factor = proposal.temperature / spec.temperature
    moved = [item.with_temperature(factor, options.aggregation) for item in reported]
    evaluation = evaluate_files(moved, proposal, options, through=through, settings=settings)
    return dataclasses.replace(evaluation, found=chosen.found, notes=(*evaluation.notes, *notes))


def _abstaining(usable: Sequence[ScoredFile], spec: ModelSpec, aggregation: str) -> Abstaining | None:
    if spec.calibration is None:
        return None
    reasons = [item.left_open(spec, aggregation) for item in usable]
    found = scores_of(usable)
    decided, called_fake = np.array([reason is None for reason in reasons]), found.probabilities >= spec.threshold
    real, fake = found.labels == 0, found.labels == 1
    return Abstaining(
        share_of(~decided),
        reasons.count(Reason.NEAR_THRESHOLD),
        reasons.count(Reason.OUT_OF_DISTRIBUTION),
        share_of((decided & called_fake)[real]),
        share_of((decided & called_fake)[fake]),
        share_of((decided & ~called_fake)[fake]),
    )


def by_source(scored: Sequence[ScoredFile]) -> dict[str, LabeledScores]:
    """Return the scores of each source; none where all files are of one.

    A source is what a file's folder is called: ``real/dfdc`` and ``fake/dfdc`` are one. Fakes of a source without
    reals are measured against the reals of all sources.
    """
    sources = sorted({item.kind for item in scored})
    reals = [item for item in scored if item.label == "real"]
    found = {}
    for source in sources if len(sources) > 1 else []:
        own = [item for item in scored if item.kind == source]
        has_reals = any(item.label == "real" for item in own)
        found[source] = scores_of(own if has_reals else [*reals, *own])
    return found


def robustness_point(scored: Sequence[ScoredFile], level: float, threshold: float) -> RobustnessPoint:
    """Return one point of a robustness curve.

    Args:
        scored: the files at this level.
        level: how strong the degradation is.
        threshold: of the model.
    """
    usable = scores_of(scored)
    metrics = measure(usable.labels, usable.probabilities, threshold, resamples=0)
    return RobustnessPoint(level, metrics.roc_auc.value, metrics.accuracy.value, len(scored) - len(usable.labels))


def calibrated_spec(spec: ModelSpec, evaluation: Evaluation, rule: str) -> ModelSpec:
    """Return the spec with the temperature and the threshold that were found.

    Raises:
        OptionError: they could not be found, because a class is missing, or mean nothing, because the scores do not
            tell real from fake.
    """
    threshold = evaluation.found[f"threshold ({rule})"]
    temperature = evaluation.found["temperature"]
    if threshold is None or temperature is None:
        raise OptionError(
            "a threshold cannot be found without real and fake files that have a verdict; name both, with `real` and "
            "`fake`"
        )
    auc = evaluation.per_file.roc_auc.value
    if auc is not None and auc <= CHANCE_AUC:
        turned = ", or do the labels and 'head.fake_index' agree" if auc < 1 - CHANCE_AUC else ""
        raise OptionError(
            f"the scores do not tell real from fake on these files (ROC-AUC {auc:.2f}, a coin has 0.5), so no "
            f"temperature or threshold was written; is it the right checkpoint, crop and preprocessing{turned}?"
        )
    return dataclasses.replace(spec, threshold=round(threshold, 4), temperature=round(temperature, 4))


def save_spec(path: Path, spec: ModelSpec) -> None:
    """Replace a spec file in one step.

    Raises:
        OptionError: it cannot be written; the file is as it was.
    """
    with writing(path, "it is as it was"):
        write_whole(path, spec.to_yaml())


def scores_of(files: Iterable[ScoredFile]) -> LabeledScores:
    """Return the scores of the files that have one."""
    return LabeledScores.of(
        (item.class_index, item.fake_probability) for item in files if item.fake_probability is not None
    )


def _found(
    usable: Sequence[ScoredFile], labels: Int, frames: LabeledScores, spec: ModelSpec, options: EvaluateOptions
) -> dict[str, float | None]:
    """Return the temperature that calibrates the frames, and the thresholds for the files' scores with it."""
    temperature = find_temperature(frames.labels, frames.probabilities)
    calibrated = [item.with_temperature(temperature, options.aggregation) for item in usable]
    scores = scores_of(calibrated).probabilities
    rules = dict.fromkeys((options.rule, "max-f1", "max-accuracy", f"fpr={FALSE_POSITIVE_RATE}"))
    return {
        "temperature": spec.temperature * temperature,
        **{f"threshold ({rule})": find_threshold(labels, scores, rule) for rule in rules},
    }


def _at_bound(temperature: float | None, spec: ModelSpec) -> Iterator[str]:
    """Say that a temperature is where the search ends, and so was not found."""
    factor = (temperature or spec.temperature) / spec.temperature
    low, high = TEMPERATURES
    if factor > 0.99 * high:
        yield f"the temperature is at its bound ({high:g} times that of the spec): the scores say next to nothing"
    elif factor < 1.01 * low:
        yield (
            f"the temperature is at its bound ({low:g} times that of the spec): these files are told apart without "
            "an error, and cannot say how sure the scores may be; evaluate on more and harder ones before using it"
        )


def _limits(scored: Sequence[ScoredFile]) -> Iterator[str]:
    for name in get_args(LabelName):
        count = sum(item.label == name and item.fake_probability is not None for item in scored)
        if not count:
            yield f"there is no {name} file with a verdict; figures that need both classes are missing"
        elif count < FEW:
            yield f"few {name} files ({count}) prove little; intervals from so few are too narrow"
    without = [item for item in scored if item.fake_probability is None]
    if without:
        fakes = sum(item.label == "fake" for item in without)
        yield f"files without a verdict are listed and not in the figures: {len(without)}, of these {fakes} fake"
