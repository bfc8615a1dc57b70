"""Who does the work of a scan: this machine, or a Ray cluster."""

from __future__ import annotations

from typing import Final

ENGINES: Final = ("local", "ray")
