"""A socket to listen on, or one sentence why there is none."""

from __future__ import annotations

import socket

from deepfake_preprocess.errors import OptionError


def listening(host: str, port: int) -> socket.socket:
    """Return a TCP socket that listens on an address; port 0 picks a free one. OptionError where that cannot be.

    For a web server, which would end the process with a traceback.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as exc:
        reason = str(exc.strerror).partition(" (while ")[0]
        raise OptionError(f"cannot listen on {host}:{port} ({reason}); name another `host` or `port`") from exc
