"""Which addresses of the network this service opens for others: public ones, and those that a setting allows.

Uploads by URL, webhooks and live sources name addresses, and must not reach what only this machine or its
network can. A name is looked up once, and the address that it gave is checked and connected to.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final, Self
from urllib.parse import SplitResult, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

MAX_URL: Final = 2048
_LOOKUPS: Final = ThreadPoolExecutor(64, "lookup")
"""Looks names up. One whose servers give no answer takes ten seconds and more, and a few of those must not take all
threads that everything else is done in."""
_NAT64: Final = IPv6Network("64:ff9b::/96")


class AddressRefusedError(OSError):
    """An address that this service does not open; says why in one sentence."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """What may be opened: every public address, and those in the `allowed` networks."""

    allowed: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def of(cls, networks: Iterable[str]) -> Self:
        """Return the rules with networks such as ``192.168.1.0/24``; ValueError for anything else."""
        return cls(tuple(ip_network(network) for network in networks))

    def check(self, address: str) -> None:
        """Raise AddressRefusedError for an IP address that is neither public nor allowed."""
        ip = ip_address(address.partition("%")[0])
        if not _is_public(ip) and not any(ip in network for network in self.allowed):
            raise AddressRefusedError(
                f"{address} is not a public address; whoever runs this service can allow its network with "
                "`allowed_networks`"
            )

    def check_literal(self, host: str) -> None:
        """Raise AddressRefusedError where a host is an IP address, however it is written, and `check` refuses it.

        A name passes: what it leads to is known only when it is connected to.
        """
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        except (OSError, UnicodeError):
            return
        for *_, place in found:
            self.check(str(place[0]))

    async def resolve(self, host: str, port: int) -> str:
        """Return the IP address of a host that may be opened, for what connects by itself.

        Raises AddressRefusedError where there is none.
        """
        try:
            found = await _looked_up(host, port)
        except (OSError, UnicodeError) as exc:  # the latter for what is no name
            raise AddressRefusedError(f"there is no host {host[:100]!r}; check the address") from exc
        refused: AddressRefusedError | None = None
        for *_, place in found:
            try:
                self.check(str(place[0]))
            except AddressRefusedError as exc:
                refused = exc
            else:
                return str(place[0])
        raise refused or AddressRefusedError(f"there is no host {host[:100]!r}; check the address")

    def session(self, timeout_s: float) -> aiohttp.ClientSession:
        """Return a session whose every connection is checked; what is refused is a ClientConnectorError.

        It takes no proxy of the environment, keeps no cookies, and decompresses nothing.
        """
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(socket_factory=self._socket, limit=8, resolver=_Resolver()),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    def _socket(self, info: Any) -> socket.socket:
        """Make the socket for one address, whether a name led to it or it was given."""
        family, kind, protocol, _, place = info
        self.check(str(place[0]))
        return socket.socket(family, kind, protocol)


class _Resolver(AbstractResolver):
    """Looks names up for aiohttp."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See `AbstractResolver.resolve`."""
        return [
            ResolveResult(
                hostname=host, host=str(place[0]), port=int(place[1]), family=kind, proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, place in await _looked_up(host, port, family, socket.AI_ADDRCONFIG)
        ]  # fmt: skip

    async def close(self) -> None:
        """See `AbstractResolver.close`; the threads are for all."""


async def _looked_up(host: str, port: int, family: int = 0, flags: int = 0) -> list[Any]:
    """Return what a name leads to, as `socket.getaddrinfo` does."""
    look_up = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, flags=flags)
    return await asyncio.get_running_loop().run_in_executor(_LOOKUPS, look_up)


def checked_url(url: str, schemes: Collection[str]) -> SplitResult:
    """Return the parts of an address that begins with one of `schemes`; AddressRefusedError says what is wrong."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")  # parts of a name that are empty or too long
    except ValueError:
        raise AddressRefusedError(f"{url[:100]!r} is not an address; check it") from None
    if len(url) > MAX_URL or not url.isprintable() or " " in url:
        raise AddressRefusedError(f"the address has more than {MAX_URL} characters, or some that none has")
    if parts.scheme.lower() not in schemes or not host:
        raise AddressRefusedError(
            f"{url[:100]!r} is not allowed; addresses begin with {', '.join(sorted(schemes))}://"
        )
    return parts


def _is_public(ip: IPv4Address | IPv6Address) -> bool:
    if isinstance(ip, IPv6Address):
        # Addresses that lead to an IPv4 address are what that is.
        if (inner := ip.ipv4_mapped or ip.sixtofour) is not None:
            return _is_public(inner)
        if ip.teredo is not None:
            return False
        if ip in _NAT64:
            return _is_public(IPv4Address(int(ip) & 0xFFFFFFFF))
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)
