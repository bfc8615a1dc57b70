"""Text of others (names of files, words of a server) made safe to be shown among text of ours."""

from __future__ import annotations

import re
import unicodedata
from typing import Any, Final

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a spreadsheet takes for the beginning of a formula (OWASP, "CSV Injection"), also in full width."""


def visible(text: str) -> str:
    r"""Return `text` with all in it that is not printed as escapes: ``\n``, ``\x1b``, ``\u202e``.

    A line break, what moves a terminal's cursor or turns the direction of writing, or spaces up to the end of a line
    could make a name show a verdict of its own.
    """
    shown = (
        character
        if character.isprintable() or unicodedata.category(character) == "Zs"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
    return re.sub(r"(?<=\s)\s", lambda space: f"\\x{ord(space[0]):02x}", "".join(shown))


def reason_of(error: BaseException) -> str:
    """Return in one line why something failed: what the system says, or else the error, or its name.

    Without the file, which `OSError` repeats: a message of ours names it.
    """
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())


def table_cell(value: Any) -> Any:
    """Return what stands for a value in a table that spreadsheets open: text that one would run as a formula is text.

    Numbers are returned as they are.
    """
    if not isinstance(value, str):
        return value
    return f"'{visible(value)}" if value.startswith(_FORMULA) else visible(value)
