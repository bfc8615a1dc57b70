"""Pages and pictures of results: what cannot be made is said, or left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepfake_bench.machine.results import write_results
from deepfake_bench.report.plots import write_plots
from deepfake_client.cli import main as cli


def test_outside_of_a_checkout_the_pages_are_missed_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        cli.main(["bench", "readme", "--check"])
    assert left.value.code == 2
    assert "there is no README.md here" in capsys.readouterr().err


def test_a_trial_without_a_gpu_is_not_drawn(tmp_path: Path) -> None:
    path = write_results("gpu", {"device": "cpu", "networks": []}, tmp_path / "trial.json")
    assert write_plots(path, form="svg") == []
    assert list(tmp_path.iterdir()) == [path]
