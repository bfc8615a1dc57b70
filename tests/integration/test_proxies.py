"""Proxies in the environment: this machine is asked past them, and messages about other hosts name them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from http_files import serving
from media import make_clip

DEEPFAKE = [sys.executable, "-c", "from deepfake_client.cli.main import main; raise SystemExit(main())"]


class Proxy:
    """Takes connections, notes what they ask for, and refuses it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(4096).decode(errors="replace").split("\r\n")[0])
                connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()


def deepfake(proxy: Proxy, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    names = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    return subprocess.run(
        [*DEEPFAKE, *arguments],
        env=kept | dict.fromkeys(names, proxy.url),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_this_machine_is_asked_directly(proxy, embedded_triton, shared_tiny_repository, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", size_wh=(320, 180), duration_s=1, faces=1)
    with serving() as site:
        site.files["/clip.mp4"] = clip.read_bytes()
        source = f"{site.url}/clip.mp4"
        for url in (embedded_triton.grpc_url, embedded_triton.http_url):
            assert deepfake(proxy, "health", "--url", url).returncode == 0
            done = deepfake(proxy, "analyze", source, "--json", "--num-frames", "4", "--url", url)
            assert done.returncode in (0, 3), done.stderr
            assert json.loads(done.stdout)["source"] == source
        done = deepfake(
            proxy, "analyze", source, "--embedded", "-r", str(shared_tiny_repository), "--num-frames", "4"
        )
        assert done.returncode in (0, 3), done.stderr
    assert proxy.asked == []


@pytest.mark.parametrize("url", ["gpu-host.test:8001", "http://gpu-host.test:8000", "https://gpu-host.test:8443"])
def test_another_host_is_asked_through_the_proxy_which_is_named(proxy, url):
    done = deepfake(proxy, "health", "--url", url)
    assert done.returncode == 4
    assert f"through the proxy {proxy.url} (" in " ".join(done.stderr.split())
    assert any("gpu-host.test" in line for line in proxy.asked)


def test_a_source_elsewhere_is_asked_through_the_proxy_which_is_named(proxy, embedded_triton):
    done = deepfake(proxy, "analyze", "http://videos.test/clip.mp4", "--url", embedded_triton.grpc_url)
    assert done.returncode == 2
    assert f"through the proxy {proxy.url} (http_proxy in the environment)" in " ".join(done.stderr.split())
