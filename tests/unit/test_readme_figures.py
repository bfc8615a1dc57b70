"""README's figures are those of the results files; nobody typed them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepfake_bench import readme

ROOT = Path(__file__).parents[2]


def test_readme_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["readme", "--check"])
    assert readme.main() == 0


def test_a_changed_figure_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "results").symlink_to(ROOT / "benchmarks" / "results")
    (tmp_path / "README.md").write_text(text.replace("x the throughput", "x as much", 1), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["readme", "--check"])
    assert readme.main() == 1
