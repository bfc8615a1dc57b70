"""Where commands print results for people."""

from __future__ import annotations

from typing import Final

from rich.console import Console

PLAIN_WIDTH: Final = 10_000
"""Columns of what is no terminal."""


def results_console() -> Console:
    """Return standard output, with lines of any length where it is not a terminal: names must not be broken there."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)
