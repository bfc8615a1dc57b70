"""From scored files to an `Evaluation`, and the found temperature and threshold into a spec."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError
from deepfake_training.data.faces import FAKE
from deepfake_training.evaluate.calibration import apply_temperature, find_temperature, find_threshold
from deepfake_training.evaluate.metrics import Estimate, measure
from deepfake_training.evaluate.report import Evaluation, Scores
from deepfake_training.evaluate.scoring import ScoredFile
from deepfake_training.loop.checkpointing import save_whole

LABELS = ("real", "fake")
FALSE_POSITIVE_RATE = 0.05
"""The share of reals called fake that is always reported, whatever rule the threshold follows."""
FEW = 20
"""Files of a class below which a note says how little they prove."""


def evaluate(
    scored: Sequence[ScoredFile],
    spec: ModelSpec,
    *,
    through: str,
    settings: dict[str, Any],
    aggregation: str,
    rule: str = "max-accuracy",
    calibrate: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Measure scored files.

    Args:
        scored: what `score_files` returned.
        spec: of the model that gave the scores.
        through: ``server`` or ``checkpoint``.
        settings: how it was done; goes into the report.
        aggregation: name of the client's strategy the scores were made with.
        rule: how the proposed threshold is found; see `find_threshold`.
        calibrate: measure with the temperature and threshold found, instead of the spec's. Figures are then those of
            the data that the two were chosen on, and say so.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    notes = _limits(scored)
    usable = [item for item in scored if item.probability is not None]
    labels = np.array([item.label for item in usable], dtype=np.int64)
    frames, frame_labels, units = _frames(usable)
    temperature = find_temperature(frame_labels, frames)
    calibrated = [item.with_temperature(temperature, aggregation) for item in usable]
    proposals = np.array([item.probability for item in calibrated], dtype=np.float64)
    found: dict[str, float | None] = {
        "temperature": spec.temperature * temperature,
        f"threshold ({rule})": find_threshold(labels, proposals, rule),
        **{
            f"threshold ({other})": find_threshold(labels, proposals, other)
            for other in ("max-f1", "max-accuracy", f"fpr={FALSE_POSITIVE_RATE}")
            if other != rule
        },
    }
    threshold = spec.threshold
    if calibrate:
        usable, frames = calibrated, apply_temperature(frames, temperature)
        threshold = found[f"threshold ({rule})"] or threshold
        notes.append("temperature and threshold were chosen on these same files; figures at that threshold flatter")
    scores = np.array([item.probability for item in usable], dtype=np.float64)
    return Evaluation(
        model={"name": spec.name, "checkpoint_sha256": spec.checkpoint_sha256 or "unknown"},
        through=through,
        settings=settings,
        per_file=measure(labels, scores, threshold, resamples=resamples, seed=seed),
        per_frame=measure(frame_labels, frames, threshold, units=units, resamples=resamples, seed=seed),
        temperature=temperature if calibrate else 1.0,
        found=found,
        by_kind=_by_kind(usable, threshold, resamples, seed),
        inconclusive=tuple(
            {"source": item.source, "label": LABELS[item.label], "reason": item.reason}
            for item in scored
            if item.probability is None
        ),
        files=tuple(
            {
                "source": item.source,
                "label": LABELS[item.label],
                "fake_probability": item.probability,
                "frames": len(item.frame_probabilities()),
            }
            for item in usable
        ),
        notes=tuple(notes),
        file_scores=Scores(labels, scores),
        frame_scores=Scores(frame_labels, frames),
    )


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
            "a threshold cannot be found without real and fake files that have a verdict; name both with --real and "
            "--fake"
        )
    return dataclasses.replace(spec, threshold=round(threshold, 4), temperature=round(temperature, 4))


def write_spec(path: str | Path, spec: ModelSpec) -> None:
    """Replace a spec file in one step.

    Raises:
        TrainingError: it cannot be written; the file is as it was.
    """
    save_whole(Path(path), spec.to_yaml())


def _frames(usable: Sequence[ScoredFile]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], list[str]]:
    values, labels, units = [], [], []
    for item in usable:
        found = item.frame_probabilities()
        values += found
        labels += [item.label] * len(found)
        units += [item.source] * len(found)
    return np.array(values, dtype=np.float64), np.array(labels, dtype=np.int64), units


def _by_kind(
    usable: Sequence[ScoredFile], threshold: float, resamples: int, seed: int
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
            resamples=resamples,
            seed=seed,
        )
        found[kind] = {"files": metrics.num_fake, **{name: metrics.figures[name] for name in ("roc_auc", "recall")}}
    return found


def _limits(scored: Sequence[ScoredFile]) -> list[str]:
    notes = []
    for label, name in enumerate(LABELS):
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
