"""A time limit is meant for an input, not for what else the machine does."""

import asyncio
import os
import subprocess
import sys

import pytest

from deepfake_scan.work import clock
from deepfake_scan.work.clock import CoreTime, in_time

ENDLESS_S = 3600.0


class Looks:
    """A process that is looked at: what it computed and whether it wanted more, one look after the other."""

    def __init__(self, *looks):
        self.left = list(looks)

    def computed_s(self):
        return self.left[0][0]

    def wants_more(self):
        return self.left.pop(0)[1]


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(clock, "LOOK_S", 0.01)
    monkeypatch.setattr(clock, "LEAST_LOOK_S", 0.01)


@pytest.mark.parametrize(
    "last",
    [
        pytest.param((ENDLESS_S, True), id="computes"),
        pytest.param((0.0, False), id="waits for something else than a core"),
    ],
)
def test_a_process_without_a_core_has_time(often, last):
    process = Looks(*[(0.0, True)] * 5, last)
    with pytest.raises(TimeoutError):
        asyncio.run(in_time(asyncio.sleep(ENDLESS_S), process, 0.005))
    assert process.left == []


def test_what_is_in_time_is_returned_and_errors_are_raised():
    async def work(error):
        if error:
            raise error
        return "done"

    assert asyncio.run(in_time(work(None), CoreTime(os.getpid()), 60.0)) == "done"
    with pytest.raises(KeyError):
        asyncio.run(in_time(work(KeyError()), CoreTime(os.getpid()), 60.0))


def test_a_busy_process_computes_and_wants_more_and_one_that_waits_does_not():
    program = "import sys\nfor line in sys.stdin:\n    print(flush=True)\n    while line == 'work\\n': pass"
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True) as process:
        try:
            cores = CoreTime(process.pid)
            print("wait", file=process.stdin, flush=True)
            process.stdout.readline()
            while cores.wants_more():  # until it reads again
                pass
            cores.computed_s()
            assert cores.computed_s() == 0.0
            print("work", file=process.stdin, flush=True)
            process.stdout.readline()
            computed_s = 0.0
            while computed_s < 0.1:
                assert cores.wants_more()
                computed_s += cores.computed_s()
        finally:
            process.kill()
    assert (cores.computed_s(), cores.wants_more()) == (0.0, False)
