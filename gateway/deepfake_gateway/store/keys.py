"""`Keys`: who may ask the service, and for whom; of a key only its hash is kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, Self

import sqlalchemy as sa

from deepfake_gateway.store.schema import KEYS, SESSIONS

PREFIX: Final = "dfk"
SCOPES: Final = ("read", "analyze", "metrics", "admin")
"""``read``: see one's own results; ``analyze``: also send, explain, cancel and delete; ``metrics``: the metrics
alone; ``admin``: all of it, of all tenants."""
SESSION_COOKIE: Final = "session"
SESSION_S: Final = 12 * 3600
_FORM: Final = re.compile(r"dfk_([0-9a-f]{8})_([0-9a-f]{48})([0-9a-f]{8})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key as it is stored: without the secret; times in seconds since 1970."""

    id: str
    name: str
    tenant: str
    scopes: frozenset[str]
    seconds_per_day: float | None
    created_at: float
    expires_at: float | None
    revoked_at: float | None

    @classmethod
    def of(cls, row: Any) -> Self:
        """Return the key of a row of SQLAlchemy's."""
        values = row._asdict()
        del values["sha256"]
        return cls(**{**values, "scopes": frozenset(values["scopes"].split())})

    @property
    def state(self) -> str:
        """``valid``, ``expired`` or ``revoked``."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= time.time() else "valid"

    def may(self, scope: str) -> bool:
        """Return whether the key opens what a scope of `SCOPES` is for: by itself, or by one that includes it."""
        return bool(self.scopes & {scope, "admin"}) or (scope == "read" and "analyze" in self.scopes)


def tenant_of(key: Key | None) -> str:
    """Return whose becomes what comes with a key; of an open service's callers, who have none, the one."""
    return "" if key is None else key.tenant


def seen_with(key: Key | None) -> str | None:
    """Return the tenant whose things alone are there for a caller; None where all are."""
    return None if key is None or "admin" in key.scopes else key.tenant


class Keys:
    """The tables of keys and of the page's sessions; safe for threads."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def create(
        self,
        name: str,
        scopes: Collection[str],
        *,
        tenant: str | None = None,
        expires_at: float | None = None,
        seconds_per_day: float | None = None,
    ) -> tuple[Key, str]:
        """Return a new key, and its text, which is kept nowhere; without a `tenant` it has one of its own."""
        key_id, secret = secrets.token_hex(4), secrets.token_hex(24)
        text = f"{PREFIX}_{key_id}_{secret}"
        text += f"{zlib.crc32(text.encode()):08x}"
        key = Key(
            id=key_id, name=name, tenant=key_id if tenant is None else tenant, scopes=frozenset(scopes),
            seconds_per_day=seconds_per_day, created_at=time.time(), expires_at=expires_at, revoked_at=None,
        )  # fmt: skip
        values = {column.name: getattr(key, column.name) for column in KEYS.columns if column.name != "sha256"}
        values |= {"scopes": " ".join(sorted(scopes)), "sha256": _hash(text)}
        with self._engine.begin() as connection:
            connection.execute(KEYS.insert().values(values))
        return key, text

    def all(self) -> list[Key]:
        """Return all keys, also those that are valid no more, the oldest first."""
        with self._engine.connect() as connection:
            return [Key.of(row) for row in connection.execute(sa.select(KEYS).order_by(KEYS.c.created_at))]

    def get(self, key_id: str) -> Key | None:
        """Return the key of an id, also one that is valid no more; None where there is none."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(KEYS).where(KEYS.c.id == key_id)).first()
        return None if row is None else Key.of(row)

    def revoke(self, key_id: str) -> bool:
        """End a key and its sessions at once; returns whether there was one that was not revoked."""
        with self._engine.begin() as connection:
            connection.execute(SESSIONS.delete().where(SESSIONS.c.key_id == key_id))
            valid = (KEYS.c.id == key_id) & KEYS.c.revoked_at.is_(None)
            return connection.execute(KEYS.update().where(valid).values(revoked_at=time.time())).rowcount > 0

    def are_required(self) -> bool:
        """Whether any key was ever made: from then on nobody is served without one."""
        with self._engine.connect() as connection:
            return connection.execute(sa.select(KEYS.c.id).limit(1)).first() is not None

    def is_valid(self, key_id: str) -> bool:
        """Whether the key of an id may still be used."""
        return self._valid(sa.select(KEYS).where(KEYS.c.id == key_id)) is not None

    def of_text(self, text: str) -> Key | None:
        """Return the valid key of a text; None for any other text."""
        found = _FORM.fullmatch(text)
        if found is None or not _is_intact(text, found):
            return None  # mistyped, or cut off: the database need not be asked
        return self._valid(sa.select(KEYS).where(KEYS.c.id == found[1]), _hash(text))

    def _valid(self, query: sa.Select[Any], sha256: str | None = None) -> Key | None:
        with self._engine.connect() as connection:
            row = connection.execute(query).first()
        if row is None or (sha256 is not None and not hmac.compare_digest(row.sha256, sha256)):
            return None
        key = Key.of(row)
        return key if key.state == "valid" else None

    # --- sessions of the page -------------------------------------------------------------------------------------

    def begin_session(self, key: Key) -> str:
        """Return what a cookie holds for the next hours instead of a key; sessions that are over are removed."""
        token, now = secrets.token_urlsafe(32), time.time()
        expires_at = min(now + SESSION_S, key.expires_at or now + SESSION_S)
        with self._engine.begin() as connection:
            connection.execute(SESSIONS.delete().where(SESSIONS.c.expires_at <= now))
            connection.execute(SESSIONS.insert().values(sha256=_hash(token), key_id=key.id, expires_at=expires_at))
        return token

    def of_session(self, token: str) -> Key | None:
        """Return the valid key of a session that is not over."""
        query = sa.select(KEYS).join(SESSIONS, SESSIONS.c.key_id == KEYS.c.id)
        return self._valid(query.where((SESSIONS.c.sha256 == _hash(token)) & (SESSIONS.c.expires_at > time.time())))

    def end_session(self, token: str) -> None:
        """Forget a session."""
        with self._engine.begin() as connection:
            connection.execute(SESSIONS.delete().where(SESSIONS.c.sha256 == _hash(token)))


def id_of(text: str) -> str | None:
    """Return the id that a text names: as ``dfk_ID``, alone, or as the key itself; None for any other text."""
    if found := re.fullmatch(r"(?:dfk_)?([0-9a-f]{8})", text):
        return found[1]
    found = _FORM.fullmatch(text)
    return None if found is None or not _is_intact(text, found) else found[1]


def _is_intact(text: str, found: re.Match[str]) -> bool:
    return zlib.crc32(text[:-8].encode()) == int(found[3], 16)


def _hash(text: str) -> str:
    # No slow hash of passwords: a key is 192 random bits.
    return hashlib.sha256(text.encode()).hexdigest()
