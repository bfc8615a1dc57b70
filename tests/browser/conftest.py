"""One service with a real Triton, and one real Chromium: pages are watched for complaints and outside requests."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path

import debian
import gateway_process
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, Form, UploadFile
from media import make_clip, write_video
from playwright.sync_api import expect, sync_playwright
from tiny_model import write_tiny_repository

from deepfake_client.explain.types import Explanation, Region
from deepfake_client.explain.wire import EXPLAIN_PATH, ExplainAnswer
from deepfake_preprocess.media.image import read_image
from deepfake_serve import EmbeddedTriton

PHONE = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PATIENCE_MS = 60_000
AXE = (Path(__file__).parent / "vendor/axe.min.js").read_text(encoding="utf-8")


def explain_service():
    """An explain service whose network says what the server does, and sees the fake where the crop is bright."""
    app = FastAPI()

    @app.post(EXPLAIN_PATH)
    async def explain(
        crop: UploadFile,
        served_probability: float = Form(),
        served_checkpoint_sha256: str = Form(""),
        method: str = Form(),
    ) -> ExplainAnswer:
        pixels = read_image(await crop.read(), name="crop")
        heat = (pixels.mean(axis=2) / 255).astype(np.float32)
        red = pixels.copy()
        red[..., 0] = 255
        explanation = Explanation(
            heat, red, served_probability, served_probability, 1e-4, method, "bn2", served_checkpoint_sha256,
            regions=(Region((4, 4, 9, 9), 0.7, "mouth"),),
        )  # fmt: skip
        return ExplainAnswer(explanation=explanation)

    return app


@contextmanager
def serving(app):
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A clip of a face that Chromium plays."""
    folder = tmp_path_factory.mktemp("clips")
    return make_clip(folder / "clip.mp4", duration_s=2.0, muxing={"movflags": "+faststart"})


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The address of a gateway with worker, Triton and explain service."""
    root = tmp_path_factory.mktemp("browser")
    with EmbeddedTriton(write_tiny_repository(root / "models")) as triton, serving(explain_service()) as url:
        running = gateway_process.Running(
            triton.grpc_url, root / "data", explain_url=url, concurrency="1",
            url_intake="true", allowed_networks='["127.0.0.0/8"]',
        )  # fmt: skip
        try:
            yield running
        finally:
            running.stop()


@pytest.fixture(scope="module")
def chromium():
    """A browser; no longer than for one file, because Playwright leaves an event loop running in this thread."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=debian.program("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, service):
    """Opens a page of its own for each call; none may complain, nor ask another host for anything."""
    contexts, complaints = [], []

    def open_one(path="/", **options):
        context = chromium.new_context(**{"base_url": service.address, "locale": "en-US", **DESKTOP, **options})
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: check(request.url))
        page.goto(path)
        return page

    def check(url):
        if not url.startswith((service.address, "data:", "blob:")):
            complaints.append(url)

    open_one.complaints = complaints
    yield open_one
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def results(service, clip, tmp_path_factory):
    """Pages of analyses by what they show: ``result``, another one of the same file, ``inconclusive``, ``failed``."""
    folder = tmp_path_factory.mktemp("sent")
    empty = folder / "landscape.mp4"
    write_video(empty, [np.full((240, 320, 3), 96, np.uint8)] * 8)
    broken = folder / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:300])
    sent = {
        "result": service.send(clip, wait_s=90, num_frames=8),
        "other": service.send(clip, wait_s=90, num_frames=8, threshold=0.9),
        "inconclusive": service.send(empty, wait_s=90),
        "failed": service.send(broken, wait_s=90),
    }
    return {name: analysis["links"]["page"] for name, analysis in sent.items()}


@pytest.fixture(scope="module")
def violations():
    """Returns what axe finds on a page, as rule, place and why."""
    return _violations


def _violations(page):
    page.evaluate(AXE)
    found = page.evaluate(
        "axe.run(document, {resultTypes: ['violations'], rules: {'target-size': {enabled: true}}})"
    )["violations"]
    return [(rule["id"], node["target"], node["failureSummary"]) for rule in found for node in rule["nodes"]]
