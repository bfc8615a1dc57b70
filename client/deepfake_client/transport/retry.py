"""Trying again what is safe to try again: one wrapper for every transport.

Scoring crops changes nothing on the server, so a request that may or may not have arrived can be sent once more.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from deepfake_client.transport.protocol import Health, ServedModel, Transport, refuse_changed
from deepfake_preprocess.errors import (
    OptionError,
    ServerBusyError,
    ServerError,
    ServerTimeoutError,
    ServerUnavailableError,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retry:
    """How long and how often a call is tried again.

    Pauses double from `initial_backoff_s` to `max_backoff_s`; each is drawn evenly between zero and that length
    ("full jitter", M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015), so many clients
    do not come back to a server at the same moment.

    Attributes:
        total_s: a call is tried again for this long after its first failure; 0 for never. The default outlasts a
            restart of Triton.
        max_attempts: bound on the attempts of one call, the first one included; none when None.
        initial_backoff_s: bound of the first pause, in seconds.
        max_backoff_s: bound of every pause, in seconds.
        jitter: draw pauses at random; False waits for the bound itself.
        from_start: also where the server has never answered, because it is known to be there.
    """

    total_s: float = 30.0
    max_attempts: int | None = None
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 2.0
    jitter: bool = True
    from_start: bool = False

    def __post_init__(self) -> None:
        for name in ("total_s", "initial_backoff_s", "max_backoff_s"):
            if not getattr(self, name) >= 0:
                raise OptionError(f"`{name}` of Retry is {getattr(self, name)}; allowed: 0 or more seconds")
        if self.max_attempts is not None and self.max_attempts < 1:
            raise OptionError(
                f"`max_attempts` of Retry is {self.max_attempts}; allowed: a whole number from 1, or None"
            )

    def pause_s(self, failures: int) -> float:
        """Return how long to wait after this many failures (from 1) in a row, in seconds."""
        # The exponent is bounded only to keep the number finite.
        bound = min(self.max_backoff_s, self.initial_backoff_s * 2 ** min(failures - 1, 32))
        return random.uniform(0, bound) if self.jitter else bound


NO_RETRY: Final = Retry(total_s=0)


class RetryingTransport:
    """A transport that tries again while the server is away or its queue is full.

    Nothing else is tried again: a deadline that has passed was the caller's, and other errors would come back. As
    long as the server has never answered, a call fails at once: there most likely is none. After an absence the model
    is compared with the one that was described, because another one may have been put in its place.

    Args:
        inner: does the calls.
        retry: how long and how often.
    """

    def __init__(self, inner: Transport, retry: Retry | None = None) -> None:
        self.url = inner.url
        self._inner = inner
        self._persistently = Persistence(retry or Retry())

    async def health(self) -> Health:
        """See `Transport.health`. Asks once: the question is how the server is now."""
        return await self._inner.health()

    async def list_models(self) -> list[str]:
        """See `Transport.list_models`."""
        return await self._persistently(self._inner.list_models)

    async def describe(self, model: str) -> ServedModel:
        """See `Transport.describe`."""
        return await self._persistently(lambda: self._inner.describe(model))

    async def infer(
        self, model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """See `Transport.infer`; the deadline is that of each attempt."""
        return await self._persistently(
            lambda: self._inner.infer(model, faces, timeout_s=timeout_s),
            after_absence=lambda: refuse_changed(self._inner, model),
        )

    async def close(self) -> None:
        """See `Transport.close`."""
        self._persistently.stop()
        await self._inner.close()


class Persistence:
    """Makes calls to one server, again and again while it is away or busy, as `Retry` allows."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._has_answered = retry.from_start
        self._stopped = False

    def stop(self) -> None:
        """Try nothing again from now on."""
        self._stopped = True

    async def __call__(
        self, call: Callable[[], Awaitable[T]], *, after_absence: Callable[[], Awaitable[None]] | None = None
    ) -> T:
        """Make a call; `after_absence` is called before it, once the server was away."""
        failures, failed_at, was_absent = 0, 0.0, False
        while True:
            try:
                if was_absent and after_absence is not None:
                    await after_absence()
                result = await call()
            except (ServerUnavailableError, ServerBusyError) as exc:
                failures += 1
                now = time.monotonic()
                failed_at = failed_at or now
                was_absent = was_absent or isinstance(exc, ServerUnavailableError)
                self._has_answered = self._has_answered or isinstance(exc, ServerBusyError)
                pause_s = self._retry.pause_s(failures)
                if not self._may_go_on(failures, now - failed_at + pause_s):
                    if failures == 1:
                        raise
                    raise type(exc)(f"{exc} (tried {failures} times in {now - failed_at:.1f} s)") from exc
                await asyncio.sleep(pause_s)
            except ServerError as exc:
                self._has_answered = self._has_answered or not isinstance(exc, ServerTimeoutError)
                raise
            else:
                self._has_answered = True
                return result

    def _may_go_on(self, failures: int, elapsed_s: float) -> bool:
        if self._stopped or not self._has_answered:
            return False
        if self._retry.max_attempts is not None and failures >= self._retry.max_attempts:
            return False
        return elapsed_s <= self._retry.total_s and self._retry.total_s > 0
