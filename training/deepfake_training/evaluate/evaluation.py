"""From scored files to an `Evaluation`, and the found temperature and threshold into a spec."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.files import write_whole
from deepfake_training.data.labels import FAKE, LABEL_NAMES
from deepfake_training.evaluate.calibration import Float, Int, check_rule, find_temperature, find_threshold
from deepfake_training.evaluate.metrics import Estimate, measure
from deepfake_training.evaluate.report import Evaluation, Scores
from deepfake_training.evaluate.scoring import ScoredFile

FALSE_POSITIVE_RATE = 0.05
"""The share of reals called fake that is always reported, whatever rule the threshold follows."""
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
        check_rule(self.rule)
        if self.resamples < 0:
            raise OptionError(f"`resamples` must be at least 0, got {self.resamples}")


def evaluate(
    scored: Sequence[ScoredFile],
    spec: ModelSpec,
    options: EvaluateOptions,
    *,
    through: str,
    settings: dict[str, Any] | None = None,
) -> Evaluation:
    """Measure scored files.

    Args:
        scored: what `score_files` returned.
        spec: of the model that gave the scores.
        options: how.
        through: ``server`` or ``checkpoint``.
        settings: more about how it was done, for the report.
    """
    usable = [item for item in scored if item.probability is not None]
    labels = np.array([item.label for item in usable], dtype=np.int64)
    scores = np.array([item.probability for item in usable], dtype=np.float64)
    frames, frame_labels, units = _frames(usable)
    measured = partial(measure, threshold=spec.threshold, resamples=options.resamples, seed=options.seed)
    return Evaluation(
        model={"name": spec.name, "checkpoint_sha256": spec.checkpoint_sha256 or "unknown"},
        through=through,
        settings={**(settings or {}), "aggregation": options.aggregation, "bootstrap samples": options.resamples},
        per_file=measured(labels, scores),
        per_frame=measured(frame_labels, frames, units=units),
        found=_found(usable, labels, frames, frame_labels, spec, options),
        by_kind=_by_kind(usable, spec.threshold, options),
        inconclusive=tuple(
            {"source": item.source, "label": LABEL_NAMES[item.label], "reason": item.reason}
            for item in scored
            if item.probability is None
        ),
        files=tuple(
            {
                "source": item.source,
                "label": LABEL_NAMES[item.label],
                "fake_probability": item.probability,
                "frames": len(item.frame_probabilities()),
            }
            for item in usable
        ),
        notes=tuple(_limits(scored)),
        file_scores=Scores(labels, scores),
        frame_scores=Scores(frame_labels, frames),
    )


def _found(
    usable: Sequence[ScoredFile],
    labels: Int,
    frames: Float,
    frame_labels: Int,
    spec: ModelSpec,
    options: EvaluateOptions,
) -> dict[str, float | None]:
    """Return the temperature that calibrates the frames, and the thresholds for the files' scores with it."""
    temperature = find_temperature(frame_labels, frames)
    calibrated = [item.with_temperature(temperature, options.aggregation).probability for item in usable]
    scores = np.array(calibrated, dtype=np.float64)
    rules = dict.fromkeys((options.rule, "max-f1", "max-accuracy", f"fpr={FALSE_POSITIVE_RATE}"))
    return {
        "temperature": spec.temperature * temperature,
        **{f"threshold ({rule})": find_threshold(labels, scores, rule) for rule in rules},
    }


def robustness_row(scored: Sequence[ScoredFile], level: float, threshold: float) -> dict[str, Any]:
    """Return one point of a robustness curve."""
    usable = [item for item in scored if item.probability is not None]
    metrics = measure(
        [item.label for item in usable],
        [item.probability for item in usable if item.probability is not None],
        threshold,
        resamples=0,
    )
    return {
        "level": level,
        "roc_auc": metrics.figures["roc_auc"].value,
        "accuracy": metrics.figures["accuracy"].value,
        "inconclusive": len(scored) - len(usable),
    }


def calibrated_spec(spec: ModelSpec, evaluation: Evaluation, rule: str) -> ModelSpec:
    """Return the spec with the temperature and the threshold that were found.

    Raises:
        OptionError: they could not be found, because a class is missing.
    """
    threshold = evaluation.found[f"threshold ({rule})"]
    temperature = evaluation.found["temperature"]
    if threshold is None or temperature is None:
        raise OptionError(
            "a threshold cannot be found without real and fake files that have a verdict; name both, with `real` and "
            "`fake`"
        )
    return dataclasses.replace(spec, threshold=round(threshold, 4), temperature=round(temperature, 4))


def write_spec(path: Path, spec: ModelSpec) -> None:
    """Replace a spec file in one step.

    Raises:
        OptionError: it cannot be written; the file is as it was.
    """
    try:
        write_whole(path, spec.to_yaml())
    except OSError as exc:
        raise OptionError(f"{path} cannot be written ({exc}); it is as it was") from exc


def _frames(usable: Sequence[ScoredFile]) -> tuple[Float, Int, list[str]]:
    """Return score, label and source of every scored frame."""
    found = [(score, item.label, item.source) for item in usable for score in item.frame_probabilities()]
    scores, labels, sources = zip(*found, strict=True) if found else ((), (), ())
    return np.array(scores, dtype=np.float64), np.array(labels, dtype=np.int64), list(sources)


def _by_kind(
    usable: Sequence[ScoredFile], threshold: float, options: EvaluateOptions
) -> dict[str, dict[str, int | Estimate]]:
    """Measure each kind of fake against all reals; empty where there is only one kind."""
    reals = [item for item in usable if item.label != FAKE]
    kinds = sorted({item.kind for item in usable if item.label == FAKE})
    found: dict[str, dict[str, int | Estimate]] = {}
    for kind in kinds if len(kinds) > 1 else []:
        items = [*reals, *(item for item in usable if item.label == FAKE and item.kind == kind)]
        metrics = measure(
            [item.label for item in items],
            [item.probability for item in items if item.probability is not None],
            threshold,
            resamples=options.resamples,
            seed=options.seed,
        )
        found[kind] = {"files": metrics.num_fake, **{name: metrics.figures[name] for name in ("roc_auc", "recall")}}
    return found


def _limits(scored: Sequence[ScoredFile]) -> list[str]:
    notes = []
    for label, name in enumerate(LABEL_NAMES):
        count = sum(item.label == label and item.probability is not None for item in scored)
        if not count:
            notes.append(f"there is no {name} file with a verdict, so figures that need both classes are missing")
        elif count < FEW:
            notes.append(f"{count} {name} files prove little; intervals from so few are too narrow")
    without = sum(item.probability is None for item in scored)
    if without:
        fakes = sum(item.probability is None and item.label == FAKE for item in scored)
        notes.append(f"{without} files ({fakes} fake) got no verdict; they are listed and not in the figures")
    return notes
