"""Processes on this machine: starting them, what they use, and pausing and ending whole trees of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

HOST = "127.0.0.1"
STOP_TIMEOUT_S = 10.0
LOG_TAIL_LINES = 3


def tree(root: psutil.Process) -> list[psutil.Process]:
    """Return a process and its descendants; empty when it has ended."""
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(root: psutil.Process | None) -> float | None:
    """Return the CPU seconds a tree of processes has used so far; None for None."""
    if root is None:
        return None
    total = 0.0
    for process in tree(root):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def rss_mb(root: psutil.Process | None) -> float | None:
    """Return the resident memory of a tree of processes in MiB, shared pages counted in each; None for None."""
    if root is None:
        return None
    total = 0
    for process in tree(root):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return round(total / 2**20, 1)


def own_peak_mb() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return round(int(status.partition("VmHWM:")[2].split()[0]) / 1024, 1)


def end(root: psutil.Process) -> None:
    """End a process and all its descendants, politely first; returns when none is left."""
    processes = tree(root)
    with contextlib.suppress(psutil.NoSuchProcess):
        root.terminate()
    _, alive = psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)


@contextlib.contextmanager
def running(root: psutil.Process) -> Iterator[None]:
    """Let a paused tree of processes run for as long as the context lasts."""
    resume(root)
    try:
        yield
    finally:
        pause(root)


def pause(root: psutil.Process) -> None:
    """Stop a tree of processes until `resume`."""
    for process in tree(root):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()


def resume(root: psutil.Process) -> None:
    """Let a tree of processes go on."""
    for process in tree(root):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def start_process(
    command: Sequence[str], *, log: Path, env: Mapping[str, str], cwd: Path, pipes: bool = False
) -> subprocess.Popen[str]:
    """Start a program in a process group of its own, with its output in `log`, or only its errors with `pipes`."""
    with log.open("wb") as stream:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else stream,
            stderr=stream,
            text=True,
            cwd=cwd,
            env={**os.environ, **env},
            start_new_session=True,
        )


def end_process(process: subprocess.Popen[str]) -> None:
    """End a process of `start_process` with everything it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        resume(root)
        end(root)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    process.wait()


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def tail(log: Path) -> str:
    """Return the end of a log, on one line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-LOG_TAIL_LINES:]) or "it wrote no log"
