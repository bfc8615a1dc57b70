"""`connect`: from a connection to the transport that speaks its protocol."""

from __future__ import annotations

from dataclasses import replace

from deepfake_client.transport.connection import Connection
from deepfake_client.transport.protocol import Transport
from deepfake_client.transport.retry import NO_RETRY, RetryingTransport
from deepfake_preprocess.support.extras import require_extra


def connect(connection: Connection | str | None = None) -> Transport:
    """Return a transport to a server. Nothing is contacted before its first call.

    Args:
        connection: which server, and how; or its URL alone; Triton's standard port on this host when None.

    Raises:
        OptionError: the URL or a certificate file cannot be used.
        MissingExtraError: HTTP needs the extra ``http``.
    """
    connection = Connection.of(connection)
    inner = _transport(connection)
    if connection.bulk or len(connection.addresses) > 1:
        # Imported here: most connections are to one server.
        from deepfake_client.transport.balanced import BalancedTransport

        others = [_transport(replace(connection, url=url)) for url in (connection.url or "").split(",")[1:]]
        inner = BalancedTransport([inner, *others])
    return inner if connection.retry == NO_RETRY else RetryingTransport(inner, connection.retry)


def _transport(connection: Connection) -> Transport:
    # Imported here: who uses one protocol need not load the others.
    protocol = connection.address.protocol
    if protocol == "http":
        http: Transport = require_extra("deepfake_client.transport.http", extra="http").HttpTransport(connection)
        return http
    if protocol == "grpc-shm":
        from deepfake_client.transport.shm import SharedMemoryTransport

        return SharedMemoryTransport(connection)
    from deepfake_client.transport.grpc import GrpcTransport

    return GrpcTransport(connection)
