"""What a process may take away from itself: memory, files, privileges, priority, and life without a parent."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_STARTED_BY: Final = "DEEPFAKE_STARTED_BY"
_AUTOGROUP: Final = Path("/proc/self/autogroup")
_TRIES: Final = 20


def started_here() -> dict[str, str]:
    """Return what the environment of a process that is to `end_with_parent` gets, by which it knows its parent."""
    return {_STARTED_BY: str(os.getpid())}


def end_with_parent() -> None:
    """Let the kernel end this process with the thread that started it, however that ends (Linux).

    A process that was started with `started_here` ends also where its parent died before this call.
    """
    parent = int(os.environ.pop(_STARTED_BY, os.getppid()))
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        os.kill(os.getpid(), signal.SIGKILL)


def bound_process(*, memory_bytes: int, file_bytes: int) -> None:
    """Bound the address space beyond what is in use now, and each written file; no core dump and no new privileges.

    Called after libraries are loaded, whose address space is not the medium's.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, bound in (
        (resource.RLIMIT_AS, used + memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (bound, bound))


def yield_cores(nice: int, *, session: int | None = None) -> None:
    """Let others have the cores first, by `nice` steps of niceness; also those of other sessions (Linux).

    `session` is the niceness of the session as a whole; as for each thread when None.

    sched(7): with autogroups a process's own niceness counts only inside its session, and that of the session counts
    outside. The latter is changed only by a process that leads its session, which is then its own.
    """
    niceness = os.nice(nice)
    with suppress(OSError):  # on Linux it is one thread's; others may be there already, and have their own
        for thread in Path("/proc/self/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)
    if os.getsid(0) != os.getpid():
        return
    # Where there are no autogroups, cores are divided in another way, as among containers.
    with suppress(OSError):
        for _ in range(_TRIES):
            with suppress(BlockingIOError):  # one change every 100 ms is allowed, of all sessions together
                _AUTOGROUP.write_text(str(niceness if session is None else session))
                return
            time.sleep(0.1)


def _prctl(option: int, value: int) -> None:
    # Where there is no prctl (not Linux), pipes that end and the other bounds have to do.
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(option, value, 0, 0, 0)
