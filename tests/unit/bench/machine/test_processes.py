"""Processes that the benchmarks start, and that none of them is left."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import psutil
import pytest

from deepfake_bench.machine.processes import MarkedProcess, end_process, start_process

START_TIMEOUT_S = 60.0

LEAVES_A_WORKER = """
import os, sys, time

if os.fork() == 0:
    os.setsid()
    between = os.getpid()
    if os.fork():
        os._exit(0)
    while os.getppid() == between:
        time.sleep(0.01)
    open("worker", "w").write(str(os.getpid()))
    time.sleep(600)
if sys.argv[1] == "ends":
    os._exit(0)
time.sleep(600)
"""


def _start(folder: Path, *arguments: str) -> MarkedProcess:
    return start_process([sys.executable, "-c", LEAVES_A_WORKER, *arguments], log=folder / "log", env={}, cwd=folder)


def _worker(folder: Path) -> psutil.Process:
    """Return the process that has its own session, and no parent but the machine's first one."""
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        with contextlib.suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
            return psutil.Process(int((folder / "worker").read_text()))
        time.sleep(0.05)
    raise AssertionError("the worker did not start")


@pytest.mark.parametrize("server", ["stays", "ends"])
def test_a_worker_in_a_session_of_its_own_ends_with_its_server(tmp_path: Path, server: str) -> None:
    process = _start(tmp_path, server)
    worker = _worker(tmp_path)
    assert worker in process.left()
    if server == "ends":
        process.wait(START_TIMEOUT_S)
    else:
        assert worker not in psutil.Process(process.pid).children(recursive=True)

    end_process(process)

    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    assert process.left() == []
    assert process.returncode is not None


def test_other_processes_stay(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    one, other = _start(tmp_path / "one", "stays"), _start(tmp_path / "other", "stays")
    try:
        worker = _worker(tmp_path / "other")
        end_process(one)
        assert worker.is_running()
        assert other.poll() is None
    finally:
        end_process(one)
        end_process(other)
