"""What a process that opens untrusted media takes away from itself, before it opens any."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deepfake_gateway.settings import Settings

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
MAX_FILE_BYTES: Final = 64 * 2**20
"""Largest file that the process may write: a report has some 1 MB."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one task in a sandbox."""

    memory_bytes: int  # of address space, beyond what the process had before
    cpu_s: int
    wall_s: float


def limits_of(settings: Settings) -> Limits:
    """Return the bounds that are set."""
    return Limits(settings.memory_bytes, settings.cpu_s, settings.job_timeout_s)


def end_with_parent() -> None:
    """Let the kernel end this process with the one that started it, however that ends (Linux)."""
    parent = os.getppid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        os.kill(os.getpid(), signal.SIGKILL)


def drop_rights(limits: Limits) -> None:
    """Bound memory and written files, leave no core dump, and gain no privileges by any program.

    Called after libraries are loaded, whose address space is not the medium's.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, bound in (
        (resource.RLIMIT_AS, used + limits.memory_bytes),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (bound, bound))


def bound_cpu(cpu_s: int) -> None:
    """Allow this process so much more CPU time; SIGXCPU ends it there."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    bound = int(usage.ru_utime + usage.ru_stime) + cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (bound, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _prctl(option: int, value: int) -> None:
    # Where there is no prctl (not Linux), pipes that end and the other bounds have to do.
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(option, value, 0, 0, 0)
