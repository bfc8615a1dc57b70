"""Threads that wait for the database, and those that wait for where media are kept.

Each has so many of its own. What waits in vain, for a Postgres that takes questions and answers none or for a bucket
that hangs, holds up its kind alone, and neither uploads on their way nor what asks for neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Final, ParamSpec, TypeVar

from sqlalchemy.exc import TimeoutError as NoAnswerError

ANSWER_S: Final = 10.0
"""How long an answer of the database is waited for; what was asked goes on in its thread, and may still be done."""
_STORE: Final = ThreadPoolExecutor(16, "store")
_MEDIA: Final = ThreadPoolExecutor(16, "media")

P = ParamSpec("P")
T = TypeVar("T")


async def in_store(ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Ask the database, in a thread; raises sqlalchemy's TimeoutError where it gives no answer in time."""
    try:
        async with asyncio.timeout(ANSWER_S):
            return await _in(_STORE, partial(ask, *args, **kwargs))
    except TimeoutError:
        raise NoAnswerError(f"no answer within {ANSWER_S:g} s") from None


async def in_media(do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do something where media are kept, in a thread; a bucket gives up by itself (`MediaAwayError`)."""
    return await _in(_MEDIA, partial(do, *args, **kwargs))


async def _in(threads: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, copy_context().run, call)
