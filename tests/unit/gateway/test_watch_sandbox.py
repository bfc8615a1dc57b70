"""Live sources in real sandboxes without a network: what comes through their gate, and what does not."""

import asyncio
import socket
import ssl

import gateways
import numpy as np
import pytest
import trustme
from http_files import free_port, serving
from media import write_video
from rtsp_camera import filming

from deepfake_client.transport.testing import FakeTransport
from deepfake_gateway.addresses import Addresses
from deepfake_gateway.sandbox.gate import Gate
from deepfake_gateway.sandbox.limits import Limits
from deepfake_gateway.sandbox.process import Sandbox, TaskError

LIMITS = Limits(memory_bytes=2 * 2**30, cpu_s=60, wall_s=120, max_duration_s=7200, max_pixels=2**26, max_frames=1000)
OPTIONS = {"fps": 25, "min_change": 0, "reconnects": 0, "source_timeout_s": 5}
LOCAL = Addresses.of(("127.0.0.0/8", "::1/128"))
GRAY = [np.full((60, 80, 3), 90, np.uint8)] * 50


def watched(url, name, *, addresses=LOCAL, **options):
    """Return the verdicts of a source; TaskError as a sandbox raises it."""
    found = []

    async def watch():
        sandbox = Sandbox(LIMITS, FakeTransport(spec=gateways.SPEC), None, has_door=True)
        await sandbox.start()
        task = {"kind": "watch", "name": name, "url": url, "options": {**OPTIONS, **options}}
        await sandbox.watch(task, addresses, found.append)

    asyncio.run(watch())
    return found


def test_a_playlist_at_https_is_watched_with_its_parts_and_a_redirect(tmp_path):
    authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    folder = tmp_path / "hls"
    folder.mkdir()
    write_video(folder / "live.m3u8", GRAY, container_format="hls", muxing={"hls_time": "1"})
    with serving(context) as site, serving() as moved:

        def redirect(handler):
            handler.send_response(302)
            handler.send_header("Location", f"{site.url}/live.m3u8")
            handler.end_headers()

        moved.files["/live.m3u8"] = redirect
        site.files |= {f"/{file.name}": file.read_bytes() for file in folder.iterdir()}
        verdicts = watched(f"{moved.url}/live.m3u8", "the source", source_ca=str(tmp_path / "ca.pem"))
    assert "/live1.ts" in site.asked
    assert {verdict["source"] for verdict in verdicts} == {"the source"}
    assert verdicts[-1]["reason"] == "no_face"
    assert len(verdicts[-1]["frames"]) == 50


def test_a_camera_is_called_by_its_own_name_and_an_address_of_ours_is_not_opened(tmp_path):
    write_video(tmp_path / "live.ts", GRAY)
    with filming([(tmp_path / "live.ts").read_bytes()]) as camera:
        url = camera.url.replace("rtsp://", "rtsp://user:secret@")
        assert watched(url, "rtsp://camera/yard")[-1]["source"] == "rtsp://camera/yard"
        with pytest.raises(TaskError, match=r"^127\.0\.0\.1 is not a public address") as refused:
            watched(url, "rtsp://camera/yard", addresses=Addresses())
    assert refused.value.kind == "MediaOpenError"


def answer_of(gate_request, source="http://camera/", *, addresses=LOCAL):
    """Return what a gate answers to a request, and the problem that it had."""

    async def ask():
        door = socket.create_server(("127.0.0.1", 0))
        port = door.getsockname()[1]
        async with Gate(door, addresses, source) as gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(gate_request)
            answer = await reader.read()
            writer.close()
            return answer, gate.problem

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("http://10.1.2.3/live.ts", "10.1.2.3 is not a public address"),
        ("http://169.254.169.254/latest/meta-data", "169.254.169.254 is not a public address"),
        ("http://[::ffff:10.0.0.1]/", "is not a public address"),
        ("ftp://example.org/live.ts", "addresses begin with http://"),
        ("http://127.0.0.1:{free_port}/", "connection refused"),
    ],
)
def test_a_gate_opens_no_address_that_is_not_allowed(target, problem):
    target = target.format(free_port=free_port())
    answer, why = answer_of(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 502")
    assert problem in why
    host = target.split("/")[2]
    answer, why = answer_of(f"CONNECT {host} HTTP/1.1\r\n\r\n".encode(), addresses=Addresses())
    assert answer.startswith(b"HTTP/1.1 502")
    assert why


def test_a_gate_asks_as_the_source_s_own_reader_and_refuses_what_is_no_request():
    heads = []

    def keep(handler):
        heads.append((handler.path, dict(handler.headers)))
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"pictures")

    with serving() as site:
        site.files["/live.ts?a=1"] = keep
        request = (
            f"GET {site.url}/live.ts?a=1 HTTP/1.1\r\nUser-Agent: x\r\nProxy-Foo: y\r\nConnection: keep-alive\r\n\r\n"
        )
        answer, problem = answer_of(request.encode())
    assert answer.endswith(b"pictures")
    assert problem is None
    assert heads == [("/live.ts?a=1", {"User-Agent": "x", "Connection": "close"})]
    for nonsense in (b"\r\n\r\n", b"GET\r\n\r\n", b"GET http://[ HTTP/1.1\r\n\r\n"):
        assert answer_of(nonsense)[0] in (
            b"",
            b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        )


def test_a_camera_that_sends_elsewhere_is_cut_off():
    async def camera(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        try:
            for piece in (b"RTSP/1.0 ", b"302 Moved\r\nLocation: rtsp://10.0.0.1/\r\n\r\n"):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.05)
        finally:
            writer.close()

    async def ask():
        async with await asyncio.start_server(camera, "127.0.0.1", 0) as server:
            place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with Gate(socket.create_server(("127.0.0.1", 0)), LOCAL, f"rtsp://u:p@{place}/yard") as gate:
                inside = gate.url.removeprefix("rtsp://u:p@").removesuffix("/yard")
                assert inside != place
                reader, writer = await asyncio.open_connection(*inside.split(":"))
                writer.write(f"OPTIONS {gate.url} RTSP/1.0\r\n\r\n".encode())
                answer = await reader.read()
                writer.close()
                return answer, gate.problem

    answer, problem = asyncio.run(ask())
    assert b"Location" not in answer
    assert problem == "the camera sends to another address; name that one"
