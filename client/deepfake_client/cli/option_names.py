"""What the library calls a parameter, and what a command calls it: the one table between the two.

Messages of the library name parameters in backquotes (`num_frames`); on the screen they are options (--num-frames).
Stored data keeps the parameters' names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_NAMED_ALIKE: Final = """
    aggregation allow_open artifacts calibration checkpoint column compact concurrency crops device engine fake
    false_alarms force fps gateway host idle_s instances int8_finetune int8_target labels layer max_batch_size
    max_latency_s method metrics_port min_change min_face_px min_face_share model num_frames on_slow output plan
    port precisions promote protocol real reconnects repository role service source_ca source_proxy spec split
    status step_s threshold timeout_s tls tls.ca tls.key top until_sure url verbose window_s
"""
"""Parameters whose option has their name, without the unit (`max_latency_s`: --max-latency); sorted."""

OPTION_OF_PARAMETER: Final[Mapping[str, str]] = {
    **{name: "--" + re.sub(r"[._]", "-", name.removesuffix("_s")) for name in _NAMED_ALIKE.split()},
    "headers": "--header",
    "mode": "--sampling",
    "memory_bytes": "--input-gib",
    "p99_ms": "--p99",
    "ports.grpc": "--grpc-port",
    "ports.http": "--http-port",
    "ports.metrics": "--metrics-port",
    "seconds": "--input-seconds",
    "tls.certificate": "--tls-cert",
    "total_s": "--retry",
}
"""A parameter that no command has an option for is not here, and stays as the library names it."""


def with_options(text: str) -> str:
    """Return a text of the library in the words of the command line."""
    return re.sub(r"`([a-z0-9_.]+)`", lambda found: OPTION_OF_PARAMETER.get(found[1], found[0]), text)
