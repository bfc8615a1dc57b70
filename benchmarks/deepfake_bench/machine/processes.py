"""Processes on this machine: starting them, what they use, and pausing and ending whole trees of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import psutil

HOST = "127.0.0.1"
STOP_TIMEOUT_S = 10.0
LOG_TAIL_LINES = 3
MARK = "DEEPFAKE_BENCH_STARTED"
"""Environment variable by which descendants are recognized; each `start_process` gives it another value."""

T = TypeVar("T")


def cpu_seconds(root: psutil.Process) -> float:
    """Return the CPU seconds that a tree of processes has used so far."""
    return sum(_of_each(root, lambda process: process.cpu_times().user + process.cpu_times().system))


def own_cpu_seconds() -> float:
    """Return the CPU seconds of this process and of all that it started, those that have ended included."""

    def used(process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)

    return sum(_of_each(psutil.Process(), used))


def rss_mb(root: psutil.Process) -> float:
    """Return the resident memory of a tree of processes in MiB, shared pages counted in each."""
    return round(sum(_of_each(root, lambda process: process.memory_info().rss)) / 2**20, 1)


def own_peak_mb() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return round(int(status.partition("VmHWM:")[2].split()[0]) / 1024, 1)


def pause(root: psutil.Process) -> None:
    """Stop a tree of processes until `resume`."""
    _of_each(root, psutil.Process.suspend)


def resume(root: psutil.Process) -> None:
    """Continue a tree of processes."""
    _of_each(root, psutil.Process.resume)


@contextlib.contextmanager
def running(root: psutil.Process) -> Iterator[None]:
    """Let a paused tree of processes run for as long as the context lasts."""
    resume(root)
    try:
        yield
    finally:
        pause(root)


class MarkedProcess(subprocess.Popen[str]):
    """A process whose descendants are recognized by the `mark` in their environment, even if orphaned."""

    mark: str

    def left(self) -> list[psutil.Process]:
        """Return this process and its descendants as far as they run, also those that have another parent by now."""
        return [
            item for item in psutil.process_iter(["environ"]) if (item.info["environ"] or {}).get(MARK) == self.mark
        ]


def start_process(
    command: Sequence[str], *, log: Path, env: Mapping[str, str], cwd: Path, pipes: bool = False
) -> MarkedProcess:
    """Start a program in a process group of its own, with its output in `log`, or only its errors with `pipes`."""
    mark = uuid.uuid4().hex
    with log.open("wb") as stream:
        process = MarkedProcess(
            list(command),
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else stream,
            stderr=stream,
            text=True,
            cwd=cwd,
            env={**os.environ, **env, MARK: mark},
            start_new_session=True,
        )
    process.mark = mark
    return process


def end_process(process: MarkedProcess) -> None:
    """End a process of `start_process` with everything it started, politely first; returns when none is left."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        resume(root)
        tree = _of_each(root, lambda item: item)
        root.terminate()
        psutil.wait_procs(tree, timeout=STOP_TIMEOUT_S)
    # A server may leave workers whose parent is the first process of the machine, in sessions of their own.
    while left := process.left():
        for item in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                item.kill()
        psutil.wait_procs(left, timeout=STOP_TIMEOUT_S)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    process.wait()


@contextlib.contextmanager
def exiting_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end contexts, too: else what was started would outlive this process, and measurements be lost."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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


def _of_each(root: psutil.Process, ask: Callable[[psutil.Process], T]) -> list[T]:
    """Return the answers of a process and its descendants; those that have ended give none."""
    answers: list[T] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                answers.append(ask(process))
    return answers
