"""README's figures are those of the results files; nobody typed them."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from checkout import ROOT

from deepfake_bench.report import readme


def test_readme_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    readme.readme(check=True)


def test_a_changed_figure_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "results").symlink_to(ROOT / "benchmarks" / "results")
    (tmp_path / "README.md").write_text(text.replace("x the throughput", "x as much", 1), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(typer.Exit) as left:
        readme.readme(check=True)
    assert left.value.exit_code == 1


WAITS = {"p50_ms": 10.2, "p99_ms": 20.4}
MODEL = {"name": "net", "precision": "fp32"}


def test_a_load_that_the_server_cannot_keep_up_with_has_no_latency() -> None:
    level = {"concurrency": 8, "requests_per_s": None, "crops_per_s": 99.6, "latency": WAITS, "falls_behind": False}
    late = {**level, "concurrency": None, "requests_per_s": 200.0, "falls_behind": True}
    data = {"model": MODEL, "crops_per_request": 1, "protocols": {"grpc": [level, late]}}
    assert readme.server_rows(data) == [
        ("net fp32, grpc, requests of 1 crop", "8 in flight", "100 crops/s; p50 10 ms, p99 20 ms"),
        ("net fp32, grpc, requests of 1 crop", "200 requests/s at random times", "100 crops/s; falls behind"),
    ]


def test_a_peer_that_was_not_measured_is_in_the_table_with_the_reason() -> None:
    data = {
        "model": MODEL,
        "ours": "us",
        "contenders": [{"name": "us", "setting": ""}, {"name": "Lit", "setting": "2 workers"}],
        "ours_over": {"Lit": {"throughput": 1.5, "p99": 0.8, "p50_alone": 0.7}},
        "not_measured": [
            {"name": "Lit", "setting": "1 worker", "reason": "one setting failed"},
            {"name": "Bento", "setting": "1 worker", "reason": "no network"},
        ],
    }
    assert [row[1:] for row in readme.compare_rows(data)] == [
        ("Lit (2 workers)", "1.50 x the throughput, 0.80 x the p99, alone 0.70 x the latency"),
        ("Bento", "not measured: no network"),
    ]
