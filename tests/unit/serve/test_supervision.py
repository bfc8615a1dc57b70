"""How a server is watched: what is an ailment of a backend process, and how often a server is started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deepfake_serve import _pulse, _supervisor
from deepfake_serve._pulse import Pulse, PulseWatch
from deepfake_serve._supervisor import End, Restarts

BACKEND = """
import sys; from deepfake_serve._pulse import Pulse
pulse = Pulse(); pulse.publish("tiny", float(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:
    if line == "compute\\n":
        pulse._beat()
    elif line == "end\\n":
        pulse.end()
        break
    print("done", flush=True)
"""


class Backend:
    """A process that behaves as a backend process does, on command."""

    def __init__(self, limit_s: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", BACKEND, str(limit_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answers()

    def do(self, what: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        if what != "end":
            self._answers()

    def _answers(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PulseWatch]:
    monkeypatch.setenv(_pulse.FOLDER_VARIABLE, str(tmp_path))
    made = PulseWatch(tmp_path)
    yield made
    made.close()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def backend(watch: PulseWatch) -> Iterator[Backend]:
    made = Backend(limit_s=2.0)
    yield made
    made.close()


def test_a_process_that_is_told_to_end_is_well_and_one_that_dies_is_not(watch, backend) -> None:
    assert watch.look(1.0) == ""
    (descriptor,) = watch.ends
    backend.do("end")
    backend.process.wait()
    assert _pulse._is_readable(descriptor)
    assert watch.look(1.0) == ""
    assert watch.ends == []
    other = Backend(limit_s=2.0)
    assert watch.look(1.0) == ""
    other.close()
    assert watch.look(1.0) == f"process {other.process.pid} of model 'tiny' died"


def test_a_process_that_died_before_it_was_seen_is_noticed(watch, backend) -> None:
    backend.close()
    assert watch.look(1.0).endswith("died")


def test_a_process_counts_as_stopped_only_while_others_go_on(watch, backend) -> None:
    assert watch.look(0.25) == ""
    psutil.Process(backend.process.pid).suspend()
    os.waitpid(backend.process.pid, os.WUNTRACED)
    assert watch.look(0.25) == ""
    os.kill(backend.process.pid, signal.SIGCONT)
    os.waitpid(backend.process.pid, os.WCONTINUED)
    assert [watch.look(0.25) for _ in range(3)] == [""] * 3
    psutil.Process(backend.process.pid).suspend()
    os.waitpid(backend.process.pid, os.WUNTRACED)
    assert [watch.look(0.25) for _ in range(3)][-1].endswith("was stopped")


def test_a_computation_without_end_is_noticed_and_many_short_ones_are_not(watch, backend) -> None:
    for _ in range(20):
        backend.do("compute")  # begins, or ends
        assert watch.look(1.0) == ""
    assert watch.beats == 20
    backend.do("compute")
    assert [watch.look(1.0) for _ in range(4)] == [
        "",
        "",
        "",
        f"process {backend.process.pid} of model 'tiny' has computed one batch for more than 2 s",
    ]


def test_without_a_watcher_nothing_is_written(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(_pulse.FOLDER_VARIABLE, raising=False)
    pulse = Pulse()
    pulse.publish("tiny", 1.0)
    with pulse.beating():
        pass
    pulse.end()


def test_restarts_slow_down_and_come_to_an_end(monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(_supervisor.time, "monotonic", lambda: clock[0])
    died, failed = End("died", 137, served=True), End("does not start", 1, served=False)
    restarts = Restarts()
    pauses = [restarts.next_pause_s(died, up_s=1.0) for _ in range(8)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    assert restarts.next_pause_s(died, up_s=60.0) == pytest.approx(0.1), "it had been well"
    assert [restarts.next_pause_s(failed, up_s=1.0) is None for _ in range(5)] == [False] * 4 + [True]
    restarts = Restarts()
    assert None not in [restarts.next_pause_s(died, up_s=60.0) for _ in range(200)], "100 faults are outlived"
    assert restarts.next_pause_s(died, up_s=60.0) is None
    clock[0] = 3_601.0
    assert restarts.next_pause_s(died, up_s=60.0) is not None
