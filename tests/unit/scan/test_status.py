"""What `deepfake scan` says without scanning: about results, clusters, and sources that are not there."""

import json

import pytest

from deepfake_client.cli.main import main


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["scan", *map(str, arguments)])
    return ended.value.code


@pytest.mark.parametrize("question", ["--status", "--compact"])
def test_a_folder_without_results_is_refused(question, tmp_path, capsys):
    assert run(question, "--output", tmp_path / "elsewhere") == 2
    printed = capsys.readouterr()
    assert "elsewhere holds no results of a scan" in printed.err
    assert printed.out == ""
    assert not list(tmp_path.iterdir())


def test_a_scan_that_has_no_results_yet_has_a_status(tmp_path, capsys):
    model = {"name": "detector", "version": 1}
    facts = {"state": "running", "changed_at": "2026-11-29T12:00:00+00:00", "inputs": 9, "sources": ["in"]}
    (tmp_path / "scan.json").write_text(json.dumps({**facts, "model": model, "settings": {}}))
    assert run("--status", "--output", tmp_path) == 0
    said = capsys.readouterr().out
    assert "0 of 9 inputs in 0 parts" in said
    assert "last run not over, begun at 2026-11-29T12:00:00+00:00, model detector version 1, of in" in said
    assert run("--status", "--output", tmp_path, "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["last_run"] == {**facts, "model": model}
    assert (status["results"], status["labels"]) == (0, {"REAL": 0, "FAKE": 0, "INCONCLUSIVE": 0})


def test_a_plan_is_printed_as_json(capsys):
    assert run("--plan", "10e6,900", "--json") == 0
    (cluster,) = json.loads(capsys.readouterr().out)
    assert cluster["clips_per_day"] == 10_000_000
    assert cluster["servers"] == 6


def test_a_wrong_path_is_said_whether_or_not_a_server_runs(tmp_path, capsys):
    assert run(tmp_path / "clips", "--output", tmp_path / "out", "--url", "localhost:1") == 2
    assert f"there is no '{tmp_path / 'clips'}'; check the path" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())
