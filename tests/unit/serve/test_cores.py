"""Whose turn it is to compute, and when a lone request may use the other cores."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from deepfake_serve import _cores as cores
from deepfake_serve._cores import Turns, cores_are_idle, running_alone


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the kernel says of its load: on four cores only this thread is running."""
    path = tmp_path / "loadavg"
    path.write_text("0.20 0.18 0.12 1/80 11206\n", encoding="ascii")
    monkeypatch.setattr(cores, "LOAD", path)
    monkeypatch.setattr(cores, "CORES", 4)
    return path


@pytest.mark.parametrize(("runnable", "wanted", "idle"), [(1, 3, True), (2, 3, False), (3, 1, True), (9, 1, False)])
def test_cores_are_idle_when_nothing_else_is_runnable(load: Path, runnable: int, wanted: int, idle: bool) -> None:
    load.write_text(f"0.20 0.18 0.12 {runnable}/80 11206\n", encoding="ascii")
    assert cores_are_idle(wanted) is idle


def test_of_several_instances_only_one_that_runs_by_itself_is_alone(load: Path, tmp_path: Path) -> None:
    lock = tmp_path / "config.pbtxt"
    lock.touch()
    with lock.open("rb") as first, lock.open("rb") as second, lock.open("rb") as third:
        with running_alone(first, cores_wanted=3) as alone:
            assert alone
            with running_alone(second, cores_wanted=3) as beside, running_alone(third, cores_wanted=3) as last:
                assert not beside
                assert not last
        with running_alone(second, cores_wanted=3) as alone:
            assert alone, "the others have ended"
        with running_alone(second, cores_wanted=None) as asked, running_alone(first, cores_wanted=3) as alone:
            assert not asked
            assert not alone, "whoever does not ask runs as well"
        with pytest.raises(ValueError, match="failed"), running_alone(first, cores_wanted=3):
            raise ValueError("failed")
        with running_alone(third, cores_wanted=3) as alone:
            assert alone, "a run that failed has ended, too"
        load.write_text("0.20 0.18 0.12 3/80 11206\n", encoding="ascii")
        with running_alone(first, cores_wanted=3) as alone:
            assert not alone, "somebody else uses the cores"


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "turns")
    return tmp_path / "turns"


def test_so_many_compute_at_a_time_and_the_next_one_follows(pipe: Path) -> None:
    first, second, third = (Turns(pipe, brings_one=number < 2) for number in range(3))
    began = threading.Event()

    def compute() -> None:
        with third.taken():
            began.set()

    waiting = threading.Thread(target=compute)
    with pytest.raises(ValueError, match="failed"), first.taken():
        raise ValueError("failed")
    with first.taken():
        with second.taken():
            waiting.start()
            assert not began.wait(0.1)
        assert began.wait(30)
        waiting.join()


def test_an_end_takes_turns_away_and_a_new_beginning_finds_none_of_them(pipe: Path) -> None:
    before = [Turns(pipe, brings_one=number < 2) for number in range(3)]
    one = Turns(pipe, brings_one=True)
    for turns in before:
        turns.close()
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(descriptor, 10) == b".", "that of the one which is left"
    one_is_gone = Turns(pipe, brings_one=True)
    one_is_gone.close()
    os.close(one._pipe)
    os.close(descriptor)
