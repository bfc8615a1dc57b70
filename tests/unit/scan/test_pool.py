"""What an input can do to the process that opens it, and to its neighbors: nothing that lasts."""

import asyncio
import sys
from dataclasses import replace

import pytest

from deepfake_client.options import AnalyzeOptions
from deepfake_client.transport.connection import Connection
from deepfake_preprocess.errors import OptionError
from deepfake_scan.work import process
from deepfake_scan.work.pool import Pool
from deepfake_scan.work.process import ProcessStartError
from deepfake_scan.work.task import InputLimits, Setup

CHILD = """
import json, os, sys
sys.stdin.readline()
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    task = json.loads(line)
    name = task["address"]
    if name == "crash":
        os.abort()
    if name == "endless":
        continue
    if name == "once" and not os.path.exists(sys.argv[1]):
        open(sys.argv[1], "w").close()
        os._exit(9)
    answer = {"cells": {"source": name, "label": "REAL"}, "json": "{}", "starved": name == "large"}
    print(json.dumps({"number": task["number"], "answer": answer}), flush=True)
"""


@pytest.fixture
def setup(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-c", CHILD, str(tmp_path / "seen")))
    return Setup(connection=Connection(), model=None, options=AnalyzeOptions(), limits=InputLimits(seconds=60.0))


def answers(setup, *addresses, size=1):
    async def run():
        async with Pool(setup, size=size) as pool:
            return await asyncio.gather(*map(pool.analyze, addresses)), pool.deaths

    return asyncio.run(run())


def test_what_needs_one_process_starts_one(setup, monkeypatch):
    started = []
    start = process.Process.start
    monkeypatch.setattr(process.Process, "start", lambda one: started.append(one) or start(one))
    found, deaths = answers(setup, "a", size=4)
    assert (found[0].cells["label"], len(started), deaths) == ("REAL", 1, 0)
    answers(setup, "a", "b", "c", "d", size=2)
    assert len(started) == 1 + 2


def test_neighbors_of_an_input_that_kills_its_process_have_their_answers(setup):
    found, deaths = answers(setup, "a", "crash", "b", "c", "d")
    assert [answer.cells.get("label") for answer in found] == ["REAL", None, "REAL", "REAL", "REAL"]
    assert found[1].cells["error_type"] == "MediaCrashError"
    assert "ended by SIGABRT, twice" in found[1].cells["error"]
    assert deaths == 1


def test_what_goes_wrong_once_is_tried_again(setup):
    found, _ = answers(setup, "once")
    assert found[0].cells["label"] == "REAL"


def test_an_input_that_never_ends_is_ended(setup):
    found, _ = answers(replace(setup, limits=InputLimits(seconds=0.5)), "endless")
    assert found[0].cells["error_type"] == "MediaLimitError"
    assert "took longer than 0.5 s, twice" in found[0].cells["error"]


def test_where_memory_ran_out_an_input_is_tried_by_itself(setup):
    found, _ = answers(setup, "large")
    assert found[0].starved  # the answer of the second try


def test_a_process_that_cannot_start_is_no_fault_of_an_input(setup, monkeypatch):
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(ProcessStartError, match="with code 3"):
        answers(setup, "a")


@pytest.mark.parametrize("limit", [{"memory_bytes": 0}, {"seconds": -1.0}])
def test_limits_are_above_zero(limit):
    with pytest.raises(OptionError, match="allowed: "):
        InputLimits(**limit)
