"""Files that are named by their address: what is fetched, and what is never reached."""

import asyncio
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import aiohttp
import gateways
import http_files
import pytest

from deepfake_gateway.addresses import Addresses, AddressRefusedError
from deepfake_gateway.store.keys import Keys

WAIT = {"Prefer": "wait=60"}


@contextmanager
def serving(pages):
    """Yield the address of a server of paths, each with a status, headers and a body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            status, headers, body = pages[self.path]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen = seen
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def gateway(tmp_path):
    settings = {"url_intake": True, "allowed_networks": ["127.0.0.1/32"], "max_upload_bytes": 2**20}
    with gateways.gateway(tmp_path / "data", **settings) as client:
        yield client


def test_a_file_is_fetched_through_redirects_and_analyzed(gateway, clip):
    pages = {"/a": (302, {"Location": "/films/clip.mp4"}, b""), "/films/clip.mp4": (200, {}, clip)}
    with serving(pages) as (address, _):
        body = {"url": f"{address}/a", "num_frames": 3}
        analysis = gateway.post("/v1/analyses", json=body, headers=WAIT).json()
    assert analysis["file"]["name"] == "clip.mp4"
    assert len(analysis["verdict"]["frames"]) == 3


def test_nothing_is_fetched_for_options_that_are_refused(gateway):
    with serving({}) as (address, seen):
        for path, addresses in (("analyses", {"url": f"{address}/a"}), ("batches", {"urls": [f"{address}/a"]})):
            for wrong in ({"threshold": 2}, {"num_frames": 3, "fps": 1}, {"frames": 3}):
                assert gateway.post(f"/v1/{path}", json={**addresses, **wrong}).status_code == 422
        twice = gateway.post("/v1/analyses?num_frames=3", json={"url": f"{address}/a", "num_frames": 3})
        assert (twice.status_code, "more than once" in twice.json()["detail"]) == (422, True)
        assert gateway.post("/v1/analyses?fps=0", json={"url": f"{address}/a"}).status_code == 422
        assert seen == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.2/x", "not a public address"),
        ("http://[::1]/x", "not a public address"),
        ("http://169.254.169.254/latest/meta-data", "not a public address"),
        ("http://2130706434/x", "address"),  # 127.0.0.2 as one number
        ("http://[::ffff:10.0.0.1]/x", "not a public address"),
        ("file:///etc/passwd", "http"),
        ("ftp://example.com/x", "http"),
        ("http://user:secret@example.com/x", "password"),
        ("http:///x", "http"),
    ],
)
def test_addresses_that_are_not_public_are_refused(gateway, url, words):
    answer = gateway.post("/v1/analyses", json={"url": url})
    assert (answer.status_code, words in answer.json()["detail"]) == (422, True), answer.text
    assert "secret" not in answer.text


def test_a_redirect_to_an_address_that_is_not_public_is_refused(gateway):
    pages = {"/a": (302, {"Location": "http://127.0.0.2:1/secret"}, b""), "/b": (302, {"Location": "/b"}, b"")}
    with serving(pages) as (address, seen):
        assert "not a public" in gateway.post("/v1/analyses", json={"url": f"{address}/a"}).json()["detail"]
        assert "leads to more" in gateway.post("/v1/analyses", json={"url": f"{address}/b"}).json()["detail"]
    assert seen.count("/b") == 6


def test_what_is_too_large_broken_or_compressed_is_refused(gateway, tmp_path):
    pages = {
        "/large": (200, {"Content-Length": str(2**30)}, b""),
        "/endless": (200, {}, bytes(2**21)),
        "/zip": (200, {"Content-Encoding": "gzip"}, b"x"),
        "/gone": (404, {}, b""),
        "/empty": (200, {}, b""),
        "/short": (200, {"Content-Length": "100"}, b"half"),
    }
    with serving(pages) as (address, _):
        statuses = {
            path: gateway.post("/v1/analyses", json={"url": f"{address}{path}"}).status_code for path in pages
        }
    assert statuses == {"/large": 413, "/endless": 413, "/zip": 422, "/gone": 422, "/empty": 422, "/short": 422}
    assert list((tmp_path / "data" / "incoming").iterdir()) == []
    assert gateway.post("/v1/analyses", json={"num_frames": 3}).status_code == 422


def test_a_file_that_is_fetched_is_an_upload_on_its_way_and_bounded_as_one(tmp_path, clip):
    asked, go_on = threading.Event(), threading.Event()

    def slowly(handler):
        asked.set()
        go_on.wait(60)
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(clip)

    def ask(path, body):
        return gateway.post(path, json=body, headers={**WAIT, **key})

    settings = {"url_intake": True, "allowed_networks": ["127.0.0.0/8"], "uploads_at_once": 1}
    with http_files.serving() as site, gateways.gateway(tmp_path / "data", **settings) as gateway:
        key = {"X-Api-Key": Keys(gateway.desk.store.engine).create("test", ["analyze"])[1]}
        site.files = {"/slow.mp4": slowly, "/clip.mp4": clip}
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(ask, "/v1/analyses", {"url": f"{site.url}/slow.mp4"})
            assert asked.wait(60)
            second = ask("/v1/analyses", {"url": f"{site.url}/clip.mp4"})
            go_on.set()
            assert first.result().status_code == 200
        assert (second.status_code, second.headers["retry-after"]) == (429, "2")
        assert "on their way" in second.json()["detail"]
        assert site.asked == ["/slow.mp4"], "nothing was fetched for the one that was refused"
        assert ask("/v1/analyses", {"url": f"{site.url}/clip.mp4"}).status_code == 200


def test_addresses_are_off_by_default(tmp_path):
    with gateways.gateway(tmp_path / "data") as gateway:
        answer = gateway.post("/v1/analyses", json={"url": "http://example.com/x.mp4"})
    assert (answer.status_code, "url_intake" in answer.json()["detail"]) == (403, True)


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "100.64.0.1", "0.0.0.0", "224.0.0.1", "fe80::1%eth0", "fc00::1", "2002:7f00:1::", "64:ff9b::a00:1"],
)
def test_what_is_not_public(address):
    with pytest.raises(AddressRefusedError, match="not a public address"):
        Addresses().check(address)


def test_a_name_is_as_good_as_what_it_leads_to():
    with pytest.raises(AddressRefusedError, match="not a public address"):
        asyncio.run(Addresses().resolve("localhost", 80))
    assert asyncio.run(Addresses.of(["127.0.0.0/8", "::1/128"]).resolve("localhost", 80)) in ("127.0.0.1", "::1")
    Addresses().check("1.1.1.1")


def test_of_several_addresses_of_a_name_only_those_allowed_are_connected_to(monkeypatch):
    """Also where a name leads elsewhere than when it was looked up first."""
    allowed = Addresses.of(["127.0.0.2/32"])

    def looked_up(host, port, *_, **__):
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.1", "127.0.0.2")
        ]

    async def ask(port):
        assert await allowed.resolve("several.example", port) == "127.0.0.2"
        async with allowed.session(5) as session:
            with pytest.raises(aiohttp.ClientConnectorError):  # nothing listens at the one that is allowed
                await session.get(f"http://several.example:{port}/")

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    with socket.create_server(("127.0.0.1", 0)) as private:
        asyncio.run(ask(private.getsockname()[1]))
        private.setblocking(False)
        with pytest.raises(BlockingIOError):
            private.accept()


async def resolved():
    await Addresses().resolve("silent.example", 80)


async def connected():
    async with Addresses().session(60) as session:
        await session.get("http://silent.example/")


@pytest.mark.parametrize("look_up", [resolved, connected])
def test_names_whose_servers_give_no_answer_hold_up_nothing_else(monkeypatch, look_up):
    go_on = threading.Event()

    def silent(*_, **__):
        go_on.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    async def everything_else():
        lookups = [asyncio.create_task(look_up()) for _ in range(40)]  # more than there are threads by default
        try:
            async with asyncio.timeout(30):
                await asyncio.sleep(0.1)
                return await asyncio.to_thread(lambda: "done")
        finally:
            go_on.set()
            failures = await asyncio.gather(*lookups, return_exceptions=True)
            assert all(isinstance(failure, OSError) for failure in failures)

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    assert asyncio.run(everything_else()) == "done"


def test_a_host_that_is_no_name_is_refused(tmp_path):
    with gateways.gateway(tmp_path / "data", url_intake=True) as gateway:
        for path in ("/v1/watches", "/v1/analyses"):
            answer = gateway.post(path, json={"url": f"http://{'a' * 300}.example/"})
            assert answer.status_code == 422


def test_a_batch_keeps_no_password_and_nothing_that_cannot_be_stored(tmp_path):
    urls = ["http://user:p@ss@127.0.0.1/a.mp4", "http://\ud800\0.example/"]
    body = json.dumps({"urls": urls, "name": "a\ud800\0"})
    with gateways.gateway(tmp_path / "data", url_intake=True) as gateway:
        answer = gateway.post("/v1/batches", content=body, headers={"Content-Type": "application/json"})
        batch = gateway.get(answer.json()["links"]["self"]).json()
    assert batch["name"] == "a"
    assert [item["file_name"] for item in batch["items"]] == ["http://127.0.0.1/a.mp4", "http://.example/"]
    assert all(item["refusal"] and "ss@" not in item["refusal"] for item in batch["items"])
