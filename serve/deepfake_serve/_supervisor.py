"""The small process between a caller and Triton; it makes sure that nothing is left behind.

It starts `tritonserver`, waits, and when it is asked to stop, when Triton ends, or when the caller is gone for
whatever reason (SIGKILL included), it ends every process of Triton and removes its shared memory and its
temporary folder. A death signal alone (`PR_SET_PDEATHSIG`) would not do: it is bound to the *thread* that started
the child, and it cleans nothing up.

Triton's log passes through it, to see when the last request was answered: what Triton does after that takes
3 s and only frees what the end of its processes frees at once.

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
import time
from pathlib import Path
from typing import Any

SHARED_MEMORY = Path("/dev/shm")
ENVIRONMENTS = Path("/tmp")
ENVIRONMENT_PATTERN = "python_env_*"
"""Triton's Python backend makes such a folder for each server, wherever `TMPDIR` points, and removes it at an orderly
end that is not waited for. It stays empty: no model of ours brings a Python environment."""
ALL_ANSWERED = b"All models are stopped, unloading models"
"""What Triton 2.51 logs when no request is in flight any more. Where it never comes, stopping takes longer."""
FLUSH_S = 0.2
"""From there on, the last answers are on their way out of the server's sockets."""
PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>
PR_SET_CHILD_SUBREAPER = 36


def main(config_path: str) -> int:
    """Run one server, as `EmbeddedTriton` wrote into a JSON file, until it ends or has to.

    Returns 0 when it was asked to stop, else what a shell would report: its code, or 128 + signal.
    """
    config: dict[str, Any] = json.loads(Path(config_path).read_text(encoding="utf-8"))
    libc = ctypes.CDLL(None, use_errno=True)
    # Python stubs that outlive the server become children of this process, which then can wait for them.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wakeup = _signal_pipe(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    server: subprocess.Popen[bytes] | None = None
    parent_alive = True
    environments = set(ENVIRONMENTS.glob(ENVIRONMENT_PATTERN))
    try:
        parent = _watch_parent(config["parent_pid"])
        # The server must not outlive this process either. Safe here, as nothing else runs in this process.
        server = subprocess.Popen(
            config["command"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0),
        )
        assert server.stdout is not None
        log = server.stdout.fileno()
        child = os.pidfd_open(server.pid)
        ready = _pass_log_until(log, [parent, wakeup, child])
        parent_alive = parent not in ready
        if child not in ready:
            if wakeup in ready:
                os.read(wakeup, 1)
            server.terminate()
            # A second signal means that the caller has lost patience.
            _pass_log_until(log, [wakeup, child], timeout_s=config["stop_timeout_s"], text=ALL_ANSWERED)
            _pass_log_until(log, [wakeup, child], timeout_s=FLUSH_S)
            return 0
        _pass_log_until(log, [], timeout_s=0)
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
        for path in ENVIRONMENTS.glob(ENVIRONMENT_PATTERN):
            # One that another server made since then is empty as well, or stays.
            if path not in environments:
                with contextlib.suppress(OSError):
                    path.rmdir()
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


def _pass_log_until(
    log: int, descriptors: list[int], *, timeout_s: float | None = None, text: bytes | None = None
) -> set[int]:
    """Copy the server's log to standard output until one of `descriptors` is readable, and return those that are.

    Also returns after the time, with what can be read at once copied even for 0, and when the log says `text`.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    poll = select.poll()
    for descriptor in (log, *descriptors):
        poll.register(descriptor, select.POLLIN)
    recent = b""
    while True:
        wait_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1_000
        ready = {descriptor for descriptor, _ in poll.poll(wait_ms)}
        if log in ready:
            chunk = os.read(log, 65_536)
            if not chunk:  # closed; its readiness says nothing from now on
                poll.unregister(log)
            # The caller's end may be closed; that must not keep the server from being ended.
            with contextlib.suppress(OSError):
                os.write(sys.stdout.fileno(), chunk)
            recent = recent[-200:] + chunk
            if text is not None and text in recent:
                return ready - {log}
        if ready - {log} or not ready:
            return ready - {log}


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
