"""What of this machine this process may use: cores and memory, also in a container that is granted less of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_CGROUP: Final = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Return the number of cores this process may use: its CPU set, and less where a cgroup limits its time."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # another cgroup version, or the quota is "max"
        return cores


def usable_memory() -> int:
    """Return how much memory this process may use, in bytes: the machine's, and less where a cgroup limits it."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int((_CGROUP / "memory.max").read_text()))
    except (OSError, ValueError):  # another cgroup version, or the limit is "max"
        return machine
