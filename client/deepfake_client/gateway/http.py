"""`GatewayHttp`: requests to a verdict service, its events, and its refusals as errors; needs the extra ``http``."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import aiohttp

from deepfake_client.transport.address import without_version
from deepfake_client.transport.connection import Connection
from deepfake_client.transport.retry import Persistence
from deepfake_client.transport.tls import diagnose
from deepfake_preprocess.errors import (
    DeepfakeError,
    InferenceError,
    MediaOpenError,
    OptionError,
    ServerAccessError,
    ServerBusyError,
    ServerError,
    ServerTimeoutError,
    ServerTlsError,
    ServerUnavailableError,
)

_ERROR_OF: Final[Mapping[int, type[DeepfakeError]]] = {
    400: MediaOpenError,
    401: ServerAccessError,
    403: ServerAccessError,
    413: MediaOpenError,
    415: MediaOpenError,
    422: OptionError,
    429: ServerBusyError,
    502: ServerUnavailableError,
    503: ServerUnavailableError,
    504: ServerTimeoutError,
}
"""What a refusal is here; see docs/gateway.md for the statuses."""
SILENCE_S: Final = 45.0
"""Events come, or a comment every 15 s; a connection that is silent for longer is broken."""
RECONNECT_S: Final = 0.2

Body = Callable[[], AsyncIterator[bytes]]
"""Gives the pieces of a request's body, from its start with each call."""


@dataclass(frozen=True, slots=True)
class GatewayEvent:
    """One server-sent event."""

    id: str
    kind: str
    data: dict[str, Any]


class GatewayHttp:
    """The requests of one client, on one event loop; tried again while the service is away or has too much to do."""

    def __init__(self, connection: Connection) -> None:
        self._address = connection.address
        self.url = without_version(str(self._address), "v1")
        self._connection = connection
        self._context = None if self._address.tls is None else self._address.tls.context()
        self._session: aiohttp.ClientSession | None = None
        self._persistently = Persistence(connection.retry)
        self._has_answered = False

    async def json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
    ) -> dict[str, Any]:
        """Return the JSON that answers a request.

        Raises:
            InputError: it refuses the file (MediaOpenError) or an option.
            ServerError: it cannot be reached, asks for a key, has too much to do, or failed.
        """

        async def once() -> dict[str, Any]:
            options: dict[str, Any] = {} if body is None else {"data": body()}
            request = self._request(method, path, params=query, headers=headers, **options)
            return await self._answer_of(request)

        return await self._persistently(once)

    async def events(self, path: str) -> AsyncIterator[GatewayEvent]:
        """Yield events until the server ends them; a connection that breaks is made again behind the last one."""
        last_id, ended = "", False
        while not ended:
            response = await self._persistently(partial(self._open_events, path, last_id))
            try:
                async for event in _read_events(response.content):
                    last_id, ended = event.id or last_id, event.kind == "end"
                    yield event
                    if ended:
                        return
            except (aiohttp.ClientError, OSError, ValueError):
                pass  # it broke off: asked again, and refused there if the service is gone
            finally:
                response.close()
            await asyncio.sleep(RECONNECT_S)

    async def _open_events(self, path: str, last_id: str) -> aiohttp.ClientResponse:
        headers = {"accept": "text/event-stream"} | ({"last-event-id": last_id} if last_id else {})
        response = await self._request("GET", path, headers=headers, silence_s=SILENCE_S)
        if response.status != 200:
            await self._refuse(response)
        return response

    async def close(self) -> None:
        """End all connections."""
        self._persistently.stop()
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _request(
        self, method: str, path: str, *, silence_s: float | None = None, **options: Any
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self._context or True, limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector, headers=dict(self._connection.headers), trust_env=True
            )
        timeout_s = self._connection.timeout_s
        # A file takes as long as it takes; what is bounded is how long nothing moves.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=silence_s or timeout_s)
        try:
            response = await self._session.request(
                method, self.url + path, timeout=timeout, allow_redirects=False, **options
            )
        except (aiohttp.ClientError, OSError) as exc:
            raise await asyncio.to_thread(self._as_server_error, exc) from exc
        self._has_answered = True
        return response

    async def _answer_of(self, request: Any) -> dict[str, Any]:
        response = await request
        try:
            if response.status not in (200, 202):
                await self._refuse(response)
            data = await response.json()
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            if isinstance(exc, DeepfakeError):
                raise
            raise self._no_gateway(response.status) from exc
        finally:
            response.release()
        if not isinstance(data, dict):
            raise self._no_gateway(response.status)
        return data

    async def _refuse(self, response: aiohttp.ClientResponse) -> None:
        """Raise what a refusal is here, in the words of the service."""
        try:
            detail = str((await response.json(content_type=None))["detail"])
        except (aiohttp.ClientError, KeyError, TypeError, ValueError):
            if response.status in (502, 503, 504):  # of a proxy before it
                detail = f"HTTP status {response.status}"
            else:
                raise self._no_gateway(response.status) from None
        kind = _ERROR_OF.get(response.status, InferenceError)
        if response.status == 401:
            detail += "; a key is sent as the header 'authorization' (`headers`)"
        raise kind(f"the gateway at {self.url}: {detail}")

    def _no_gateway(self, status: int) -> ServerError:
        return InferenceError(
            f"{self.url} answered with status {status} and something else than a verdict service does; name the "
            "address that `deepfake gateway` printed"
        )

    def _as_server_error(self, exc: Exception) -> ServerError:
        """Translate what aiohttp raises; may block while it finds out what is wrong with TLS."""
        if isinstance(exc, TimeoutError):
            return ServerTimeoutError(
                f"the gateway at {self.url} has not answered in {self._connection.timeout_s:g} s; look at its load, "
                "or raise `timeout_s`"
            )
        address = self._address
        if isinstance(exc, ssl.SSLError | aiohttp.ClientSSLError | aiohttp.ServerDisconnectedError):
            reason = diagnose(
                address.host, address.port, address.tls, alpn="http/1.1", worked_before=self._has_answered
            )
            if reason is not None:
                return ServerTlsError(f"the gateway at {self.url} {reason}")
        if isinstance(exc, aiohttp.ClientResponseError):
            return ServerUnavailableError(
                f"what listens at {self.url} does not speak HTTP; name the address that `deepfake gateway` printed"
            )
        return ServerUnavailableError(
            f"no gateway answers at {self.url}; start one with `deepfake gateway`, or check the address"
        )


async def _read_events(stream: aiohttp.StreamReader) -> AsyncIterator[GatewayEvent]:
    """Yield the events of a stream (WHATWG HTML, "Server-sent events"), each with JSON as its data."""
    fields: dict[str, str] = {}
    # Lines of any length: the last event holds a verdict.
    rest = b""
    async for chunk in stream.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            name, _, value = line.decode().rstrip("\r").partition(":")
            if name:
                fields[name] = fields.get(name, "") + value.removeprefix(" ")
            elif not value:  # a line that begins with a colon is a comment
                if "data" in fields:
                    data = json.loads(fields["data"])
                    yield GatewayEvent(fields.get("id", ""), fields.get("event", "message"), data)
                fields = {}
