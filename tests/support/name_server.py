"""A name server on the loopback: one name for any addresses, which a test changes, as a headless service has them."""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

A_RECORD, INTERNET = 1, 1
HEADER_BYTES = 12
ANSWER_FLAGS = 0x8400  # an answer, by the authority for the name
POINTER_TO_QUESTION = 0xC000 | HEADER_BYTES


class NameServer:
    """Answers every question for IPv4 addresses with `addresses`; what else is asked has no answer.

    Attributes:
        port: UDP port on 127.0.0.1.
        addresses: what names stand for, may be changed at any time.
        questions: how many questions for addresses were answered.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = list(addresses)
        self.questions = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            question, sender = self._socket.recvfrom(4096)
            if not question:
                return
            self._socket.sendto(self._answer(question), sender)

    def _answer(self, message: bytes) -> bytes:
        # The name is a row of labels with their lengths, ended by 0; type and class follow (RFC 1035, 4.1).
        end = message.index(0, HEADER_BYTES) + 1
        (kind,) = struct.unpack_from("!H", message, end)
        found = self.addresses if kind == A_RECORD else []
        self.questions += kind == A_RECORD
        head = message[:2] + struct.pack("!5H", ANSWER_FLAGS, 1, len(found), 0, 0)
        records = b"".join(
            struct.pack("!HHHIH", POINTER_TO_QUESTION, A_RECORD, INTERNET, 1, 4) + ipaddress.IPv4Address(item).packed
            for item in found
        )
        return head + message[HEADER_BYTES : end + 4] + records


@contextmanager
def name_server(*addresses: str) -> Iterator[NameServer]:
    server = NameServer(addresses)
    try:
        yield server
    finally:
        server.close()
