"""Several servers as one, and no more requests under way on each than it takes gladly.

A request goes to the server with the most room. One that is away is left alone for a while and then asked again; the
request goes on to another. How many requests a server may have under way follows from how it answers: one more for
each round of answers in time, fewer when it refuses, or answers much later than it can (additive increase,
multiplicative decrease: Chiu and Jain, Computer Networks and ISDN Systems 17, 1989).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from deepfake_client.transport.protocol import Health, ServedModel, Transport
from deepfake_preprocess.errors import (
    ModelContractError,
    ServerBusyError,
    ServerError,
    ServerTimeoutError,
    ServerUnavailableError,
)

T = TypeVar("T")

FIRST_LIMIT: Final = 8.0
LARGEST_LIMIT: Final = 64.0
"""Requests under way on one server: twice what fills the batches of a GPU's two instances."""
DECREASE: Final = 0.7
SLOW: Final = 4.0
"""A server that takes this many times its best recent time has a queue: some full batches before each request."""
FORGET: Final = 0.02
"""Share by which the best time moves toward each later one, so that it belongs to the present load and model."""
AWAY_S: Final = 2.0
"""How long a server that did not answer is left alone."""


@dataclass(eq=False, slots=True)
class Endpoint:
    """One server and what is known of it."""

    transport: Transport
    limit: float = FIRST_LIMIT
    in_flight: int = 0
    best_s: float = 0.0
    away_until: float = 0.0
    lowered_at: float = field(default=0.0)

    @property
    def has_room(self) -> bool:
        """Whether it may be sent one more request."""
        return self.in_flight < max(1, int(self.limit))

    def answered(self, seconds: float) -> None:
        """Learn from an answer that took `seconds`."""
        self.away_until = 0.0
        self.best_s = seconds if not self.best_s else min(seconds, self.best_s + FORGET * (seconds - self.best_s))
        if seconds > SLOW * self.best_s:
            self.lower(seconds)
        elif self.in_flight >= int(self.limit) - 1:
            self.limit = min(LARGEST_LIMIT, self.limit + 1 / self.limit)

    def lower(self, seconds: float) -> None:
        """Allow fewer requests, once in the time that an answer takes: those under way say the same."""
        now = time.monotonic()
        if now - self.lowered_at >= seconds:
            self.lowered_at = now
            self.limit = max(1.0, DECREASE * self.limit)


class BalancedTransport:
    """A transport to several servers of the same model; see `Transport` for its methods.

    Args:
        transports: one for each server.

    Attributes:
        endpoints: what is known of each server.
    """

    def __init__(self, transports: Sequence[Transport]) -> None:
        self.endpoints = [Endpoint(transport) for transport in transports]
        self.url = ",".join(transport.url for transport in transports)
        self._room = asyncio.Condition()

    async def health(self) -> Health:
        """See `Transport.health`: ready where one of them is; the reason names those that are not."""
        found: list[Health | BaseException] = await asyncio.gather(
            *(endpoint.transport.health() for endpoint in self.endpoints), return_exceptions=True
        )
        states = [one for one in found if isinstance(one, Health)]
        if not states:
            raise next(one for one in found if isinstance(one, BaseException))
        reasons = [str(one) if isinstance(one, BaseException) else one.reason for one in found]
        return Health(
            any(state.alive for state in states),
            any(state.ready for state in states),
            "; ".join(filter(None, reasons)),
        )

    async def list_models(self) -> list[str]:
        """See `Transport.list_models`."""
        return await self._first(lambda transport: transport.list_models())

    async def describe(self, model: str) -> ServedModel:
        """See `Transport.describe`; ModelContractError where the servers that answer differ in their model."""
        found = await asyncio.gather(
            *(endpoint.transport.describe(model) for endpoint in self.endpoints), return_exceptions=True
        )
        described = {}
        for endpoint, one in zip(self.endpoints, found, strict=True):
            if isinstance(one, ServedModel):
                described[endpoint.transport.url] = one
            elif isinstance(one, ServerUnavailableError | ServerTimeoutError):
                endpoint.away_until = time.monotonic() + AWAY_S
            else:
                raise one
        if not described:
            raise next(one for one in found if isinstance(one, ServerError))
        (first_url, first), *others = described.items()
        for url, other in others:
            if other != first:
                raise ModelContractError(
                    f"the servers at {first_url} and {url} offer different models under the name {model!r}; serve "
                    "the same version on both, or name one of them"
                )
        return first

    async def infer(
        self, model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """See `Transport.infer`; tried on each server that is there before it fails."""
        tried: set[int] = set()
        while True:
            endpoint = await self._take(tried)
            begun = time.monotonic()
            try:
                scores = await endpoint.transport.infer(model, faces, timeout_s=timeout_s)
            except (ServerBusyError, ServerTimeoutError):
                endpoint.lower(time.monotonic() - begun)
                raise
            except ServerUnavailableError:
                endpoint.away_until = time.monotonic() + AWAY_S
                tried.add(id(endpoint))
                if len(tried) == len(self.endpoints):
                    raise
            else:
                endpoint.answered(time.monotonic() - begun)
                return scores
            finally:
                endpoint.in_flight -= 1
                async with self._room:
                    self._room.notify_all()

    async def close(self) -> None:
        """See `Transport.close`."""
        for endpoint in self.endpoints:
            await endpoint.transport.close()

    async def _take(self, tried: set[int]) -> Endpoint:
        """Return the server with the most room, when there is one, counted as having one request more."""
        left = [endpoint for endpoint in self.endpoints if id(endpoint) not in tried]
        async with self._room:
            while True:
                now = time.monotonic()
                # Where all are away, all are asked: whoever tries again later decides how long.
                there = [endpoint for endpoint in left if endpoint.away_until <= now] or left
                free = [endpoint for endpoint in there if endpoint.has_room]
                if free:
                    chosen = min(free, key=lambda endpoint: endpoint.in_flight / endpoint.limit)
                    chosen.in_flight += 1
                    return chosen
                await self._room.wait()

    async def _first(self, call: Callable[[Transport], Awaitable[T]]) -> T:
        error: ServerError | None = None
        for endpoint in sorted(self.endpoints, key=lambda one: one.away_until):
            try:
                return await call(endpoint.transport)
            except (ServerUnavailableError, ServerTimeoutError) as exc:
                endpoint.away_until = time.monotonic() + AWAY_S
                error = error or exc
        assert error is not None
        raise error
