"""Where a server is and how it is spoken to: one reading of URLs for all protocols."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args
from urllib.parse import urlsplit

from deepfake_client.transport.tls import Tls
from deepfake_preprocess.errors import OptionError

ProtocolName = Literal["grpc", "http", "grpc-shm"]
PROTOCOLS: Final = get_args(ProtocolName)
DEFAULT_URLS: Final[Mapping[ProtocolName, str]] = {
    "grpc": "localhost:8001",
    "http": "http://localhost:8000",
    "grpc-shm": "localhost:8001",
}
"""Triton's standard ports on this host."""

_SCHEMES = {"grpc": ("grpc", False), "grpcs": ("grpc", True), "http": ("http", False), "https": ("http", True)}
_FORMS = "HOST:PORT, grpc://HOST:PORT, grpcs://HOST:PORT, http://HOST:PORT or https://HOST:PORT"


@dataclass(frozen=True, slots=True)
class Address:
    """A server's address, taken apart.

    Attributes:
        protocol: how it is spoken to.
        host: name or IP address, IPv6 without brackets.
        port: TCP port.
        path: what comes before ``/v2`` where a proxy serves HTTP below a folder; else empty.
        tls: how the connection is secured; None for plain text.
    """

    protocol: ProtocolName
    host: str
    port: int
    path: str = ""
    tls: Tls | None = None

    @property
    def target(self) -> str:
        """``host:port``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        if self.protocol != "http":
            return self.target
        return f"http{'s' if self.tls else ''}://{self.target}{self.path}"


def parse_address(url: str | None, *, protocol: str | None = None, tls: Tls | None = None) -> Address:
    """Read a URL: ``host:port``, or with a scheme; the default of `protocol` when None.

    Without `protocol` the URL's scheme says it, and gRPC is meant without one. OptionError where the URL cannot be
    read, or contradicts `protocol` or `tls`.
    """
    if protocol is not None and protocol not in PROTOCOLS:
        raise OptionError(f"`protocol` is {protocol!r}; allowed: {', '.join(PROTOCOLS)}")
    given = DEFAULT_URLS["http" if protocol == "http" else "grpc"] if url is None else url.strip()
    scheme, separator, rest = given.rpartition("://")
    if separator and scheme not in _SCHEMES:
        raise OptionError(f"`url` is {given!r} with the unknown scheme {scheme!r}; allowed: {_FORMS}")
    spoken, secure = _SCHEMES[scheme] if separator else ("http" if protocol == "http" else "grpc", False)
    if protocol is not None and spoken != protocol.removesuffix("-shm"):
        raise OptionError(
            f"`url` is {given!r}, which is {'HTTP' if spoken == 'http' else 'gRPC'}, but `protocol` is {protocol!r}; "
            f"set `protocol` to {spoken!r}, or give the address as HOST:PORT with the port for {protocol} "
            "(usually 8001 for gRPC, 8000 for HTTP)"
        )
    if url is not None and separator and tls is not None and not secure:
        raise OptionError(
            f"`url` is {given!r}, which is not encrypted, but TLS was asked for; write {scheme}s://{rest}"
        )
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname or "", parts.port
    except ValueError as exc:
        raise OptionError(f"`url` is {given!r}, which cannot be read ({exc}); allowed: {_FORMS}") from exc
    path = parts.path.rstrip("/")
    if not host or re.search(r"\s", rest) or parts.query or parts.fragment or (path and spoken == "grpc"):
        raise OptionError(f"`url` is {given!r}, which is not a server's address; allowed: {_FORMS}")
    if parts.username is not None:
        raise OptionError("`url` must not hold a user or password; send the header 'authorization' (`headers`)")
    secured = tls if tls is not None else Tls() if secure else None
    if port is None:
        # A URL of the web without a port means the web's port; else Triton's own is meant.
        port = 8001 if spoken == "grpc" else 8000 if not separator else 443 if secure else 80
    named: ProtocolName = "http" if spoken == "http" else "grpc-shm" if protocol == "grpc-shm" else "grpc"
    return Address(named, host, port, path, secured)


def without_version(url: str, version: str) -> str:
    """Return a service's address without the `version` that all its paths begin with, where somebody gave it too."""
    return url.removesuffix(f"/{version}")


def check_headers(headers: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """Return headers in the form that gRPC and HTTP both take: names in lower case.

    OptionError for one that is not allowed; its value is not repeated, as it may be a secret.
    """
    checked = []
    for name, value in (headers or {}).items():
        lower = name.strip().lower()
        if not re.fullmatch(r"[0-9a-z_.-]+", lower) or lower.startswith("grpc-") or lower.endswith("-bin"):
            raise OptionError(
                f"a header is called {name!r}; allowed: letters, digits, '-', '_' and '.', "
                "not beginning with 'grpc-' and not ending with '-bin'"
            )
        if not re.fullmatch(r"[\x20-\x7e]*", value):
            raise OptionError(f"the value of header {lower!r} has characters that are not printable ASCII")
        checked.append((lower, value.strip()))
    return tuple(checked)
