"""The processes of an embedded server, and what may be done to them."""

from __future__ import annotations

import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

END_TIMEOUT_S = 30
STARTED_TIMEOUT_S = 60


def tritonserver_of(pid: int) -> psutil.Process:
    """Return the server below a supervisor; waits for one that is about to be started again.

    Raises psutil.NoSuchProcess where the supervisor is gone, or starts none in time.
    """
    deadline = time.monotonic() + STARTED_TIMEOUT_S
    while time.monotonic() < deadline:
        for process in psutil.Process(pid).children():
            with suppress(psutil.NoSuchProcess):  # one that has ended since then
                if process.name() == "tritonserver":
                    return process
    raise psutil.NoSuchProcess(pid, "tritonserver", "there is no server below it")


def backends_of(pid: int, count: int = 1) -> list[psutil.Process]:
    """Return the backend processes below a supervisor, once there are so many."""
    deadline = time.monotonic() + STARTED_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            found = [item for item in tritonserver_of(pid).children() if "backend_stub" in item.name()]
        except psutil.NoSuchProcess:
            psutil.Process(pid)  # or there is nothing to wait for
            continue
        if len(found) >= count:
            return found
    raise psutil.NoSuchProcess(pid, "backend", f"there are no {count} below it")


def server_processes(pid: int) -> list[psutil.Process]:
    """Return the processes below a supervisor: Triton's server first, then its backends."""
    server = tritonserver_of(pid)
    return [server, *backends_of(pid)]


def shm_prefix(server: psutil.Process) -> str:
    """Return what the names of a server's shared memory begin with."""
    (found,) = (part for part in server.cmdline() if "shm-region-prefix-name=" in part)
    return found.rpartition("=")[2]


def assert_all_end(processes: list[psutil.Process]) -> None:
    """Wait until processes are gone; one that nobody has waited for yet is over all the same."""
    _, alive = psutil.wait_procs(processes, timeout=END_TIMEOUT_S)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


FAULTS = {
    "server killed": lambda pid: tritonserver_of(pid).send_signal(signal.SIGKILL),
    "server stopped": lambda pid: tritonserver_of(pid).send_signal(signal.SIGSTOP),
    "backend killed": lambda pid: backends_of(pid)[0].send_signal(signal.SIGKILL),
    "backend stopped": lambda pid: backends_of(pid)[0].send_signal(signal.SIGSTOP),
}
"""What may happen to a server, each done by the supervisor's process id."""


def log_of(triton) -> list[str]:
    """Return what the supervisor wrote into the log of an embedded server."""
    text = Path(triton.log_path).read_text(encoding="utf-8", errors="replace")
    return re.findall(r"deepfake-serve: (.*)", text)  # behind what a server that crashed left of a line, too
