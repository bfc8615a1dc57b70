"""Too much and too slow: refused with a type and a word on when to come again, and nothing is kept of it."""

import errno
import json
import socket

import gateways
import pytest

from deepfake_gateway.api import door
from deepfake_gateway.intake import connections, sink
from deepfake_gateway.store.keys import Keys

BEGUN = b"POST /v1/analyses HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 100000\r\n\r\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with gateways.listening_gateway(tmp_path_factory.mktemp("data"), uploads_in_all=2) as (address, queue):
        yield int(address.rpartition(":")[2]), queue


def connected(port, data):
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(data)
    return connection


def answer(connection):
    """Return status, headers and JSON of the answer, up to the end of the connection."""
    head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    first, *lines = head.decode().lower().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), json.loads(body)


def held(port, begun=BEGUN):
    """Return a connection whose upload is on its way: the service asked for the body, which does not come."""
    while True:
        connection = connected(port, begun.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        said = connection.recv(65536)
        if said.startswith(b"HTTP/1.1 100 "):
            return connection
        connection.close()
        assert said.startswith(b"HTTP/1.1 503 "), said  # until it is seen that those of another test broke off


@pytest.mark.parametrize(
    "request_",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # without Host
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 20_000,
        BEGUN.replace(b"Content-Length: 100000", b"Transfer-Encoding: chunked") + b"no chunk\r\n",
    ],
)
def test_what_is_no_http_is_a_problem_like_every_other_refusal(service, request_):
    with connected(service[0], request_) as connection:
        status, headers, problem = answer(connection)
    assert (status, headers["content-type"], problem["status"]) == (400, "application/problem+json", 400)
    assert "headers are too long" in problem["detail"]


def test_uploads_beyond_the_bound_are_refused_until_others_end(service):
    port, _ = service
    others = [held(port) for _ in range(2)]
    with connected(port, BEGUN.replace(b"100000", b"4") + b"junk") as third:
        status, headers, problem = answer(third)
    assert (status, headers["content-type"]) == (503, "application/problem+json")
    assert (headers["retry-after"], "2 uploads are on their way" in problem["detail"]) == ("2", True)
    for connection in others:
        connection.close()
    while status != 202:  # until it is seen that they broke off
        assert status == 503
        with connected(port, BEGUN.replace(b"100000", b"4") + b"more") as third:
            status, _, _ = answer(third)


def test_uploads_of_one_key_beyond_its_bound_are_refused_and_not_those_of_others(tmp_path):
    with gateways.listening_gateway(tmp_path, uploads_at_once=1) as (address, queue):
        port, keys = int(address.rpartition(":")[2]), Keys(queue.store.engine)
        own, other = (
            BEGUN.replace(b"Host:", f"X-Api-Key: {keys.create(name, ['analyze'])[1]}\r\nHost:".encode())
            for name in ("own", "other")
        )
        first = held(port, own)
        with connected(port, own) as second:
            status, headers, problem = answer(second)
        assert (status, headers["retry-after"]) == (429, "2")
        assert problem["detail"].startswith("1 uploads are on their way, as many as may")
        held(port, other).close()
        first.close()


def test_an_upload_that_trickles_is_given_up(service, monkeypatch):
    port, queue = service
    monkeypatch.setattr(door, "SLOW_START_S", 0.05)
    with connected(port, BEGUN + b"some") as slow:
        status, headers, problem = answer(slow)
    assert (status, headers["connection"]) == (408, "close")
    assert "slower than 4 KiB a second" in problem["detail"]
    assert list(queue.media._incoming.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"GET /v1/analyses HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "])
def test_a_connection_that_asks_for_nothing_is_closed(service, monkeypatch, data):
    monkeypatch.setattr(connections, "ASKED_WITHIN_S", 0.05)
    with connected(service[0], data) as idle:
        assert idle.recv(10) == b""


def test_connections_beyond_the_bound_are_closed(service, monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 0)
    with connected(service[0], b"") as idle:
        assert idle.recv(10) == b""


def test_a_full_disk_is_told(tmp_path, clip, monkeypatch):
    def full(self, chunk):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sink.Sink, "_write", full)
    with gateways.gateway(tmp_path / "data") as gateway:
        answer = gateway.post("/v1/analyses", content=clip)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
    assert "no room for the file (No space left on device); try again later" in answer.json()["detail"]


def chunked(size):
    yield from (b"a" * 2**16 for _ in range(0, size, 2**16))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/webhooks", "application/json"),
        ("/v1/watches", "application/json"),
        ("/v1/analyses/any/explanations", "application/json"),
        ("/sign-in", "application/x-www-form-urlencoded"),
        ("/sign-in", "multipart/form-data; boundary=a"),
        ("/addresses", "application/x-www-form-urlencoded"),
    ],
)
def test_a_body_that_is_no_file_is_bounded(gateway, path, kind):
    head = b'--a\r\nContent-Disposition: form-data; name="key"; filename="a"\r\n\r\n' if "multipart" in kind else b""
    body = (piece for pieces in ((head,), chunked(2 * door.MAX_BODY_BYTES)) for piece in pieces)
    answer = gateway.post(path, content=body, headers={"Content-Type": kind})
    assert answer.status_code in (400, 413)  # 400 where a form's field is bounded before
    assert answer.headers["content-type"] == "application/problem+json"
