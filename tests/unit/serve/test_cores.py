"""When a lone request may use the other cores."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepfake_serve import _cores as cores
from deepfake_serve._cores import cores_are_idle, running_alone


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


def test_threads_that_are_about_to_sleep_are_waited_for(load: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy, idle = (f"0.20 0.18 0.12 {runnable}/80 11206\n" for runnable in (4, 1))
    load.write_text(busy, encoding="ascii")
    looks = []

    def yields() -> None:
        looks.append(1)
        load.write_text(idle if len(looks) == 20 else busy, encoding="ascii")

    monkeypatch.setattr(cores.os, "sched_yield", yields)
    monkeypatch.setattr(cores, "LOOK_S", 60.0)
    assert cores_are_idle(1)
    assert len(looks) == 20


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
