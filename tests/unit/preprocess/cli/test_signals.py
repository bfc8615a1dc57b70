"""A command that is terminated ends as with Ctrl-C."""

import asyncio
import os
import signal

import pytest

from deepfake_preprocess.cli.signals import terminated_as_interrupted


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["ctrl-c", "ctrl-c ignored"])
def _ctrl_c(request):
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


pytestmark = pytest.mark.usefixtures("_ctrl_c")


def test_sigterm_is_ctrl_c_within_and_nothing_is_left_of_it():
    before = handlers()
    with pytest.raises(KeyboardInterrupt), terminated_as_interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
    assert handlers() == before


def test_what_runs_in_a_loop_is_canceled_as_by_ctrl_c():
    ended = []

    async def work():
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("in order")
            raise

    with pytest.raises(KeyboardInterrupt), terminated_as_interrupted():
        asyncio.run(work())
    assert ended == ["in order"]
