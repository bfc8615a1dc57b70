"""Where commands print results for people."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import IO, Any, Final, cast

from rich.console import Console
from rich.markup import escape

from deepfake_preprocess.support.text import visible

PLAIN_WIDTH: Final = 10_000
"""Columns of what is no terminal."""


_PADDING = re.compile(r" +(?=\n)")


class _Unpadded:
    """A stream for lines without blanks at their ends, with which tables fill their columns."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(_PADDING.sub("", text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def results_console(*, soft_wrap: bool = False) -> Console:
    """Return standard output.

    Where it is not a terminal, its lines have any length, since names must not be broken there, and no padding.

    Args:
        soft_wrap: leave it to a terminal to break long lines.
    """
    console = Console(highlight=False, soft_wrap=soft_wrap)
    if console.is_terminal:
        return console
    plain = cast("IO[str]", _Unpadded(console.file))
    return Console(file=plain, highlight=False, soft_wrap=soft_wrap, width=PLAIN_WIDTH)


@contextmanager
def results_alone() -> Iterator[None]:
    """Keep standard output for results: what is printed meanwhile, as by a network's code, is on standard error."""
    with redirect_stdout(sys.stderr):
        yield


def shown(text: object) -> str:
    """Return a text of others, such as a file's name, as it is printed: it moves no cursor and sets no style."""
    return escape(visible(str(text)))
