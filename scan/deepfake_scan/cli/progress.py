"""How far a scan has come, on a terminal as a line that changes, elsewhere as a line from time to time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Final

from rich.console import Console

from deepfake_scan.tally import ScanTally

EVERY_S: Final = 0.5
LOG_EVERY_S: Final = 30.0


@contextmanager
def shown_progress(screen: Console, tally: ScanTally) -> Iterator[None]:
    """Show a scan's progress while the context lasts."""
    with screen.status("scanning") if screen.is_terminal else nullcontext() as status:
        show: Callable[[str], None] = screen.print if status is None else status.update
        every_s = LOG_EVERY_S if status is None else EVERY_S
        ended = threading.Event()

        def show_again() -> None:
            while not ended.wait(every_s):
                show(tally.line())

        thread = threading.Thread(target=show_again, name="scan-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
