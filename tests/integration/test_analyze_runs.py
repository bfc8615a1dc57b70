"""Runs over many inputs that are interrupted: nothing done is lost, and the same command goes on with --resume."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from checkout import ROOT
from media import make_clip, make_kinds, write_video
from server_processes import FAULTS

from deepfake_serve import EmbeddedTriton

NUM_CLIPS = 6
SCHEMA = json.loads((ROOT / "docs" / "verdict.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    first = make_clip(folder / "clip0.mp4", size_wh=(640, 360), duration_s=2, faces=2)
    for number in range(1, NUM_CLIPS):
        shutil.copy(first, folder / f"clip{number}.mp4")
    return folder


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deepfake_client.cli.main", "analyze", *map(str, arguments)],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def when_done(process: subprocess.Popen[str], journal: Path, count: int, then: Callable[[], None]) -> None:
    """Call `then` as soon as `count` results are on disk."""
    while not journal.exists() or journal.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)  # between polls
    then()


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def verdicts(items: list[dict[str, Any]]) -> list[str]:
    return sorted(item["source"] for item in items if item.get("label") in ("REAL", "FAKE"))


def test_killing_and_restarting_the_server_loses_no_result(
    tiny_repository: Path, clips: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "run.jsonl"
    options = ("--output", journal, "--num-frames", 12, "--csv", tmp_path / "run.csv", "--json", "--retry", 1)
    with EmbeddedTriton(tiny_repository) as triton:
        process = start(clips, *options, "--url", triton.grpc_url, cwd=tmp_path)
        when_done(process, journal, 2, lambda: os.kill(triton.pid or 0, signal.SIGKILL))
        code, out, err = finish(process)
    assert code == 4
    first = json.loads(out)
    jsonschema.validate(first, SCHEMA)
    assert len(first) == NUM_CLIPS, "every input is accounted for"
    done = verdicts(first)
    assert 2 <= len(done) < NUM_CLIPS
    assert verdicts(results(journal)) == done
    assert "--resume" in err

    with EmbeddedTriton(tiny_repository) as triton:
        code, out, err = finish(start(clips, *options, "--url", triton.grpc_url, "--resume", cwd=tmp_path))
    assert code == 0, err
    second = json.loads(out)
    jsonschema.validate(second, SCHEMA)
    expected = [str(clips / f"clip{number}.mp4") for number in range(NUM_CLIPS)]
    assert verdicts(second) == expected
    kept = results(journal)
    assert Counter(item["source"] for item in kept) == Counter(expected), "complete, and nothing twice"
    for item in kept:
        jsonschema.validate(item, SCHEMA)
    with (tmp_path / "run.csv").open(encoding="utf-8") as file:
        assert sorted(row["source"] for row in csv.DictReader(file)) == expected
    # Results of the first run are taken over as they were, timing and all.
    by_source = {item["source"]: item for item in second}
    assert all(by_source[item["source"]] == item for item in first if item["source"] in done)


@pytest.mark.slow
def test_a_run_over_100_clips_outlives_a_restart_of_the_server(tiny_repository: Path, tmp_path: Path) -> None:
    """The server is killed while the run goes on, and serves again: the same run ends with every verdict."""
    folder = tmp_path / "clips"
    folder.mkdir()
    kinds = make_kinds(tmp_path, duration_s=1)
    expected = [str(folder / f"clip{number:03}.mp4") for number in range(100)]
    for number, path in enumerate(expected):
        shutil.copy(kinds[number % len(kinds)], path)
    journal = tmp_path / "run.jsonl"
    with EmbeddedTriton(tiny_repository) as triton:
        options = ("--output", journal, "--num-frames", 6, "--json", "--url", triton.grpc_url, "--retry", 120)
        process = start(folder, *options, cwd=tmp_path)
        when_done(process, journal, 40, lambda: FAULTS["server killed"](triton.pid))
        done_before = len(results(journal))
        code, out, err = finish(process)
    assert code == 0, err
    found = json.loads(out)
    assert [item["source"] for item in found] == expected, "every input once, in order"
    assert 40 <= done_before < 100, "the server was away in the middle"
    assert Counter(item["source"] for item in results(journal)) == Counter(expected)
    for number, item in enumerate(found):
        jsonschema.validate(item, SCHEMA)
        alike = found[number % len(kinds)]
        assert (item["label"], item["fake_probability"], item["frames"]) == (
            alike["label"], alike["fake_probability"], alike["frames"],
        ), "no frame of it is missing"  # fmt: skip
        assert len(item["frames"]) == 6


def test_ctrl_c_and_resume(embedded_triton: EmbeddedTriton, clips: Path, tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    options = ("--output", journal, "--num-frames", 12, "--jsonl", "--url", embedded_triton.grpc_url)
    process = start(clips, *options, cwd=tmp_path)
    when_done(process, journal, 1, lambda: process.send_signal(signal.SIGINT))
    code, out, err = finish(process)
    assert code == 130
    printed = [json.loads(line)["source"] for line in out.splitlines()]
    assert 1 <= len(printed) < NUM_CLIPS
    assert [item["source"] for item in results(journal)] == printed

    code, out, err = finish(start(clips, *options, "--resume", cwd=tmp_path))
    assert code == 0, err
    assert len({json.loads(line)["source"] for line in out.splitlines()}) == len(out.splitlines()) == NUM_CLIPS


def test_good_and_bad_inputs_in_one_directory(embedded_triton: EmbeddedTriton, clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy(clips / "clip0.mp4", folder)
    (folder / "broken.mp4").write_text("no video")
    write_video(folder / "gray.mp4", [np.full((120, 160, 3), 127, np.uint8)] * 5)
    code, out, err = finish(
        start(
            "mixed",
            "--json",
            "--report",
            "report",
            "--num-frames",
            4,
            "--url",
            embedded_triton.grpc_url,
            cwd=tmp_path,
        )
    )
    assert code == 5
    jsonschema.validate(json.loads(out), SCHEMA)
    broken, good, gray = json.loads(out)
    assert broken["error"]["type"] == "MediaOpenError"
    assert (good["source"], gray["reason"]) == ("mixed/clip0.mp4", "no_face")
    assert err.count("error: ") == 1
    assert "broken.mp4" in err
    assert len(list((tmp_path / "report").glob("*/confidence_timeline.png"))) == 2
    assert "broken.mp4" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


def test_until_sure_looks_at_fewer_frames(embedded_triton: EmbeddedTriton, clips: Path, tmp_path: Path) -> None:
    code, out, err = finish(
        start(clips / "clip0.mp4", "--json", "--until-sure", "--url", embedded_triton.grpc_url, cwd=tmp_path)
    )
    assert code == 0, err
    data = json.loads(out)
    jsonschema.validate(data, SCHEMA)
    assert data["frames_saved"] > 0
    assert len(data["frames"]) + data["frames_saved"] == 32
