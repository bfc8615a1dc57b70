"""`Fetcher`: files that are named by their address, fetched to disk like an upload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Final
from urllib.parse import unquote, urljoin, urlsplit

import aiohttp

from deepfake_gateway.addresses import Addresses, AddressRefusedError, checked_url
from deepfake_gateway.intake.problems import Problem
from deepfake_gateway.intake.sink import Sink, file_name_of
from deepfake_gateway.settings import Settings

MAX_REDIRECTS: Final = 5
CHUNK_BYTES: Final = 2**16
_REDIRECTS: Final = (301, 302, 303, 307, 308)


class Fetcher:
    """Fetches files from http and https addresses that `Addresses` allows, as far as the settings let it.

    Each counts among the uploads `on_its_way`, which raises Problem 429 or 503 where these are too many.
    """

    def __init__(self, settings: Settings, on_its_way: Callable[[], AbstractContextManager[None]]) -> None:
        self._on_its_way = on_its_way
        self._is_on, self._timeout_s = settings.url_intake, settings.url_timeout_s
        self._addresses = Addresses.of(settings.allowed_networks)

    def check(self, url: str) -> None:
        """Raise Problem 403 where addresses are not taken, 422 for one that is none, or holds a password."""
        if not self._is_on:
            detail = "this service takes no addresses; send the file itself, or have `url_intake` set"
            raise Problem(403, detail, reason="url_intake")
        try:
            _check(url)
        except AddressRefusedError as exc:
            raise Problem(422, str(exc)) from None

    async def fetch(self, url: str, sink: Sink) -> None:
        """Write what is at an address; it is checked once more at every redirect.

        Raises:
            Problem: 403 where addresses are not taken, 413 for a file that is too large, 422 for an address that is
                not allowed or gives no file, 429 or 503 where too many uploads are on their way.
        """
        self.check(url)
        with self._on_its_way():
            await self._fetch(url, sink)

    async def _fetch(self, url: str, sink: Sink) -> None:
        try:
            async with self._addresses.session(self._timeout_s) as session, _answer(session, url) as answer:
                if answer.status != 200:
                    raise Problem(422, f"the server at the address answers {answer.status}; check the address")
                if answer.headers.get("content-encoding", "identity") != "identity":
                    raise Problem(422, "the server sends the file compressed; name an address of the file itself")
                if answer.content_length is not None:
                    sink.expect(answer.content_length)
                sink.upload.file_name = file_name_of(
                    answer.headers.get("content-disposition", ""), unquote(urlsplit(str(answer.url)).path)
                )
                async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                    await sink.write(chunk)
        except AddressRefusedError as exc:
            raise Problem(422, str(exc)) from None
        except TimeoutError:
            raise Problem(
                422, f"the address gave no whole file within {self._timeout_s:g} s; send the file itself"
            ) from None
        except aiohttp.ClientPayloadError:
            raise Problem(
                422,
                "the server at the address broke off before all of the file was there; try again, or send the file",
            ) from None
        except aiohttp.ClientConnectorError as exc:
            # What was refused for its address says so itself.
            raise Problem(422, f"the address cannot be fetched: {exc.os_error}") from None
        except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as exc:
            raise Problem(422, f"the address cannot be fetched ({type(exc).__name__}); check it") from None


def _check(url: str) -> None:
    parts = checked_url(url, ("http", "https"))
    if parts.username or parts.password:
        raise AddressRefusedError("the address holds a password, which would be stored; send the file itself")


@asynccontextmanager
async def _answer(session: aiohttp.ClientSession, url: str) -> AsyncIterator[aiohttp.ClientResponse]:
    """Yield the first answer that is no redirect."""
    for _ in range(MAX_REDIRECTS + 1):
        _check(url)
        headers = {"Accept-Encoding": "identity"}
        async with session.get(url, allow_redirects=False, headers=headers) as answer:
            if answer.status not in _REDIRECTS:
                yield answer
                return
            url = urljoin(url, answer.headers.get("location", ""))
    raise AddressRefusedError(f"the address leads to more than {MAX_REDIRECTS} others; name the last of them")
