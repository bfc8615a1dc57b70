"""What a process takes away from itself."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

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


AUTOGROUP = Path("/proc/self/autogroup")
YIELDING = f"""
import json, os, sys
from pathlib import Path
from deepfake_preprocess.support.limits import yield_cores
yield_cores(7, session=json.loads(sys.argv[1]))
print(os.nice(0) - int(os.environ["BEFORE"]), Path("{AUTOGROUP}").read_text())
"""


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="no autogroups here")
@pytest.mark.parametrize("session", [None, 5])
@pytest.mark.parametrize("alone", [True, False])
def test_cores_are_left_to_other_sessions_by_a_process_that_has_one_of_its_own(alone, session):
    before = os.nice(0)
    steps, _, group = subprocess.run(
        [sys.executable, "-c", YIELDING, json.dumps(session)],
        env={**os.environ, "BEFORE": str(before)},
        start_new_session=alone,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.partition(" ")
    assert steps == "7"
    if alone:
        assert group.split()[-2:] == ["nice", str(before + 7 if session is None else session)]
    else:  # empty where the session was there before autogroups were
        assert group.strip() == AUTOGROUP.read_text().strip()
