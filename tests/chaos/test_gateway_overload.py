"""Ten times what the verdict service takes: typed refusals, bounded memory and queue, and work again right after.

It prints what it measured; ``pytest -m slow -s tests/chaos/test_gateway_overload.py``.
"""

from __future__ import annotations

import asyncio
import collections
import socket
import time
from pathlib import Path

import httpx
import psutil
import pytest
from gateway_process import Running
from media import make_clip
from tiny_model import write_tiny_repository

from deepfake_serve import EmbeddedTriton

UPLOADS_AT_ONCE, ROUNDS = 200, 3
SLOW = 100
MAX_QUEUED = 20
MAX_GROWTH_MIB = 192
"""Of all processes of the service but sandboxes, beyond what they have before."""


@pytest.fixture(scope="module")
def triton_url(tmp_path_factory):
    with EmbeddedTriton(write_tiny_repository(tmp_path_factory.mktemp("served") / "models")) as triton:
        yield triton.grpc_url


def memory_mib(gateway: Running) -> float:
    """Return what the web server and the worker hold; sandboxes are bounded by themselves."""
    processes = [psutil.Process(gateway.process.pid), gateway.worker()]
    return sum(process.memory_info().rss for process in processes) / 2**20


async def send(client: httpx.AsyncClient, content: bytes, number: int) -> httpx.Response | None:
    """Send a clip with options of its own; None where the connection was closed."""
    try:
        return await client.post("/v1/analyses", content=content, params={"min_face_px": number / 1e4})
    except httpx.TransportError:
        return None


async def flood(address: str, content: bytes, first: int) -> list[httpx.Response | None]:
    limits = httpx.Limits(max_connections=UPLOADS_AT_ONCE)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
        return await asyncio.gather(*(send(client, content, first + number) for number in range(UPLOADS_AT_ONCE)))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_too_much_at_once_is_refused_and_the_service_recovers(triton_url, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", duration_s=1.0)
    content = clip.read_bytes()
    gateway = Running(triton_url, tmp_path / "data", max_queued=str(MAX_QUEUED))
    try:
        gateway.send(clip, wait_s=90)
        before, highest = memory_mib(gateway), 0.0
        port = int(gateway.address.rpartition(":")[2])
        head = b"POST /v1/analyses HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n"
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(SLOW)]
        for number, connection in enumerate(slow):  # half of them stop within their headers
            connection.sendall(head + (b"\r\nsome" if number % 2 else b"X-Slow: "))
        seen: collections.Counter[int | None] = collections.Counter()
        for round_number in range(ROUNDS):
            answers = asyncio.run(flood(gateway.address, content, 1 + round_number * UPLOADS_AT_ONCE))
            highest = max(highest, memory_mib(gateway))
            for answer in answers:
                seen[None if answer is None else answer.status_code] += 1
                if answer is not None and answer.status_code >= 400:
                    assert answer.status_code in (429, 503), answer.text
                    assert int(answer.headers["retry-after"]) > 0
        for connection in slow:
            connection.close()
        waiting = _listed(gateway, "queued") + _listed(gateway, "running")
        assert len(waiting) <= MAX_QUEUED + 8  # threads that looked at the same moment
        for item in waiting:
            httpx.post(f"{gateway.address}{item['links']['self']}/cancel")
        ended = time.monotonic()
        verdict = gateway.send(clip, wait_s=60, num_frames=5)["verdict"]
        took = time.monotonic() - ended
        assert verdict is not None
        print(
            f"\n{dict(seen)}; memory {before:.0f} MiB, at most {highest:.0f}; a verdict {took:.1f} s after the flood"
        )
        assert seen[202] > 0
        assert seen[429] + seen[503] > 0
        assert highest - before < MAX_GROWTH_MIB
    finally:
        gateway.stop()


def _listed(gateway: Running, status: str) -> list[dict[str, object]]:
    params = {"status": status, "limit": "100"}
    items: list[dict[str, object]] = httpx.get(f"{gateway.address}/v1/analyses", params=params).json()["items"]
    return items


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_gigabyte_comes_in_without_being_held(triton_url, tmp_path: Path) -> None:
    piece = bytes(range(256)) * 4096  # 1 MiB
    gateway = Running(triton_url, tmp_path / "data")
    highest = 0.0
    try:
        httpx.post(f"{gateway.address}/v1/analyses", content=piece).raise_for_status()
        before = memory_mib(gateway)

        def pieces():
            nonlocal highest
            for number in range(1023):
                if number % 64 == 0:
                    highest = max(highest, memory_mib(gateway))
                yield piece

        began = time.monotonic()
        headers = {"Content-Length": str(1023 * len(piece))}
        httpx.post(
            f"{gateway.address}/v1/analyses", content=pieces(), headers=headers, timeout=300
        ).raise_for_status()
        took = time.monotonic() - began
        highest = max(highest, memory_mib(gateway))
        print(f"\n1 GiB in {took:.1f} s; memory {before:.0f} MiB, at most {highest:.0f}")
        assert highest - before < 64
    finally:
        gateway.stop()
