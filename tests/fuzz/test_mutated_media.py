"""What CI runs of the fuzzing: some hundred mutated files. `make fuzz N=5000` runs more."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")


def test_no_mutated_file_hangs_crashes_or_gives_an_error_that_is_not_ours() -> None:
    done = subprocess.run(
        [sys.executable, str(RUN), "--count", "200", "--seed", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # The mutations are neither harmless nor fatal: both verdicts and errors come.
    counts = dict(re.findall(r"'(\w+)': (\d+)", done.stdout.splitlines()[-3]))
    assert int(counts["MediaOpenError"]) > 20
    assert int(counts["REAL"]) > 20


@pytest.mark.parametrize(("result", "fault"), [("untyped", "1 / 0"), ("crash", "__import__('os').abort()")])
def test_what_fails_is_found_and_kept(tmp_path: Path, result: str, fault: str) -> None:
    # Python imports this module by itself, in the process that analyzes as well.
    (tmp_path / "sitecustomize.py").write_text(
        f"from deepfake_client.result.outcome import Outcome\nOutcome.to_dict = lambda self: {fault}\n"
    )
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(RUN), "--count", "1", "--keep", str(tmp_path / "kept")],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.count(f'"result": "{result}"') == 1
    assert len(list((tmp_path / "kept").iterdir())) == 1
