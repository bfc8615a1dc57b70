"""`in_time`: a time limit that stands almost still while a process waits for cores that others have."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")

LOOK_S: Final = 1.0
LEAST_LOOK_S: Final = 0.05
"""How often it is found out what a process had of the cores, and at its limit."""
STATE, USER_TICKS, SYSTEM_TICKS = 0, 11, 12
"""Fields of proc_pid_stat(5) after the name."""


class CoreTime:
    """What a process had of the cores from one look to the next (Linux)."""

    def __init__(self, pid: int) -> None:
        self._directory = Path(f"/proc/{pid}")
        self._before_s = 0.0
        self.computed_s()

    def computed_s(self) -> float:
        """Return the CPU time since the last look, in seconds; 0 of a process that has ended."""
        with suppress(OSError):
            fields = _fields(self._directory)
            before_s = self._before_s
            self._before_s = (int(fields[USER_TICKS]) + int(fields[SYSTEM_TICKS])) / os.sysconf("SC_CLK_TCK")
            return self._before_s - before_s
        return 0.0

    def wants_more(self) -> bool:
        """Return whether one of its threads could go on at once, if it had a core."""
        with suppress(OSError):
            for thread in (self._directory / "task").iterdir():
                with suppress(OSError):  # it has ended
                    if _fields(thread)[STATE] == "R":
                        return True
        return False


def _fields(directory: Path) -> list[str]:
    return (directory / "stat").read_text().rpartition(")")[2].split()


async def in_time(work: Coroutine[Any, Any, T], cores: CoreTime, seconds: float) -> T:
    """Return what `work` returns, which the process of `cores` does.

    Time in which the process waits for a core counts by what it computed; waiting for something else, the network or
    for ever, counts in full.

    Raises:
        TimeoutError: it took longer than `seconds`; it is canceled.
    """
    task = asyncio.ensure_future(work)
    left, looked_at = seconds, time.monotonic()
    try:
        while not (await asyncio.wait([task], timeout=max(LEAST_LOOK_S, min(left, LOOK_S))))[0]:
            wall_s, computed_s = time.monotonic() - looked_at, cores.computed_s()
            looked_at += wall_s
            left -= min(wall_s, computed_s) if cores.wants_more() else wall_s
            if left <= 0:
                raise TimeoutError
        return await task
    finally:
        task.cancel()
