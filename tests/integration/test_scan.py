"""`deepfake scan` on a real Triton: every input once, the verdicts of `analyze`, whatever ends a run."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from media import make_clip
from object_store import AZURE, put, served_bucket
from scan_results import results

from deepfake_client import AnalyzeOptions, DeepfakeClient, Sampling
from deepfake_client.cli.main import main
from deepfake_scan.results.parts import part_names, read_part
from deepfake_scan.results.upkeep import done_ids
from deepfake_scan.storage import open_storage

OPTIONS = ["--num-frames", "4"]


@pytest.fixture(autouse=True)
def keeps_its_cores(monkeypatch):
    """These tests run the command in their own process, which never gets its priority back."""
    monkeypatch.setattr("deepfake_scan.cli.scan.yield_cores", lambda nice, session: None)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Six short clips with a face, and a file that is none."""
    folder = tmp_path_factory.mktemp("clips")
    first = make_clip(folder / "0.mp4", duration_s=0.4)
    for number in range(1, 6):
        shutil.copy(first, folder / f"{number}.mp4")
    (folder / "damaged.mp4").write_bytes(b"no video")
    return folder


def scan(*arguments, url):
    with pytest.raises(SystemExit) as ended:
        main(["scan", *map(str, arguments), "--url", url, *OPTIONS])
    return ended.value.code


def without_times(verdict):
    return {key: value for key, value in verdict.items() if key not in ("timing_s", "source")}


def test_each_input_has_the_verdict_of_analyze_and_is_done_once(embedded_triton, clips, tmp_path, capsys):
    output, url = tmp_path / "out", embedded_triton.grpc_url
    assert scan(clips, "--output", output, url=url) == 5
    found = results(output)
    assert set(found) == {str(path) for path in clips.iterdir()}
    with DeepfakeClient(url) as client:
        expected = client.analyze(clips / "0.mp4", options=AnalyzeOptions(sampling=Sampling(num_frames=4)))
    assert without_times(found[str(clips / "3.mp4")]) == without_times(expected.to_dict())
    assert found[str(clips / "damaged.mp4")]["error"]["type"] == "MediaOpenError"

    before = sorted((output / "parts").iterdir())
    assert scan(clips, "--output", output, url=url) == 0
    assert "7 had results before" in capsys.readouterr().err
    assert sorted((output / "parts").iterdir()) == before
    # Other options are another question.
    assert scan(clips / "0.mp4", "--output", output, "--threshold", "0.7", url=url) == 0
    assert pq.read_table(output / "parts").num_rows == 8

    main_output = ["scan", "--output", str(output)]
    with pytest.raises(SystemExit):
        main([*main_output, "--compact"])
    with pytest.raises(SystemExit):
        main([*main_output, "--status"])
    # Of several runs, so not of the one input that the last one had.
    assert "out: 8 inputs in 1 part\n" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*main_output, "--status", "--json"])
    status = json.loads(capsys.readouterr().out)
    assert (status["results"], status["parts"], status["failures"]) == (8, 1, {"MediaOpenError": 1})
    assert sum(status["labels"].values()) == 7
    assert (status["last_run"]["state"], status["last_run"]["inputs"]) == ("finished", 1)

    assert scan(clips / "0.mp4", "--output", output, "--json", url=url) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["state"], summary["done"], summary["skipped"]) == ("finished", 0, 1)


@pytest.mark.parametrize("scheme", ["s3", AZURE])
def test_a_bucket_is_scanned_into_a_bucket(embedded_triton, clips, monkeypatch, capsys, scheme):
    with served_bucket(monkeypatch, scheme) as (address, store):
        put(store, "clips/a.mp4", (clips / "0.mp4").read_bytes())
        put(store, "clips/b.mp4", (clips / "damaged.mp4").read_bytes())
        output = f"{address}/out"
        assert scan(f"{address}/clips/", "--output", output, "--faces", url=embedded_triton.grpc_url) == 5
        found = results(output)
        assert found[f"{address}/clips/a.mp4"]["frames"]
        assert found[f"{address}/clips/b.mp4"]["error"]["type"] == "MediaOpenError"
        (name,) = part_names(open_storage(output))
        assert sorted(map(bool, read_part(open_storage(output), name, ["faces"]).column(0).to_pylist())) == [
            False,
            True,
        ]
        assert scan(f"{address}/clips/", "--output", output, "--faces", url=embedded_triton.grpc_url) == 0
        assert "2 had results before" in capsys.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_scan_that_is_ended_goes_on_where_it_was(embedded_triton, clips, tmp_path, how):
    output = tmp_path / "out"
    for number in range(12):
        shutil.copy(clips / "0.mp4", tmp_path / f"{number}.mp4")
    command = [sys.executable, "-m", "deepfake_client.cli.main", "scan", f"{tmp_path}/*.mp4", "--output", str(output)]
    command += ["--url", embedded_triton.grpc_url, "--metrics-port", "0", *OPTIONS]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for_work(process)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGKILL: -9}[how], said
    # What a killed scan had not written yet is done again.
    assert (len(done_ids(open_storage(str(output)))) > 0) == (how == signal.SIGINT)
    assert scan(f"{tmp_path}/*.mp4", "--output", output, url=embedded_triton.grpc_url) == 0
    assert len(results(output)) == 12


def wait_for_work(process):
    """Wait until the scan's metrics say that an input is done."""
    import urllib.request

    port = next(line for line in process.stderr if "metrics:" in line).rpartition(":")[2].partition("/")[0]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        if "deepfake_scan_inputs_total{" in text:
            return
        time.sleep(0.02)
    raise AssertionError("no input was done")


def test_no_server_is_said_at_once(tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert scan(tmp_path, "--output", tmp_path / "out", url="127.0.0.1:9") == 4
    assert "no inference server answers" in " ".join(capsys.readouterr().err.split())
    assert not Path(tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
