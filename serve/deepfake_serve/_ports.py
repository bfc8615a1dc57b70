"""The ports of a server: which ones are wanted, and how they are kept for it until it listens."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

from deepfake_preprocess.errors import OptionError, ServerStartError
from deepfake_serve._plan import HOST


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The ports that an embedded Triton listens on; 0 takes a free one.

    Raises:
        OptionError: a number is no port, or two are the same.
    """

    grpc: int = 0
    http: int = 0
    metrics: int = 0

    def __post_init__(self) -> None:
        times = Counter(asdict(self).values())
        for name, port in asdict(self).items():
            if not 0 <= port <= 65535:
                raise OptionError(f"`ports.{name}` is {port}; allowed: 1 to 65535, or 0 for a free port")
            if port and times[port] > 1:
                raise OptionError(f"`ports.{name}` is {port}, as another port is; give each its own")

    @contextmanager
    def reserved(self) -> Iterator[dict[str, socket.socket]]:
        """Yield a socket by each port's name, bound to it.

        None of them listens, so Triton can; as long as one is open, the system gives its port to nobody else.

        Raises:
            ServerStartError: a port is taken.
        """
        with ExitStack() as stack:
            sockets: dict[str, socket.socket] = {}
            # Given ones first, so that no free one takes them.
            for name, port in sorted(asdict(self).items(), key=lambda item: item[1] == 0):
                sockets[name] = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                # As Triton binds: a port whose last connections are just closing is free.
                sockets[name].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    sockets[name].bind((HOST, port))
                except OSError as exc:
                    reason = f"port {port} cannot be used ({exc.strerror})"
                    raise ServerStartError(f"{reason}; choose another `ports.{name}`, or 0 for a free one") from exc
            yield sockets
