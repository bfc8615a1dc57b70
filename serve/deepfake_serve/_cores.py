"""How the embedded backend uses the cores: whose turn it is to compute, and when a lone request gets all of them.

Imported by the backend inside Triton's Python stub, so standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

CORES = os.cpu_count() or 1
LOAD = Path("/proc/loadavg")
LOOKS = 3
"""The threads of the server that handed a request over take some microseconds to go to sleep."""


@contextlib.contextmanager
def running_alone(lock: BinaryIO, *, cores_wanted: int | None) -> Iterator[bool]:
    """Mark this instance of a model as running; yield whether no other one runs and enough cores are idle.

    Each instance has opened the file `lock` for itself; it is locked, not read. `cores_wanted` is in addition to the
    core that this thread runs on; None does not ask, and yields False.
    """
    alone = False
    if cores_wanted is not None:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
    # All instances that run share the lock; the exclusive one was only to see whether there are others.
    fcntl.flock(lock, fcntl.LOCK_SH)
    try:
        yield alone and cores_wanted is not None and cores_are_idle(cores_wanted)
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)


def cores_are_idle(wanted: int) -> bool:
    """Return whether so many cores of the machine have nothing to do: clients that decode need them more."""
    for _ in range(LOOKS):
        # proc(5): the fourth field is what is runnable now, this thread included, of all there is.
        runnable = int(os.pread(_opened(LOAD), 128, 0).split()[3].partition(b"/")[0])
        if CORES - runnable >= wanted:
            return True
        os.sched_yield()
    return False


@cache
def _opened(path: Path) -> int:
    """Open a file once: opening it for each look took 0.1 ms, and reading takes 2 us."""
    return os.open(path, os.O_RDONLY)


class Turns:
    """Lets so many instances of a model compute at a time; one more of them holds its next batch ready meanwhile.

    A named pipe holds a byte for each that may begin, which is empty again once no instance has it open. Whoever dies
    takes its byte along: the supervisor then starts the whole server again.
    """

    def __init__(self, pipe: Path, *, brings_one: bool) -> None:
        """Open the pipe, and add a turn to it, which `close` takes away again."""
        self._pipe, self._brings_one = os.open(pipe, os.O_RDWR), brings_one
        if brings_one:
            os.write(self._pipe, b".")

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for a turn, and keep it for as long as the context lasts."""
        turn = os.read(self._pipe, 1)
        try:
            yield
        finally:
            os.write(self._pipe, turn)

    def close(self) -> None:
        """Take no more turns."""
        if self._brings_one:
            os.read(self._pipe, 1)
        os.close(self._pipe)
