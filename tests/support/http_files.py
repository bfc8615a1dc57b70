"""A web server for tests: serves bytes, by ranges too, and misbehaves on request. Import it as ``http_files``."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Misbehave = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Site:
    """What is served.

    Attributes:
        files: content by path, such as ``/clip.mp4``; a function answers the request itself.
        url: where, without a slash at the end.
        asked: paths asked for, in order.
        closing: set when the server stops; functions that stall wait for it.
    """

    files: dict[str, bytes | Misbehave] = field(default_factory=dict)
    url: str = ""
    asked: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    """Serve a site on a port chosen by the system; with `tls` over HTTPS, as ``localhost``."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            content = site.files.get(self.path)
            try:
                if content is None:
                    self.send_error(404)
                elif isinstance(content, bytes):
                    self._send(content)
                else:
                    content(self)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the reader has had enough

        def _send(self, content: bytes) -> None:
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            end = int(asked[2]) + 1 if asked and asked[2] else len(content)
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            self.wfile.write(content[start:end])

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def finish_request(self, request: Any, client_address: Any) -> None:
            # In the connection's own thread, and not where connections are taken: a handshake may never end.
            try:
                secured = request if tls is None else tls.wrap_socket(request, server_side=True)
            except OSError:
                return  # the reader does not trust the certificate
            with secured:
                super().finish_request(secured, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    port = server.server_address[1]
    site.url = f"http://127.0.0.1:{port}" if tls is None else f"https://localhost:{port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        site.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def free_port() -> int:
    """Return a port at which nothing answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
