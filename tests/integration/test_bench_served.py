"""`deepfake bench served`: what serving costs, by protocol, against the same sessions in-process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepfake_bench.report.readme import served_rows
from deepfake_client.cli import main as cli


def bench_served(repository: Path, output: Path, *options: str) -> int:
    arguments = ["--rounds", "2", "--seconds", "0.4", "--output", str(output), *options]
    with pytest.raises(SystemExit) as left:
        cli.main(["bench", "served", "--repository", str(repository), *arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


def test_each_protocol_is_measured_against_the_same_sessions(shared_tiny_repository, tmp_path, capsys) -> None:
    output = tmp_path / "here-served.json"
    assert bench_served(shared_tiny_repository, output, "--concurrency", "8") == 0
    data = json.loads(output.read_text(encoding="utf-8"))
    assert list(data["protocols"]) == ["grpc", "http", "grpc-shm"]
    in_process = [[item["same_sessions"] for item in one["rounds"]] for one in data["protocols"].values()]
    assert len(in_process[0]) == 2
    assert in_process[0] == in_process[1] == in_process[2]
    for item in data["protocols"].values():
        ratios = [one["served"] / one["same_sessions"] for one in item["rounds"]]
        assert item["ratio_to_same_sessions"] == pytest.approx(sum(ratios) / 2, abs=1e-3)
        assert item["crops_per_s"] > 0
        assert item["server_cpu_ms_per_crop"] > 0
        assert item["load_cpu_ms_per_crop"] > 0
        assert 1 <= item["mean_batch"] <= data["max_batch_size"]
        assert item["largest_probability_difference"] < 1e-4
    assert "served, grpc-shm, 8 in flight" in capsys.readouterr().out
    rows = served_rows(data)
    assert len(rows) == 9
    assert "tiny served, http, 8 concurrent crops" in {what for what, _, _ in rows}


def test_an_unknown_protocol_is_refused(shared_tiny_repository, tmp_path, capsys) -> None:
    output = tmp_path / "here-served.json"
    assert bench_served(shared_tiny_repository, output, "--protocol", "grpc,carrier-pigeon") == 2
    assert "allowed: grpc, http, grpc-shm" in capsys.readouterr().err
    assert not output.exists()
