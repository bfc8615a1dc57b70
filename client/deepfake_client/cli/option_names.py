"""What the library calls a parameter, and what a command calls it: the one table between the two.

Messages of the library name parameters in backquotes (`num_frames`); on the screen they are options (--num-frames).
Stored data keeps the parameters' names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

OPTION_OF_PARAMETER: Final[Mapping[str, str]] = {
    "aggregation": "--aggregation",
    "artifacts": "--artifacts",
    "calibration": "--calibration",
    "checkpoint": "--checkpoint",
    "concurrency": "--concurrency",
    "crops": "--crops",
    "device": "--device",
    "fake": "--fake",
    "force": "--force",
    "fps": "--fps",
    "grpc_port": "--grpc-port",
    "headers": "--header",
    "http_port": "--http-port",
    "idle_s": "--idle",
    "instances": "--instances",
    "int8_target": "--int8-target",
    "labels": "--labels",
    "layer": "--layer",
    "max_batch_size": "--max-batch-size",
    "max_latency_s": "--max-latency",
    "method": "--method",
    "metrics_port": "--metrics-port",
    "min_change": "--min-change",
    "mode": "--sampling",
    "model": "--model",
    "num_frames": "--num-frames",
    "on_slow": "--on-slow",
    "p99_ms": "--p99",
    "precisions": "--precisions",
    "promote": "--promote",
    "protocol": "--protocol",
    "real": "--real",
    "reconnects": "--reconnects",
    "repository": "--repository",
    "service": "--service",
    "source_ca": "--source-ca",
    "spec": "--spec",
    "step_s": "--step",
    "threshold": "--threshold",
    "timeout_s": "--timeout",
    "tls": "--tls",
    "tls.ca": "--tls-ca",
    "tls.certificate": "--tls-cert",
    "tls.key": "--tls-key",
    "top": "--top",
    "total_s": "--retry",
    "until_sure": "--until-sure",
    "url": "--url",
    "verbose": "--verbose",
    "window_s": "--window",
}
"""Sorted; a parameter that no command has an option for is not here, and stays as the library names it."""


def with_options(text: str) -> str:
    """Return a text of the library in the words of the command line."""
    return re.sub(r"`([a-z0-9_.]+)`", lambda found: OPTION_OF_PARAMETER.get(found[1], found[0]), text)
