"""The small process between a caller and Triton; it makes sure that nothing is left behind.

It starts `tritonserver`, waits, and when it is told to stop, when Triton ends, or when the caller is gone for
whatever reason (SIGKILL included), it ends every process of Triton and removes its shared memory. A death
signal alone (`PR_SET_PDEATHSIG`) would not do: it is bound to the *thread* that started the child, and it
cleans nothing up.

Runs as a script with the standard library only, and never in the caller's process: it takes over signals.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

SHARED_MEMORY = Path("/dev/shm")
PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>
PR_SET_CHILD_SUBREAPER = 36


def main(config_path: str) -> int:
    """Run one server until it ends or has to.

    Args:
        config_path: JSON file with `command`, `parent_pid`, `shm_prefix`, `run_dir` and `stop_timeout_s`.

    Returns:
        0 when the server was told to stop; what a shell would report (code, or 128 + signal) when it ended
        by itself.
    """
    config: dict[str, Any] = json.loads(Path(config_path).read_text(encoding="utf-8"))
    libc = ctypes.CDLL(None, use_errno=True)
    # Python stubs that outlive the server become children of this process, which then can wait for them.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wakeup = _signal_pipe(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    server: subprocess.Popen[bytes] | None = None
    parent_alive = True
    try:
        parent = _watch_parent(config["parent_pid"])
        # The server must not outlive this process either. Safe here, as nothing else runs in this process.
        server = subprocess.Popen(
            config["command"],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0),
        )
        child = os.pidfd_open(server.pid)
        ready = _wait([parent, wakeup, child], None)
        parent_alive = parent not in ready
        if child not in ready:
            os.read(wakeup, 1) if wakeup in ready else None
            server.terminate()
            # A second signal means that the caller has lost patience.
            _wait([wakeup, child], config["stop_timeout_s"])
            return 0
        code = server.wait()
        return code if code >= 0 else 128 - code
    except ProcessLookupError:
        parent_alive = False
        return 0
    finally:
        if server is not None:
            _end_group(server)
        for path in SHARED_MEMORY.glob(config["shm_prefix"] + "*"):
            path.unlink(missing_ok=True)
        if not parent_alive:
            shutil.rmtree(config["run_dir"], ignore_errors=True)


def _signal_pipe(*signals: signal.Signals) -> int:
    """Return a descriptor that becomes readable when one of `signals` arrives."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in signals:
        signal.signal(number, lambda *_: None)
    return read_end


def _watch_parent(pid: int) -> int:
    """Return a descriptor that becomes readable when the caller ends; its threads and forks do not matter."""
    if os.getppid() != pid:
        raise ProcessLookupError(pid)
    return os.pidfd_open(pid)


def _wait(descriptors: list[int], timeout_s: float | None) -> set[int]:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(None if timeout_s is None else timeout_s * 1_000)}


def _end_group(server: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of the server's process group, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
