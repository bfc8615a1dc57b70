"""A week's results of `deepfake analyze`, compared with a model's calibration, and the report on it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from deepfake_client.result.outcome import Outcome
from deepfake_client.result.verdict import Verdict
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.files import write_whole, writing
from deepfake_preprocess.support.text import reason_of, visible
from deepfake_training.evaluate.usual import FIGURES, Drift, drift_of

REPORT = "drift.json"


def read_verdicts(paths: Iterable[str | Path]) -> list[Verdict]:
    """Return the verdicts in files of results: JSON, or JSON lines, as `deepfake analyze` and the service write them.

    Inputs that could not be analyzed are passed over.

    Raises:
        OptionError: a file cannot be read, or holds something else.
    """
    verdicts = []
    for path in map(Path, paths):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise OptionError(
                f"{path} cannot be read as results ({reason_of(exc)}); name a file of `deepfake analyze`"
            ) from exc
        try:
            verdicts += [found.verdict for found in map(Outcome.from_dict, _items(text)) if found.verdict is not None]
        except (ValueError, AttributeError, OptionError) as exc:
            raise OptionError(
                f"{path} does not hold results of `deepfake analyze` as JSON or JSON lines ({exc}); write them with "
                "its option for JSON"
            ) from exc
    return verdicts


def _items(text: str) -> list[dict[str, object]]:
    """Return the results in a text: one, an array, or one in each line, of which the last may be torn."""
    try:
        found = json.loads(text)
    except ValueError:
        lines = [line for line in text.split("\n") if line.strip()]
        whole = lines if text.endswith("\n") else lines[:-1]
        if not whole:
            raise
        return [json.loads(line) for line in whole]
    return found if isinstance(found, list) else [found]


def drift_of_verdicts(verdicts: Sequence[Verdict], spec: ModelSpec) -> Drift:
    """Compare verdicts with the calibration of the model that is served.

    Those of other models and versions are left out, and said.

    Raises:
        OptionError: the model has no calibration, or there are too few clips.
    """
    model = spec.name, spec.version
    own = [item for item in verdicts if (item.model.name, item.model.version) == model]
    found = {(item.model.name, item.model.version) for item in verdicts} - {model}
    others = [f"{name!r} version {version}" for name, version in sorted(found)]
    notes = []
    if others:
        notes.append(f"left out: {len(verdicts) - len(own)} of {len(verdicts)} results, of {', '.join(others)}")
    return drift_of(own, spec.calibration, model=spec.name, version=spec.version, notes=notes)


def write_drift(drift: Drift, directory: Path) -> Path:
    """Write ``drift.json`` and return its path; `OptionError` where the directory cannot be written."""
    path = directory / REPORT
    with writing(directory, "name another directory"):
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(drift.to_dict(), indent=2) + "\n")
    return path


def drift_as_text(drift: Drift) -> list[str]:
    """Return the comparison as lines for people."""
    model = f"{visible(drift.model)} version {drift.version}"
    lines = [f"{drift.num_clips} clips of {model}, compared with its calibration", ""]
    for figure in drift.figures:
        state = "CHANGED" if figure.drifted else "as before"
        lines.append(f"{FIGURES[figure.figure]:28} {state:10} index {figure.index:.2f}, limit {figure.limit:.2f}")
        if figure.drifted:
            ends = ["", *(f"{edge:.3g}" for edge in figure.edges), ""]
            for low, high, before, now in zip(ends[:-1], ends[1:], figure.shares, figure.shares_now, strict=True):
                where = f"{low} to {high}" if low and high else (f"below {high}" if high else f"from {low}")
                lines.append(f"  {where:26} {before:4.0%} before, {now:4.0%} now")
    answer = "no change that chance does not explain"
    if drift.drifted:
        answer = "these clips are not like those of the calibration: look at them, and calibrate again with them"
    return [*lines, "", answer, *map(visible, drift.notes)]
