"""Text of others (names of files, words of a server) made safe to be shown among text of ours."""

from __future__ import annotations

import re
import unicodedata


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
