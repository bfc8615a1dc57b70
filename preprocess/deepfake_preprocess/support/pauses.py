"""`Pauses`: how long to wait from one try to the next of what is away."""

from __future__ import annotations

import asyncio
import time
from math import inf
from typing import Final

FIRST_S: Final = 0.5
LONGEST_S: Final = 15.0


class Pauses:
    """Pauses between tries: the first of `FIRST_S`, each twice as long as the one before, up to `LONGEST_S`.

    Args:
        within_s: seconds from now for which it is worth waiting.

    Attributes:
        next_s: length of the next pause.
    """

    def __init__(self, within_s: float = inf) -> None:
        self.next_s = FIRST_S
        self._until = time.monotonic() + within_s

    @property
    def fits(self) -> bool:
        """Whether the next pause ends in time."""
        return time.monotonic() + self.next_s < self._until

    async def take(self) -> None:
        """Wait for the length of the next pause."""
        await asyncio.sleep(self.next_s)
        self.next_s = min(2 * self.next_s, LONGEST_S)
