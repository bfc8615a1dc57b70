"""The job of a watch: a live source in a sandbox of its own, with each of its verdicts recorded.

It ends with the source, with its time, by a cancellation, or by an error that has a name. A worker that died takes it
up again with its next start, for what is left of its time; the source is seen anew from there on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

from deepfake_client.transport.protocol import Transport
from deepfake_client.transport.request_id import REQUEST_ID
from deepfake_gateway.addresses import Addresses
from deepfake_gateway.jobs.running import LOOK_S, MAX_KILLS, stored
from deepfake_gateway.sandbox.limits import limits_of
from deepfake_gateway.sandbox.process import OnProgress, Sandbox, SandboxError, TaskError
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.analysis import Status
from deepfake_gateway.store.watches import Watch, Watches
from deepfake_preprocess.errors import AWAY
from deepfake_preprocess.support.pauses import Pauses

logger = logging.getLogger(__name__)

MAX_RESTARTS: Final = 3
"""Times that a watch goes on after its worker died: it may be what kills it."""
MOST_WAITING: Final = 100
"""Verdicts that wait to be written while the database is slow or away; the oldest are left out."""

Follow = Callable[[Watch, OnProgress], Awaitable[None]]
"""Watches a source until it ends, with the JSON of its verdicts as progress; raises TaskError or SandboxError."""


class SandboxedWatch:
    """Watches in a sandbox that is made for it."""

    def __init__(self, settings: Settings, transport: Transport) -> None:
        self._settings, self._transport = settings, transport
        self._addresses = Addresses.of(settings.allowed_networks)

    async def __call__(self, watch: Watch, on_progress: OnProgress) -> None:
        """See `Follow`."""
        limits = replace(limits_of(self._settings), cpu_s=int(watch.duration_s) * (os.cpu_count() or 1) + 60)
        sandbox = Sandbox(limits, self._transport, self._settings.model, has_door=True)
        await sandbox.start()
        task = {"kind": "watch", "name": watch.name, "url": watch.url, "options": watch.options}
        try:
            await sandbox.watch(task, self._addresses, on_progress)
        except SandboxError as exc:
            raise SandboxError(
                f"the process that read {watch.name} ended: what comes from there is damaged or made to do harm, or "
                f"needs more than {limits.memory_bytes >> 20} MiB; have it sent smaller, or encoded otherwise",
                was_killed=exc.was_killed,
            ) from exc


async def run_watch(watches: Watches, watch_id: str, follow: Follow, *, server_wait_s: float) -> None:
    """Bring a watch to its end; one that is over already, or gone, is left as it is."""
    watch = await stored(watches.start, watch_id)
    if watch is None:
        return
    if watch.restarts > MAX_RESTARTS:
        detail = (
            f"the process that watched {watch.name} died {watch.restarts} times; report it, and try another source"
        )
        await stored(watches.fail, watch_id, "WorkerDiedError", detail)
        return
    REQUEST_ID.set(watch_id)  # of the requests to the inference server
    latest: deque[dict[str, Any]] = deque(maxlen=MOST_WAITING)
    task = asyncio.ensure_future(_until_over(watch, follow, latest.append, server_wait_s))
    try:
        while not task.done():
            await asyncio.wait([task], timeout=LOOK_S)
            if not await stored(_note, watches, watch_id, latest):
                return
        end_reason = task.result()
    except (TaskError, SandboxError) as exc:
        kind = exc.kind if isinstance(exc, TaskError) else type(exc).__name__
        await stored(watches.fail, watch_id, kind, str(exc))
    except Exception as exc:  # a watch that ends without a word would be waited for forever
        logger.exception("watch %s failed", watch_id)
        detail = f"the gateway failed ({type(exc).__name__}); try again, and report it if it fails again"
        await stored(watches.fail, watch_id, "InternalError", detail)
    else:
        await stored(watches.finish, watch_id, end_reason)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


def _note(watches: Watches, watch_id: str, latest: deque[dict[str, Any]]) -> bool:
    """Write the verdicts that came; returns whether the watch is still wanted."""
    while latest:
        if not watches.add_verdict(watch_id, rolling_of(latest[0]), latest[0]):
            return False
        latest.popleft()
    watch = watches.get(watch_id)
    return watch is not None and watch.status is Status.RUNNING


async def _until_over(watch: Watch, follow: Follow, on_progress: OnProgress, server_wait_s: float) -> str:
    """Watch, again where the server is away or the process was killed; returns why it ended."""
    assert watch.ends_at is not None
    pauses, kills = Pauses(server_wait_s), 0
    try:
        async with asyncio.timeout(max(0.0, watch.ends_at - time.time())) as time_left:
            while True:
                try:
                    await follow(watch, on_progress)
                except SandboxError as exc:
                    kills += 1
                    if not exc.was_killed or kills > MAX_KILLS:
                        raise
                except TaskError as exc:
                    if exc.kind not in AWAY or not pauses.fits:
                        raise
                    await pauses.take()
                else:
                    return "source_ended"
    except TimeoutError:
        if not time_left.expired():
            raise
        return "time_is_up"


def rolling_of(verdict: dict[str, Any]) -> dict[str, Any]:
    """Return what is said of a verdict as an event: all of it but the frames, with each face's latest place."""
    places: dict[int, dict[str, Any]] = {}
    for frame in verdict["frames"]:
        for face in frame["faces"]:
            places[face["track"]] = {"box_xyxy": face["box_xyxy"], "size_wh": frame["size_wh"]}
    names = (
        "label",
        "fake_probability",
        "interval",
        "reason",
        "detail",
        "threshold",
        "deciding_track",
        "frames_dropped",
    )
    shown = (
        "track", "label", "fake_probability", "interval", "num_frames", "first_pts_seconds", "last_pts_seconds",
        "counted", "background",
    )  # fmt: skip
    return {
        "at_s": verdict["frames"][-1]["pts_seconds"] if verdict["frames"] else 0.0,
        **{name: verdict[name] for name in names},
        "faces": [
            {**{name: track[name] for name in shown}, **places.get(track["track"], {})} for track in verdict["tracks"]
        ],
    }
