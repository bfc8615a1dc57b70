"""scripts/autoscaling.py: a load that one Triton bears only with a queue is shared by two, and no request is lost."""

import json
import os
import subprocess
import sys

import pytest
from checkout import ROOT
from tiny_model import TINY_SPEC, write_tiny_repository


@pytest.mark.slow
@pytest.mark.debian("prometheus")
def test_replicas_come_with_the_load_and_no_request_is_lost(tmp_path):
    repository = write_tiny_repository(tmp_path / "models")
    command = [sys.executable, ROOT / "scripts/autoscaling.py", "--repository", repository, "--model", TINY_SPEC.name]
    command += ["--cores", "0", "--phases", "20:1,120:12", "--requests", "4", "--output", tmp_path / "run.json"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert run["summary"]["failed_requests"] == 0
    assert run["summary"]["requests"] > 0
    assert (tmp_path / "run-replicas.svg").is_file()
    assert {look["replicas"] for look in run["looks"] if look["callers"] == 1} == {1}
