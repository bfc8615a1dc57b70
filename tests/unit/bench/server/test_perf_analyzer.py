"""perf_analyzer's report is read as version 2.60 writes it, and its absence is a sentence and a result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deepfake_bench.load.senders import Target
from deepfake_bench.server import perf_analyzer
from deepfake_bench.server.perf_analyzer import PerfAnalyzerUnavailableError, Report, find_binary, read_report
from deepfake_client.cli import main as cli

# Written by perf_analyzer 2.60.0 with `--concurrency-range 4:8:4 -f`; times are in microseconds.
REPORT = """\
Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,\
Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency
4,153.164,8,963,20135,88,4039,606,2,23279,28953,31381,140259
8,1108.23,5,1038,943,105,4195,718,2,5095,14002,17487,23986
"""


def test_a_report_is_read(tmp_path: Path) -> None:
    path = tmp_path / "report.csv"
    path.write_text(REPORT, encoding="utf-8")
    assert read_report(path) == [
        Report(4, 153.164, 23.279, 28.953, 31.381, 140.259, queue_ms=20.135, compute_ms=4.733),
        Report(8, 1108.23, 5.095, 14.002, 17.487, 23.986, queue_ms=0.943, compute_ms=5.018),
    ]


@pytest.mark.parametrize("text", ["Concurrency,Throughput\n4,10\n", REPORT.replace("153.164", "fast"), REPORT[:-40]])
def test_another_format_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PerfAnalyzerUnavailableError, match=r"cannot be read .*2\.60"):
        read_report(path)


def test_a_binary_that_does_not_run_says_why_and_what_would_be_needed(tmp_path: Path) -> None:
    binary = tmp_path / "perf_analyzer"
    binary.write_text("#!/bin/sh\necho \"libc.so.6: version 'GLIBC_2.38' not found\" >&2\nexit 1\n", encoding="utf-8")
    binary.chmod(0o755)
    with pytest.raises(PerfAnalyzerUnavailableError, match=r"GLIBC_2\.38' not found; get it with: .*SDK container"):
        find_binary(binary)


def test_without_it_the_result_says_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    output = tmp_path / "here-perf-analyzer.json"
    with pytest.raises(SystemExit) as left:
        cli.main(["bench", "perf-analyzer", "--output", str(output)])
    assert left.value.code == 1
    assert "is not on the PATH" in capsys.readouterr().err
    data = json.loads(output.read_text(encoding="utf-8"))
    assert data["levels"] == "not measured"
    assert "glibc 2.38" in data["reason"]


@dataclass
class Waits:
    p50_ms: float | None


@dataclass
class Ours:
    crops_per_s: float
    latency: Waits


def test_theirs_are_compared_with_ours_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = iter([Ours(100.0, Waits(10.0)), Ours(80.0, Waits(12.0)), Ours(120.0, Waits(8.0)), Ours(80.0, Waits(12.0))])
    rates = iter([99.0, 105.0, 90.0])
    monkeypatch.setattr(perf_analyzer, "measure_level", lambda *_, **__: next(ours))
    monkeypatch.setattr(
        perf_analyzer, "run_binary", lambda *_, **__: Report(8, next(rates), 11.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    )

    class Server:
        counters = root = None

    server: Any = Server()
    load: Any = None
    target = Target("grpc", "localhost:1", "tiny")
    found = perf_analyzer.compare_level(Path("binary"), server, target, load, 8, window_s=1.0, rounds=3)
    assert found["throughput_difference"] == pytest.approx(0.05)  # 99 to 90, 105 to 100, 90 to 100
    assert found["p50_difference"] == pytest.approx(0.1)  # 11 to 11, 11 to 10, 11 to 10
    assert found["ours_from_one_to_the_next"] == pytest.approx(0.5)
    assert found["agree"]
    assert [len(found["ours"]), len(found["perf_analyzer"])] == [4, 3]
