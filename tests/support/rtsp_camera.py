"""A network camera for tests: RTSP (RFC 2326) over TCP that plays MPEG-TS. Import it as ``rtsp_camera``."""

from __future__ import annotations

import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_TS_PACKET_BYTES = 188
_TS_PACKETS_PER_RTP = 7
_SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:video\r\n"


@dataclass
class Camera:
    """What is played.

    Attributes:
        plays: content for one connection after another; then the camera takes none any more.
        url: where.
        methods: what was asked for, in order.
    """

    plays: list[bytes]
    url: str = ""
    methods: list[str] = field(default_factory=list)


@contextmanager
def filming(plays: list[bytes]) -> Iterator[Camera]:
    """Run a camera on a port chosen by the system; it breaks off each connection at the end of its content."""
    camera = Camera(list(plays))

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            if not camera.plays:
                return
            while line := self.rfile.readline().decode():
                method = line.split()[0]
                headers = {}
                while header := self.rfile.readline().decode().strip():
                    name, _, value = header.partition(": ")
                    headers[name] = value
                camera.methods.append(method)
                self._answer(method, headers)
                if method == "PLAY":
                    self._play(camera.plays.pop(0))
                    return

        def _answer(self, method: str, headers: dict[str, str]) -> None:
            lines = ["RTSP/1.0 200 OK", f"CSeq: {headers['CSeq']}", "Session: 1"]
            body = _SDP if method == "DESCRIBE" else ""
            if method == "OPTIONS":
                lines.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
            if method == "DESCRIBE":
                lines += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
            if method == "SETUP":
                lines.append("Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
            self.wfile.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())

        def _play(self, content: bytes) -> None:
            size = _TS_PACKET_BYTES * _TS_PACKETS_PER_RTP
            try:
                for number, start in enumerate(range(0, len(content), size)):
                    rtp = struct.pack(">BBHII", 0x80, 33, number % 65536, number * 3600, 7)
                    rtp += content[start : start + size]
                    self.wfile.write(b"$\x00" + struct.pack(">H", len(rtp)) + rtp)
            except OSError:
                pass  # the reader has had enough

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        camera.url = f"rtsp://127.0.0.1:{server.server_address[1]}/camera"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield camera
        finally:
            server.shutdown()
            thread.join()
