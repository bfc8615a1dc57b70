"""How far a scan has come, on a terminal as a line that changes, elsewhere as a line from time to time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console

from deepfake_scan.tally import Tally

EVERY_S: Final = 0.5
LOG_EVERY_S: Final = 30.0


@contextmanager
def shown_progress(screen: Console, tally: Tally) -> Iterator[None]:
    """Show a scan's progress while the context lasts."""
    ended = threading.Event()
    if screen.is_terminal:
        with screen.status("scanning") as status:

            def draw() -> None:
                while not ended.wait(EVERY_S):
                    status.update(tally.line())

            yield from _beside(draw, ended)
        return

    def log() -> None:
        while not ended.wait(LOG_EVERY_S):
            screen.print(tally.line())

    yield from _beside(log, ended)


def _beside(show: object, ended: threading.Event) -> Iterator[None]:
    assert callable(show)
    thread = threading.Thread(target=show, name="scan-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
