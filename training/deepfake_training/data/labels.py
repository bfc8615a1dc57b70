"""Labels of faces and files; a fake is the positive class."""

from __future__ import annotations

from typing import Final

REAL: Final = 0
FAKE: Final = 1
LABEL_NAMES: Final = ("real", "fake")
"""By label."""
