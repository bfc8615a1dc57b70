"""Where tables of figures are printed."""

from __future__ import annotations

from rich.console import Console

PLAIN_WIDTH = 140
"""Of a table that goes into a file or a pipe, where there is no terminal to fit."""


def table_console() -> Console:
    """Return a console on standard output that does not cut tables."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)
