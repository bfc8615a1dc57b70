"""`Place`: where a page of a list, newest first, ended; the next goes on there, whatever was deleted meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

CURSOR: Final = r"^[0-9]{1,12}\.[0-9]{1,9}-[0-9a-f]{32}$"
"""What a place is as text."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of an item: when it began, in seconds since 1970, and its id."""

    created_at: float
    id: str

    def behind(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """Return what is true of the rows that follow in the list."""
        return sa.tuple_(table.c.created_at, table.c.id) < sa.tuple_(sa.literal(self.created_at), sa.literal(self.id))


def place_of(cursor: str | None) -> Place | None:
    """Return the place that a text after `CURSOR` names; None, the beginning, without one."""
    if not cursor:
        return None
    created_at, _, item_id = cursor.partition("-")
    return Place(float(created_at), item_id)


def next_cursor(found: Sequence[Any], limit: int) -> str | None:
    """Return the text of the place behind the first `limit` of what was found; None where there are no more."""
    return f"{found[limit - 1].created_at}-{found[limit - 1].id}" if len(found) > limit else None
