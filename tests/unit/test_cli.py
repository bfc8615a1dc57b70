"""The command line in-process: what a person cannot easily provoke from outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepfake_client import cli, cli_analyze
from deepfake_client.verdict import Interval, Label, ModelIdentity, Timing, Verdict
from deepfake_preprocess.errors import MissingExtraError


def verdict_of(source: str) -> Verdict:
    identity = ModelIdentity("m", 1, None)
    return Verdict(
        source, Label.REAL, 0.1, Interval(0.0, 0.2), 0, 0.5, None, "", (), (), identity, Timing(0, 0, 0, 0, 0, 0)
    )


def test_ctrl_c_keeps_what_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def analyze_one(source: str, *_: object) -> cli_analyze.Outcome:
        if source == "second":
            raise KeyboardInterrupt
        return cli_analyze.Outcome(source, verdict=verdict_of(source))

    monkeypatch.setattr(cli_analyze, "_analyze_one", analyze_one)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["analyze", "first", "second", "third", "--json"])
    assert stopped.value.code == cli_analyze.EXIT_INTERRUPTED
    out, err = capsys.readouterr()
    assert [item["source"] for item in json.loads(out)] == ["first"]
    assert "1 of 3 inputs were analyzed" in err


def test_a_missing_part_is_reported_with_its_pip_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "export", cli.Command("deepfake_absent.cli:export", "export", "absent"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", "x.pt"])
    assert stopped.value.code == MissingExtraError.exit_code == 2
    assert "pip install 'deepfake-serving[export]'" in capsys.readouterr().err
