"""`WatchDesk`: takes live sources in, by their address, and says what became of them."""

from __future__ import annotations

import secrets
import time
from copy import copy
from typing import Any, Final, Self

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field

from deepfake_client.options import Aggregation, WatchOptions
from deepfake_gateway.addresses import MAX_URL, Addresses, AddressRefusedError, checked_url
from deepfake_gateway.intake.problems import Problem
from deepfake_gateway.intake.room import Room
from deepfake_gateway.jobs.queue import Job, Priority, Queue
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.analysis import Status
from deepfake_gateway.store.keys import Key, seen_with, tenant_of
from deepfake_gateway.store.threads import in_store
from deepfake_gateway.store.watches import Watch, Watches
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.media.remote import without_password

PORTS: Final = {"http": 80, "https": 443, "rtsp": 554}
"""Default ports of the addresses that may be watched."""
MAX_WINDOW_FRAMES: Final = 600


class WatchForm(BaseModel):
    """What is watched, and how; see `deepfake_client.options.WatchOptions`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    url: str = Field(min_length=1, max_length=MAX_URL)
    """Address of an RTSP camera, an HLS playlist, or another stream at http or https. A user and password before the
    host are given to the source alone, and forgotten when the watch ends."""
    duration_s: float | None = Field(None, ge=1, allow_inf_nan=False)
    """How long it is watched; as long as this service allows by default."""
    window_s: float = Field(10.0, ge=1, le=120)
    """Length of the window that each verdict is on, in seconds of the source's time."""
    step_s: float = Field(1.0, ge=0.2, le=60)
    """Time from one verdict to the next."""
    fps: float = Field(5.0, gt=0, le=60)
    """Frames looked at per second."""
    min_change: float = Field(0.0, ge=0, le=1)
    """How far the score must move for a new verdict; 0 gives one with every step."""
    aggregation: Aggregation = "mean"
    """How a face's frames become its score."""
    threshold: float | None = Field(None, gt=0, lt=1)
    """FAKE at or above it; the model's own by default."""
    min_face_px: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Faces with a smaller box are left out."""
    min_face_share: float = Field(0.0, ge=0, lt=1)
    """The same relative to the frame's shorter side."""
    reconnects: int = Field(5, ge=0, le=20)
    """How often in a row a source that broke off is opened again."""

    def to_options(self) -> dict[str, Any]:
        """Return the client's options as JSON data; Problem 422 where they do not go together."""
        if self.window_s * self.fps > MAX_WINDOW_FRAMES:
            raise Problem(
                422, f"`window_s` times `fps` is {self.window_s * self.fps:g}, and a window has {MAX_WINDOW_FRAMES} "
                "frames at most; lower one of them"
            )  # fmt: skip
        options = self.model_dump(exclude={"url", "duration_s"})
        try:
            WatchOptions(**options)
        except OptionError as exc:
            raise Problem(422, str(exc)) from None
        return options


class WatchDesk:
    """Where watches begin and end, of all callers; `of` gives that of one."""

    def __init__(self, engine: sa.Engine, queue: Queue, room: Room, settings: Settings) -> None:
        self.store = Watches(engine)
        self._all, self._engine, self._queue = self.store, engine, queue
        self._room, self._settings = room, settings
        self._key: Key | None = None

    def of(self, key: Key | None) -> Self:
        """Return the desk of a caller, in which there is only what belongs to the key's tenant."""
        desk = copy(self)
        desk._key, desk.store = key, Watches(self._engine, seen_with(key))
        return desk

    @property
    def is_on(self) -> bool:
        """Whether this service opens addresses at all."""
        return self._settings.url_intake

    @property
    def max_s(self) -> float:
        """How long a source is watched at most."""
        return self._settings.watch_max_s

    async def begin(self, form: WatchForm) -> Watch:
        """Begin to watch a source.

        Raises:
            Problem: 403 where addresses are not taken, 422 for an address or options that are not allowed, 429 where
                the key's quota is used up, or it has as many watched as may be, and 503 where all together have.
        """
        await in_store(self._room.check_quota, self._key)
        settings = self._settings
        if not self.is_on:
            detail = "this service opens no addresses; send a file, or have `url_intake` set"
            raise Problem(403, detail, reason="url_intake")
        options = form.to_options()
        duration_s = settings.watch_max_s if form.duration_s is None else form.duration_s
        if duration_s > settings.watch_max_s:
            raise Problem(
                422, f"`duration_s` is {duration_s:g}, and a source is watched for {settings.watch_max_s:g} s at "
                "most; give a smaller number, and begin again after it"
            )  # fmt: skip
        try:
            parts = checked_url(form.url, PORTS)
            default_port = PORTS[parts.scheme.lower()]
            # It is checked again, and then connected to, with every connection.
            await Addresses.of(settings.allowed_networks).resolve(parts.hostname or "", parts.port or default_port)
        except AddressRefusedError as exc:
            raise Problem(422, str(exc)) from None
        watch = Watch(
            id=secrets.token_hex(16),
            created_at=time.time(),
            status=Status.QUEUED,
            name=without_password(form.url),
            url=form.url,
            options=options,
            duration_s=duration_s,
            tenant=tenant_of(self._key),
            key_id=None if self._key is None else self._key.id,
        )
        await in_store(self._add, watch)
        return watch

    def _add(self, watch: Watch) -> None:
        settings = self._settings
        wait = {"Retry-After": "10"}
        if watch.key_id is not None and self._all.unfinished(watch.key_id) >= settings.watches_of_key:
            count = settings.watches_of_key
            detail = f"this key has {count} live sources watched, as many as may be; end one of them"
            raise Problem(429, detail, wait, reason="watches_of_key")
        if self._all.unfinished() >= settings.watches_in_all:
            count = settings.watches_in_all
            detail = f"{count} live sources are watched, as many as may be; end one, or try later"
            raise Problem(503, detail, wait, reason="watches_in_all")
        self._all.add(
            watch, lambda connection: self._queue.enqueue(connection, Job.WATCH, watch.id, Priority.INTERACTIVE)
        )

    def find(self, watch_id: str) -> Watch:
        """Return a watch; Problem 404 where there is none."""
        watch = self.store.get(watch_id)
        if watch is None:
            raise Problem(404, f"there is no watch {watch_id[:64]!r}; it was deleted, or the address is wrong")
        return watch

    def cancel(self, watch_id: str) -> Watch:
        """End a watch, whether it waits or runs; Problem 409 where it is over."""
        watch = self.find(watch_id)
        if not self.store.cancel(watch_id):
            raise Problem(409, f"the watch is over ({watch.status.value}); there is nothing to end")
        return self.find(watch_id)

    def delete(self, watch_id: str) -> None:
        """Remove a watch and its verdicts; one that runs is ended."""
        self.find(watch_id)
        self.store.cancel(watch_id)
        self.store.delete(watch_id)
        self._queue.forget(watch_id)
