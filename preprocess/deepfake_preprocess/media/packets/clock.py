"""`Clock`: times of packets that never go back, whatever a file says; the same for `analyze` and `watch`."""

from __future__ import annotations

from typing import Final

MAX_GAP_S: Final = 86_400.0
"""A time further ahead than this, in seconds, is not one; the file goes on one frame later."""


class Clock:
    """Turns times that start anew, repeat or jump into times that go on.

    Files that were joined start anew; what follows is taken to come right after. Times that repeat become the next
    tick. Others stay as they are, so that frames of ordinary files have the times that players show.
    """

    def __init__(self, step: int, max_gap: int, window: int) -> None:
        """Prepare for frames that are usually `step` ticks apart.

        A time that is more than `max_gap` ticks ahead of the latest, or more than `window` behind it, starts anew; so
        does one of a keyframe that is behind it at all. `jumps` counts how often, and `repeats` how many repeat.
        """
        self._step = step
        self._max_gap = max_gap
        self._window = window
        self._offset = 0
        self._latest: int | None = None
        self._repeated = 0
        self.jumps = self.repeats = 0

    def shift(self, time: int | None, *, is_keyframe: bool) -> int:
        """Take the next packet's decoding time, if it has one; return what is to be added to its times."""
        if time is None:
            return self._offset
        if self._latest is not None:
            behind = self._latest - time
            if behind > (0 if is_keyframe else self._window) or -behind > self._max_gap:
                self._offset += behind + self._step + self._repeated
                self._latest, self._repeated = None, 0
                self.jumps += 1
            else:
                self._repeated = self._repeated + 1 if behind == 0 else 0
                self.repeats += behind == 0
        self._latest = time if self._latest is None else max(self._latest, time)
        return self._offset + self._repeated
