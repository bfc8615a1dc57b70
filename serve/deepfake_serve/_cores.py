"""How the embedded backend uses the cores: when a lone request gets all of them.

Imported by the backend inside Triton's Python stub, so standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

MIN_AHEAD_S = 0.02
"""Where a full batch takes this long, `execute` returns before its answers are sent. Answers that go out by
themselves cost about 0.15 ms each: less than an instance would idle otherwise, but too much for batches of a few
milliseconds."""
CORES = os.cpu_count() or 1
LOAD = Path("/proc/loadavg")
LOOK_S = 150e-6
"""How long a core is waited for: the threads of the server that handed a request over have yet to go to sleep."""


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
    until = time.monotonic() + LOOK_S
    while True:
        # proc(5): the fourth field is what is runnable now, this thread included, of all there is.
        runnable = int(os.pread(_opened(LOAD), 128, 0).split()[3].partition(b"/")[0])
        if CORES - runnable >= wanted:
            return True
        if time.monotonic() > until:
            return False
        os.sched_yield()


@cache
def _opened(path: Path) -> int:
    """Open a file once: opening it for each look took 0.1 ms, and reading takes 2 us."""
    return os.open(path, os.O_RDONLY)
