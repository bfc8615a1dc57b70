"""Files of results are read as they were written, and compared with the model that is served."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import verdicts

from deepfake_client.result.outcome import Outcome
from deepfake_preprocess.contract.spec import Calibration, Histogram, ModelSpec
from deepfake_preprocess.errors import MediaNotFoundError, OptionError
from deepfake_training.evaluate.drift import drift_as_text, drift_of_verdicts, read_verdicts

CALIBRATION = Calibration(60, 0, 0.05, 0.5, None, (Histogram("score", (0.2, 0.4), (20, 20, 20)),))
SPEC = ModelSpec("tiny", "torchscript", calibration=CALIBRATION)


def lines_of(count: int, score: float = 0.3) -> list[str]:
    return [json.dumps(verdicts.verdict(f"{number}.mp4", score=score).to_dict()) for number in range(count)]


def test_results_are_read_in_every_form(tmp_path: Path) -> None:
    path = tmp_path / "week.json"
    failed = json.dumps(Outcome("x", error=MediaNotFoundError("there is no file 'x'")).to_dict())
    for text, count in (
        (lines_of(1)[0], 1),
        (f"[{', '.join(lines_of(3))}]", 3),
        ("\n".join([*lines_of(3), failed, ""]), 3),
        ("\n".join([*lines_of(3), lines_of(1)[0][:90]]), 3),  # torn by a crash
    ):
        path.write_text(text)
        assert len(read_verdicts([path])) == count
    for text in ("", "no JSON\n", '{"a": 1}', "3"):
        path.write_text(text)
        with pytest.raises(OptionError, match=r"does not hold results of `deepfake analyze`"):
            read_verdicts([path])
    with pytest.raises(OptionError, match="cannot be read as results"):
        read_verdicts([tmp_path / "missing"])


def test_results_of_other_models_are_left_out(tmp_path: Path) -> None:
    other = dataclasses.replace(verdicts.verdict(), model=dataclasses.replace(verdicts.MODEL, version=7))
    path = tmp_path / "week.jsonl"
    path.write_text("\n".join([*lines_of(30), json.dumps(other.to_dict()), ""]))
    drift = drift_of_verdicts(read_verdicts([path]), SPEC)
    assert (drift.num_clips, drift.drifted) == (30, True)
    assert drift.notes == ("left out: 1 of 31 results, of 'tiny' version 7",)
    text = "\n".join(drift_as_text(drift))
    assert "fake probability             CHANGED" in text
    assert "0.2 to 0.4                  33% before, 100% now" in text
    assert "calibrate again" in text
