"""One job: an analysis in a sandbox, with its progress recorded, its cancellation seen, and one result stored."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, ParamSpec, TypeVar

from opentelemetry.trace import Span
from sqlalchemy.exc import InterfaceError, OperationalError

from deepfake_client.result.verdict import Reason
from deepfake_client.transport.request_id import REQUEST_ID
from deepfake_gateway.logs import first_line
from deepfake_gateway.sandbox.process import OnProgress, SandboxError, SandboxPool, TaskError
from deepfake_gateway.store.analysis import Analysis, Status
from deepfake_gateway.store.media import Media, MediaAwayError, local_file
from deepfake_gateway.store.records import Store
from deepfake_gateway.store.usage import Quotas
from deepfake_gateway.tracing import traced
from deepfake_preprocess import errors
from deepfake_preprocess.support.pauses import Pauses

logger = logging.getLogger(__name__)

LOOK_S: Final = 0.5
"""How often progress is written and a cancellation is looked for."""
MAX_KILLS: Final = 2
"""Times that the process of an analysis may be killed from outside; after that it needs too much memory."""

P = ParamSpec("P")
T = TypeVar("T")

Work = Callable[[Analysis, OnProgress], Awaitable[dict[str, Any]]]
"""Returns the JSON of a verdict. Raises TaskError, SandboxError or MediaAwayError."""


class SandboxedWork:
    """Analyzes in a pool of sandboxes."""

    def __init__(self, pool: SandboxPool, media: Media) -> None:
        self._pool, self._media = pool, media

    async def __call__(self, analysis: Analysis, on_progress: OnProgress) -> dict[str, Any]:
        """See `Work`."""
        task = {"kind": "analyze", "name": analysis.file_name, "options": analysis.options}
        try:
            async with local_file(self._media, analysis.id) as path:
                verdict: dict[str, Any] = (await self._pool.run({**task, "path": str(path)}, on_progress))["verdict"]
        except FileNotFoundError:
            # A deleted analysis has no job any more; what is left is a folder that is not the gateway's.
            detail = (
                f"{analysis.file_name} is not where this worker looks for it; whoever runs the service lets gateway "
                "and workers share `data_dir`, or sets `blobs`"
            )
            raise TaskError(errors.MediaNotFoundError.__name__, detail) from None
        return verdict


class WithinQuota:
    """Works as long as the key that an analysis was sent with has seconds of video left: what it costs shows here."""

    def __init__(self, work: Work, quotas: Quotas) -> None:
        self._work, self._quotas = work, quotas

    async def __call__(self, analysis: Analysis, on_progress: OnProgress) -> dict[str, Any]:
        """See `Work`."""
        allowed = await stored(self._quotas.used_up, analysis.key_id)
        if allowed is not None:
            detail = (
                f"this key's {allowed:g} seconds of video for the day are used up; send it again after midnight (UTC)"
            )
            raise TaskError("QuotaError", detail)
        return await self._work(analysis, on_progress)


async def run_job(store: Store, analysis_id: str, work: Work, *, server_wait_s: float) -> None:
    """Bring an analysis to its end: a verdict, a failure with its reason, or the cancellation that was asked for.

    An analysis that is over already, or gone, is left as it is: after a worker was killed, the same job comes again.
    """
    analysis = await stored(store.start, analysis_id)
    if analysis is None:
        return
    REQUEST_ID.set(analysis.request_id or "")
    with traced("analyze", {"deepfake.analysis": analysis_id}, parent=analysis.traceparent) as span:
        ended = await _run(store, analysis, work, server_wait_s)
        _say(span, analysis_id, ended or await stored(store.get, analysis_id))


async def _run(store: Store, analysis: Analysis, work: Work, server_wait_s: float) -> Analysis | None:
    """Return the analysis as this job ended it; None where somebody else did."""
    analysis_id, latest = analysis.id, list[dict[str, Any]]()
    task = asyncio.ensure_future(_work_until_served(analysis, work, latest.append, server_wait_s))
    try:
        while not task.done():
            await asyncio.wait([task], timeout=LOOK_S)
            # What is known at the end is in the verdict, and a cancellation is seen when it is stored.
            if not task.done() and not await stored(_note, store, analysis_id, latest):
                return None
        verdict = task.result()
    except TaskError as exc:
        return await stored(store.fail, analysis_id, exc.kind, str(exc))
    except (SandboxError, MediaAwayError) as exc:
        return await stored(store.fail, analysis_id, type(exc).__name__, str(exc))
    except Exception as exc:  # a job that ends without a word would be waited for forever
        logger.exception("analysis %s failed", analysis_id)
        detail = f"the gateway failed ({type(exc).__name__}); send it again, and report it if it fails again"
        return await stored(store.fail, analysis_id, "InternalError", detail)
    else:
        return await stored(store.finish, analysis_id, verdict)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


def _say(span: Span, analysis_id: str, analysis: Analysis | None) -> None:
    """Log how an analysis ended, and note it with its times in its span."""
    status = "deleted" if analysis is None else analysis.status.value
    outcome = "" if analysis is None else analysis.label or analysis.error_type or ""
    facts = {"status": status, "outcome": outcome}
    logger.info("analysis %s is %s %s", analysis_id, status, outcome, extra={"analysis": analysis_id, **facts})
    span.set_attributes({f"deepfake.{name}": value for name, value in facts.items()})
    if analysis is not None and analysis.verdict is not None:
        timing_s = analysis.verdict["timing_s"]
        span.set_attributes({f"deepfake.{stage}_s": seconds for stage, seconds in timing_s.items()})


async def stored(change: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Change the database in a thread, again and again while it is away: what is not recorded would be lost."""
    pauses = Pauses()
    while True:
        try:
            return await asyncio.to_thread(change, *args, **kwargs)
        except (OperationalError, InterfaceError) as exc:
            logger.warning("the database is away (%s); next try in %g s", first_line(exc.orig), pauses.next_s)
        await pauses.take()


def _note(store: Store, analysis_id: str, latest: list[dict[str, Any]]) -> bool:
    """Write the latest progress, if there is any; returns whether the analysis is still wanted."""
    if latest:
        progress = latest[-1]
        latest.clear()
        return store.add_progress(analysis_id, progress)
    analysis = store.get(analysis_id)
    return analysis is not None and analysis.status is Status.RUNNING


async def _work_until_served(
    analysis: Analysis, work: Work, on_progress: OnProgress, server_wait_s: float
) -> dict[str, Any]:
    """Work, again and again while the server, or where media are kept, is away and there is time left to wait for it.

    A process that was killed from outside is given another try, one that the medium ended is not.
    """
    pauses, kills = Pauses(server_wait_s), 0
    while True:
        may_wait = pauses.fits
        try:
            verdict = await work(analysis, on_progress)
        except SandboxError as exc:
            kills += 1
            if not exc.was_killed or kills > MAX_KILLS:
                raise
            continue
        except TaskError as exc:
            if exc.kind not in errors.AWAY or not may_wait:
                raise
        except MediaAwayError:
            if not may_wait:
                raise
        else:
            if verdict["reason"] != Reason.SERVER_UNAVAILABLE or not may_wait:
                return verdict
        await pauses.take()
