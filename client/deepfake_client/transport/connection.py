"""`Connection`: which server is talked to, and how. One value, made once and passed on as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from deepfake_client.transport.address import Address, check_headers, parse_address
from deepfake_client.transport.retry import Retry
from deepfake_client.transport.tls import Tls
from deepfake_preprocess.errors import OptionError

DEFAULT_TIMEOUT_S: Final = 30.0


def check_timeout(timeout_s: float | None) -> None:
    """Refuse a deadline that is not positive."""
    if timeout_s is not None and not timeout_s > 0:
        raise OptionError(f"`timeout_s` must be positive, got {timeout_s}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Which server is talked to, and how. Nothing is contacted by making one.

    Attributes:
        url: ``host:port``, or a URL that begins with grpc, grpcs, http or https; Triton's standard port on this host
            when None. Several servers of the same model are separated by commas.
        protocol: ``grpc``, ``http`` or ``grpc-shm`` (crops in shared memory, same host only); by the URL when None,
            which is gRPC unless it says HTTP.
        tls: secures the connection, also with a client certificate; with None, a URL of grpcs or https uses TLS with
            public certificates.
        headers: sent with every request, for example ``{"authorization": "Bearer ..."}``.
        timeout_s: deadline of every request, in seconds. The server learns it and drops a request that waited longer.
        retry: what happens while the server is away or busy; `NO_RETRY` fails at once.
        bulk: let others go first: requests yield to those of other callers in the server's queue, hold few
            crops, and no more are under way than the server answers in time.

    Raises:
        OptionError: the URL, a header or a number cannot be used, or they contradict each other.
    """

    url: str | None = None
    protocol: str | None = None
    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout_s: float = DEFAULT_TIMEOUT_S
    retry: Retry = Retry()
    bulk: bool = False

    def __post_init__(self) -> None:
        if len({address.protocol for address in self.addresses}) > 1:
            raise OptionError(f"`url` is {self.url!r}, which mixes gRPC and HTTP; give addresses of one kind")
        check_headers(self.headers)
        check_timeout(self.timeout_s)

    @classmethod
    def of(cls, connection: Connection | str | None) -> Connection:
        """Return the connection itself, or the one to a URL; None stands for Triton's standard port on this host."""
        return connection if isinstance(connection, Connection) else cls(url=connection)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The servers' addresses, taken apart."""
        urls: list[str | None] = [None] if self.url is None else [*self.url.split(",")]
        return tuple(parse_address(url, protocol=self.protocol, tls=self.tls) for url in urls)

    @property
    def address(self) -> Address:
        """The address of the first server."""
        return self.addresses[0]
