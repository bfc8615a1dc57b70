"""Where commands print results for people."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.markup import escape

from deepfake_preprocess.support.text import visible

PLAIN_WIDTH: Final = 10_000
"""Columns of what is no terminal."""


def results_console() -> Console:
    """Return standard output, with lines of any length where it is not a terminal: names must not be broken there."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def shown(text: object) -> str:
    """Return a text of others, such as a file's name, as it is printed: it moves no cursor and sets no style."""
    return escape(visible(str(text)))
