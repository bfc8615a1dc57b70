"""What pages of other sites may ask of a service that names one of them."""

from __future__ import annotations

import base64
import functools
import http.server
import threading
from contextlib import contextmanager
from pathlib import Path

import gateway_process
import pytest
from playwright.sync_api import Error
from tiny_model import write_tiny_repository

from deepfake_gateway.store.keys import Keys
from deepfake_gateway.store.schema import open_engine
from deepfake_serve import EmbeddedTriton

pytestmark = pytest.mark.debian("chromium")

CLIENT = Path(__file__).parents[2] / "clients/typescript"
ANALYZE = """
async ([url, key, text]) => {
  const { GatewayClient } = await import("/client.js");
  const file = new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))]);
  const steps = [];
  const client = new GatewayClient(url, { key });
  const verdict = await client.analyze(file, { num_frames: 8, onProgress: (progress) => steps.push(progress) });
  return [verdict.label, steps.length];
}
"""
DELETE = """
async (url) => {
  const answer = await fetch(url + "/v1/analyses/00000000-0000-0000-0000-000000000000",
                             { method: "DELETE", credentials: "include" });
  return answer.status;
}
"""


@contextmanager
def site():
    """The origin of a web server that has the TypeScript client's file."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(CLIENT))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://localhost:{server.server_port}"
        finally:
            server.shutdown()


def test_a_page_of_a_named_site_uses_the_service_with_a_key_and_no_other_page_does(chromium, clip, tmp_path):
    (tmp_path / "data").mkdir()
    key = Keys(open_engine(f"sqlite:///{tmp_path}/data/gateway.db")).create("app", ["analyze"])[1]
    with site() as named, site() as other, EmbeddedTriton(write_tiny_repository(tmp_path / "models")) as triton:
        service = gateway_process.Running(triton.grpc_url, tmp_path / "data", allowed_origins=f'["{named}"]')
        try:
            arguments = [service.address, key, base64.b64encode(clip.read_bytes()).decode()]
            page = chromium.new_page()
            page.goto(f"{named}/client.js")
            label, steps = page.evaluate(ANALYZE, arguments)
            assert label in ("REAL", "FAKE", "INCONCLUSIVE")
            assert steps
            with pytest.raises(Error, match="the key is not valid"):  # the page can read why
                page.evaluate(ANALYZE, [arguments[0], "dfk_no", arguments[2]])
            with pytest.raises(Error, match="this service wants a key"):
                page.evaluate(ANALYZE, [arguments[0], "", arguments[2]])
            # A session that the same browser has is of no use to the page: the browser does not send it.
            page.goto(f"{service.address}/sign-in")
            page.fill("input[name=key]", key)
            page.press("input[name=key]", "Enter")
            page.wait_for_url(f"{service.address}/")
            for origin in (named, other):
                page.goto(f"{origin}/client.js")
                with pytest.raises(Error, match="Failed to fetch"):
                    page.evaluate(DELETE, service.address)
            with pytest.raises(Error, match="Failed to fetch"):
                page.evaluate(ANALYZE, arguments)
            page.context.close()
        finally:
            service.stop()
