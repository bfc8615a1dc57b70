"""What the library calls a parameter, and what a page calls it, whose readers know neither code nor command line.

Messages name parameters in backquotes (`num_frames`); the commands have a table of their own, of options.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

PLAIN_NAMES: Final[Mapping[str, str]] = {
    "aggregation": "the way a face's frames become its score",
    "at_seconds": "the list of times",
    "concurrency": "the number of analyses at once",
    "duration_s": "the time to watch in seconds",
    "fps": "the number of frames per second",
    "idle_s": "the time to wait for a file to grow",
    "job_timeout_s": "the time that an analysis may take",
    "layer": "the layer of the network",
    "max_latency_s": "the delay allowed",
    "method": "the kind of heatmap",
    "min_change": "the change that is reported",
    "min_face_px": "the smallest face in pixels",
    "min_face_share": "the smallest face as a share of the picture",
    "mode": "the way frames are chosen",
    "model": "the model",
    "num_frames": "the number of frames",
    "on_slow": "what happens when the server is slow",
    "output": "the folder for results",
    "reconnects": "the number of new tries",
    "source_timeout_s": "the time to wait for the source",
    "step_s": "the time from one verdict to the next",
    "threshold": "the threshold",
    "timeout_s": "the time to wait for the server",
    "until_sure": "the early stop",
    "url": "the address",
    "window_s": "the length of the window",
}
"""What is set by those who run a service is not here, and keeps its name, which they look for."""


def in_plain_words(text: str) -> str:
    """Return a text of the library in words for everybody."""
    return re.sub(r"`([a-z0-9_.]+)`", lambda found: PLAIN_NAMES.get(found[1], found[0]), text)
