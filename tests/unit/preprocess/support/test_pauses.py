"""Pauses between tries."""

import asyncio

import pytest

from deepfake_preprocess.support import pauses
from deepfake_preprocess.support.pauses import Pauses


class Clock:
    """A time that passes by sleeping alone."""

    def __init__(self):
        self.now, self.slept = 100.0, []

    def monotonic(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds
        self.slept.append(seconds)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pauses, "time", clock)
    monkeypatch.setattr(pauses, "asyncio", clock)
    return clock


def take_all(of, at_most=9):
    async def take():
        while of.fits and at_most > len(pauses.asyncio.slept):
            await of.take()

    asyncio.run(take())


def test_each_is_twice_as_long_as_the_one_before_up_to_a_bound(clock):
    take_all(Pauses())
    assert clock.slept == [0.5, 1, 2, 4, 8, 15, 15, 15, 15]


@pytest.mark.parametrize(
    ("within_s", "slept"), [(0, []), (0.5, []), (0.6, [0.5]), (3.5, [0.5, 1]), (3.6, [0.5, 1, 2])]
)
def test_one_that_would_end_too_late_is_not_taken(clock, within_s, slept):
    take_all(Pauses(within_s))
    assert clock.slept == slept
