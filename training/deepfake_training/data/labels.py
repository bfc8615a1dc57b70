"""Labels of faces and files; a fake is the positive class."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

REAL: Final = 0
FAKE: Final = 1
LabelName: TypeAlias = Literal["real", "fake"]
