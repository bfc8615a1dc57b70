"""README's figures are those of the results files; nobody typed them."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from checkout import ROOT

from deepfake_bench.cli.report import readme
from deepfake_bench.report import figures


def test_readme_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    readme(check=True)


def test_a_changed_figure_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "results").symlink_to(ROOT / "benchmarks" / "results")
    (tmp_path / "README.md").write_text(text.replace("x the throughput", "x as much", 1), encoding="utf-8")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(typer.Exit) as left:
        readme(check=True)
    assert left.value.exit_code == 1


WAITS = {"p50_ms": 10.2, "p99_ms": 20.4}
MODEL = {"name": "net", "precision": "fp32"}


def test_a_load_that_the_server_cannot_keep_up_with_has_no_latency() -> None:
    level = {"concurrency": 8, "requests_per_s": None, "crops_per_s": 99.6, "latency": WAITS, "falls_behind": False}
    late = {**level, "concurrency": None, "requests_per_s": 200.0, "falls_behind": True}
    data = {"model": MODEL, "crops_per_request": 1, "protocols": {"grpc": [level, late]}}
    what = "net fp32, grpc, requests of 1 crop"
    assert figures.server_rows(data) == [
        figures.Row(what, "8 in flight", "100 crops/s; p50 10 ms, p99 20 ms"),
        figures.Row(what, "200 requests/s at random times", "100 crops/s; falls behind"),
    ]


def contender(name: str, *rates: float) -> dict:
    return {"name": name, "setting": "2 workers", "concurrency": {"32": {"rounds_crops_per_s": rates}}}


COMPARED = {
    "model": MODEL,
    "ours": "Triton, HTTP",
    "in_process": "ONNX Runtime in-process",
    "contenders": [
        contender("Triton, gRPC", 80.0, 40.0, 90.0),
        contender("Triton, HTTP", 90.0, 45.0, 90.0),
        contender("ONNX Runtime in-process", 100.0, 50.0, 200.0),
        contender("Lit", 50.0, 50.0, 50.0),
    ],
    "ours_over": {
        "Triton, gRPC": {"throughput": 1.1, "p99": 1.0, "p50_alone": 1.0},
        "ONNX Runtime in-process": {"throughput": 0.9, "p99": None, "p50_alone": 1.2},
        "Lit": {"throughput": 1.5, "p99": 0.8, "p50_alone": 0.7},
    },
    "not_measured": [
        {"name": "Lit", "setting": "1 worker", "reason": "one setting failed"},
        {"name": "Bento", "setting": "1 worker", "reason": "no network"},
    ],
}


def test_what_serving_costs_is_one_figure_for_each_protocol() -> None:
    in_process = [row for row in figures.compare_rows(COMPARED) if row.against.startswith("ONNX Runtime in-process")]
    assert [(row.what, row.figure, row.headline) for row in in_process] == [
        ("net fp32, Triton, gRPC, 32 in flight", "0.80 x the throughput", False),
        ("net fp32, Triton, HTTP, 32 in flight", "0.90 x the throughput, alone 1.20 x the latency", True),
    ]
    assert not any(row.against.startswith("Triton") for row in figures.compare_rows(COMPARED))


def test_a_peer_that_was_not_measured_is_in_the_table_with_the_reason() -> None:
    assert [(row.against, row.figure) for row in figures.compare_rows(COMPARED)][2:] == [
        ("Lit (2 workers)", "1.50 x the throughput, 0.80 x the p99, alone 0.70 x the latency"),
        ("Bento", "not measured: no network"),
    ]


def test_only_measurements_on_a_gpu_are_in_the_table() -> None:
    batches = [
        {"batch": size, "crops_per_s": rate, "share_of_roofline": 0.5} for size, rate in ((1, 10.0), (8, 60.0))
    ]
    engine = {"engine": "tensorrt-fp16", "precision": "fp16", "batches": batches}
    network = {"architecture": "timm:net", "input_size_wh": [224, 224], "engines": [engine]}
    data = {"device": "cuda", "networks": [network]}
    assert figures.gpu_rows(data) == [
        figures.Row("timm:net, 224x224 px", "tensorrt-fp16", "60 crops/s at batch 8, 50% of the roofline")
    ]
    assert figures.gpu_rows({**data, "device": "cpu"}) == []
