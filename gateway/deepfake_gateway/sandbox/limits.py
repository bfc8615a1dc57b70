"""What a process that opens untrusted media may use at most; it bounds itself before it opens any."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from deepfake_preprocess.support.limits import bound_process

if TYPE_CHECKING:  # a sandbox needs none of it, and loading it costs as much again as all that it needs
    from deepfake_gateway.settings import Settings

MAX_FILE_BYTES: Final = 64 * 2**20
"""Largest file that the process may write: a report has some 1 MB."""

MAX_FILES: Final = 256
"""Files and sockets open at once."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one task in a sandbox, and of the medium that it opens."""

    memory_bytes: int  # of address space, beyond what the process had before
    cpu_s: int
    wall_s: float
    max_duration_s: float
    max_pixels: int
    max_frames: int  # that are looked at


def limits_of(settings: Settings) -> Limits:
    """Return the bounds that are set."""
    return Limits(
        settings.memory_bytes, settings.cpu_s, settings.job_timeout_s,
        settings.max_duration_s, settings.max_pixels, settings.max_frames,
    )  # fmt: skip


def drop_rights(limits: Limits) -> None:
    """Bound memory and written files, leave no core dump, and gain no privileges by any program.

    Called after libraries are loaded, whose address space is not the medium's.
    """
    bound_process(memory_bytes=limits.memory_bytes, file_bytes=MAX_FILE_BYTES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))


def bound_cpu(cpu_s: int) -> None:
    """Allow this process so much more CPU time; SIGXCPU ends it there."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    bound = int(usage.ru_utime + usage.ru_stime) + cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (bound, resource.getrlimit(resource.RLIMIT_CPU)[1]))
