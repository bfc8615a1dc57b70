"""What a process that opens media takes away from itself."""

import os
import signal
import subprocess
import sys

import pytest

from deepfake_preprocess.support.limits import started_here

PROGRAM = "from deepfake_preprocess.support.limits import end_with_parent; end_with_parent(); print('lives')"


def run(environment):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
    )


def test_a_child_whose_parent_lives_goes_on():
    assert run({**os.environ, **started_here()}).stdout == "lives\n"
    assert run(dict(os.environ)).stdout == "lives\n"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process of its parent's end")
def test_a_child_whose_parent_died_while_it_started_ends():
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    started_by_it = dict.fromkeys(started_here(), str(gone.pid))
    assert run({**os.environ, **started_by_it}).returncode == -signal.SIGKILL
