"""`connect`: from an address and options to a transport."""

from __future__ import annotations

from collections.abc import Mapping

from deepfake_client.transport.address import parse_address
from deepfake_client.transport.protocol import DEFAULT_TIMEOUT_S, Transport, check_timeout
from deepfake_client.transport.retry import NO_RETRY, Retry, RetryingTransport
from deepfake_client.transport.tls import Tls
from deepfake_preprocess.support.extras import require_extra


def connect(
    url: str | None = None,
    *,
    protocol: str | None = None,
    tls: Tls | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    retry: Retry | None = None,
) -> Transport:
    """Return a transport to a server. Nothing is contacted before its first call.

    Args:
        url: ``host:port``, or a URL that begins with grpc, grpcs, http or https; Triton's standard port on this host
            when None.
        protocol: ``grpc``, ``http`` or ``grpc-shm``; by the URL when None, which is gRPC unless it says HTTP.
        tls: secures the connection; with None, a URL of grpcs or https uses TLS with public certificates.
        headers: sent with every call, for example ``{"authorization": "Bearer ..."}``.
        timeout_s: deadline of every call, in seconds.
        retry: what to do while the server is away or busy; `NO_RETRY` to fail at once, the defaults when None.

    Raises:
        OptionError: the URL, a header, a certificate file or a number cannot be used, or they contradict each other.
        MissingExtraError: HTTP needs the extra ``http``.
    """
    check_timeout(timeout_s)
    # By name: HTTP has an extra, and who uses one protocol need not load the others.
    name = parse_address(url, protocol=protocol, tls=tls).protocol
    module, kind = {
        "grpc": ("grpc", "GrpcTransport"),
        "http": ("http", "HttpTransport"),
        "grpc-shm": ("shm", "SharedMemoryTransport"),
    }[name]
    make = getattr(require_extra(f"deepfake_client.transport.{module}", extra="http"), kind)
    inner: Transport = make(url, tls=tls, headers=headers, timeout_s=timeout_s)
    return inner if retry == NO_RETRY else RetryingTransport(inner, retry)
