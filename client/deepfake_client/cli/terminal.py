"""Standard output: JSON that a terminal does not act upon, and an error of ours where it cannot be written."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from deepfake_preprocess.errors import OptionError


class ReaderGoneError(OptionError):
    """Nothing reads standard output any more, as after ``| head``."""

    exit_code = 128 + signal.SIGPIPE


def json_text(data: Any, *, indent: int | None = None) -> str:
    """Return JSON whose strings hold nothing that a terminal acts upon, or that is not UTF-8."""
    text = json.dumps(data, ensure_ascii=False, indent=indent)
    # Outside of its strings, JSON has characters of ASCII only.
    return re.sub(r"[^\x20-\x7e\n]", lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]


@contextmanager
def checked_stdout() -> Iterator[None]:
    """Let every write to standard output that fails (disk full, reader gone) raise OptionError, also the last one."""
    before = sys.stdout
    plain = io.TextIOWrapper(_Closed(), "utf-8") if before is None else before
    try:
        checked = _CheckedOutput(plain)
    except (AttributeError, io.UnsupportedOperation):  # replaced by something without bytes
        yield
        return
    sys.stdout = checked
    try:
        yield
        checked.flush()
    finally:
        sys.stdout = before
        with suppress(OptionError):
            checked.detach()


class _Closed(io.BytesIO):
    """Stands for a standard output that the process was started without; Python would drop what is printed."""

    def write(self, data: Any) -> int:
        """See `io.BytesIO.write`."""
        raise OSError(errno.EBADF, "it is closed")


class _CheckedOutput(io.TextIOWrapper):
    def __init__(self, plain: Any) -> None:
        plain.flush()
        # A file name that is not UTF-8 is printed with escapes.
        super().__init__(
            plain.buffer, encoding=plain.encoding, errors="backslashreplace", line_buffering=plain.line_buffering
        )

    def write(self, text: str) -> int:
        """See `io.TextIOBase.write`; OptionError where it fails."""
        with self._translated():
            return super().write(text)

    def flush(self) -> None:
        """See `io.IOBase.flush`; OptionError where it fails."""
        with self._translated():
            super().flush()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            # What is left in buffers would fail again when the process ends.
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
            if exc.errno == errno.EPIPE:
                raise ReaderGoneError("nothing reads standard output any more") from exc
            raise OptionError(
                f"standard output cannot be written ({exc.strerror}); free some space, or send it somewhere else"
            ) from exc
