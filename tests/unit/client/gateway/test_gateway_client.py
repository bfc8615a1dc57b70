"""Verdicts by a verdict service are those of the client itself, and its failures are the client's errors."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gateways
import pytest
from aiohttp import web
from fixed_detector import LEFT, FixedDetector
from media import make_clip

from deepfake_client import (
    NO_RETRY,
    AnalyzeOptions,
    AsyncGatewayClient,
    Connection,
    DeepfakeClient,
    DeepfakeError,
    GatewayClient,
    InferenceError,
    Label,
    MediaNotFoundError,
    MediaOpenError,
    ModelNotFoundError,
    OptionError,
    Progress,
    Sampling,
    ServerAccessError,
    ServerBusyError,
    ServerUnavailableError,
    Verdict,
    WatchOptions,
)
from deepfake_client.sources.threads import LoopThread
from deepfake_client.transport.testing import FakeTransport

OPTIONS = AnalyzeOptions(sampling=Sampling(num_frames=4), threshold=0.4, min_face_px=10.0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", duration_s=0.4)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    with gateways.listening_gateway(tmp_path_factory.mktemp("data")) as found:
        yield found


def facts(verdict: Verdict | dict[str, Any]) -> dict[str, Any]:
    data = verdict if isinstance(verdict, dict) else verdict.to_dict()
    return {name: value for name, value in data.items() if name != "timing_s"}


def test_a_verdict_is_that_of_the_client_whatever_is_sent(service: tuple[str, Any], clip: Path) -> None:
    with DeepfakeClient(FakeTransport(spec=gateways.SPEC), detector=FixedDetector(LEFT)) as client:
        own = client.analyze(str(clip), options=OPTIONS)
    seen: list[Verdict] = []
    with GatewayClient(service[0]) as client:
        assert facts(client.analyze(str(clip), options=OPTIONS)) == facts(own)
        assert client.analyze(clip.read_bytes(), options=OPTIONS).frames == own.frames
        with clip.open("rb") as file:
            assert client.analyze(file, options=OPTIONS).source == "clip.mp4"
        (outcome,) = client.analyze_many(
            [str(clip)], options=OPTIONS, on_verdict=lambda verdict, media: seen.append(verdict)
        )
        assert seen == [outcome.verdict]
        assert client.model_of(own).spec == gateways.SPEC


def test_many_inputs_have_one_outcome_each_and_what_is_no_medium_is_not_sent(
    service: tuple[str, Any], clip: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    runs = service[1].runs
    with GatewayClient(service[0]) as client:
        found = {item.source: item for item in client.analyze_many([clip, text, tmp_path / "none.mp4"])}
    assert found[str(clip)].verdict is not None
    assert isinstance(found[str(text)].error, MediaOpenError)
    assert isinstance(found[str(tmp_path / "none.mp4")].error, MediaNotFoundError)
    assert service[1].runs <= runs + 1


def test_the_command_prints_and_exits_as_with_a_server(service: tuple[str, Any], clip: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deepfake_client.cli.main", "analyze", "--gateway", service[0], "--json"]
    report = ["--report", str(tmp_path / "report")]
    done = subprocess.run([*command, str(clip), *report], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["source"] == str(clip)
    assert (tmp_path / "report/index.html").is_file()
    refused = subprocess.run([*command, str(clip), "--embedded"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "give one of them" in refused.stderr


@pytest.mark.parametrize("end", ["/", "/v1", "/v1/"])
def test_an_address_may_end_with_the_version(service: tuple[str, Any], end: str) -> None:
    with GatewayClient(service[0] + end) as client:
        assert client.model().spec == gateways.SPEC


def test_a_live_source_is_watched_by_the_service(tmp_path: Path) -> None:
    source, settings = "http://127.0.0.1/live.ts", {"url_intake": True, "allowed_networks": ("127.0.0.0/8",)}
    with (
        gateways.listening_gateway(tmp_path / "data", **settings) as (address, queue),
        GatewayClient(address) as client,
    ):
        verdicts = list(client.watch(source, options=WatchOptions(step_s=2), duration_s=60))
        assert [type(verdict) for verdict in verdicts] == [Verdict] * len(verdicts)
        assert (verdicts[-1].label, verdicts[-1].source) == (Label.FAKE, source)
        for wrong in (WatchOptions(idle_s=1), WatchOptions(window_s=1000)):
            with pytest.raises(OptionError, match=r"idle_s|window_s"):
                list(client.watch(source, options=wrong))
        queue.slow = True
        for _ in client.watch(source):
            break  # leaving the loop ends the watch at the service
        assert queue.canceled.wait(10)
    with (
        gateways.listening_gateway(tmp_path / "closed") as (address, _),
        GatewayClient(address) as client,
        pytest.raises(ServerAccessError, match="url_intake"),
    ):
        list(client.watch(source))


def test_leaving_cancels_at_the_service_too(service: tuple[str, Any], tmp_path: Path) -> None:
    address, queue = service
    queue.slow = True
    clip = make_clip(tmp_path / "other.mp4", duration_s=0.2)

    async def leave() -> None:
        begun = asyncio.Event()
        async with AsyncGatewayClient(address) as client:
            task = asyncio.create_task(client.analyze(clip, on_progress=lambda progress: begun.set()))
            await begun.wait()
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(leave())
    queue.slow = False
    assert queue.canceled.wait(10)


@contextmanager
def answering(handler: Any, path: str = "/v1/analyses") -> Iterator[str]:
    """A service whose one model is that of the tests, and whose uploads are answered by a function."""
    app = web.Application()
    models = [{"name": "m", "version": 1, "is_default": True, "spec": gateways.SPEC.to_dict()}]

    async def answer_models(request: web.Request) -> web.Response:
        return web.json_response({"models": models})

    app.router.add_get("/v1/models", answer_models)
    app.router.add_post(path, handler)
    app.router.add_get("/v1/analyses/x/events", handler)
    loop, runner = LoopThread("the test's service"), web.AppRunner(app, access_log=None)
    loop.wait_for(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.wait_for(site.start())
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        loop.stop(runner.cleanup)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, ServerAccessError),
        (413, MediaOpenError),
        (422, OptionError),
        (429, ServerBusyError),
        (500, InferenceError),
        (503, ServerUnavailableError),
    ],
)
def test_a_refusal_is_one_of_our_errors_with_the_service_s_words(
    clip: Path, status: int, kind: type[DeepfakeError]
) -> None:
    async def refuse(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"detail": "say please"}, status=status, content_type="application/problem+json")

    with (
        answering(refuse) as address,
        GatewayClient(Connection(url=address, retry=NO_RETRY)) as client,
        pytest.raises(kind, match="say please"),
    ):
        client.analyze(clip)


def test_events_go_on_behind_the_last_one_after_a_break(clip: Path) -> None:
    asked: list[str | None] = []
    progress = {"frames_done": 1, "frames_expected": 4, "faces_scored": 1, "label": None, "fake_probability": None}
    error = {"type": "SandboxError", "message": "clip.mp4 did harm"}
    end = {"id": "x", "status": "failed", "file": {"name": "clip.mp4"}, "error": error}

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            await request.read()
            return web.json_response({"id": "x", "status": "queued"}, status=202)
        asked.append(request.headers.get("last-event-id"))
        stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await stream.prepare(request)
        if len(asked) == 1:
            await stream.write(
                f"id: 7\nevent: progress\ndata: {json.dumps(progress)}\n\n: still here\n\nid: 8".encode()
            )
            assert request.transport is not None
            request.transport.close()
        else:
            await stream.write(f"id: 9\nevent: end\ndata: {json.dumps(end)}\n\n".encode())
        return stream

    seen: list[Progress] = []
    with (
        answering(answer) as address,
        GatewayClient(address) as client,
        pytest.raises(MediaOpenError, match=f"{clip} did harm"),
    ):
        client.analyze(clip, on_progress=seen.append)
    assert asked == [None, "7"]
    assert seen == [Progress(1, 4, 1)]


def test_what_is_no_such_service_is_said(clip: Path) -> None:
    async def page(request: web.Request) -> web.Response:
        return web.Response(text="hello", content_type="text/html")

    with answering(page) as address:
        with GatewayClient(f"{address}/elsewhere") as client, pytest.raises(InferenceError, match="something else"):
            client.analyze(clip)
        with GatewayClient(address, model="other") as client, pytest.raises(ModelNotFoundError, match="leave out"):
            client.analyze(clip)
    connection = Connection(url=address, retry=NO_RETRY)
    with GatewayClient(connection) as client, pytest.raises(ServerUnavailableError, match="no gateway answers"):
        client.analyze(clip)
    with pytest.raises(OptionError, match="`gateway`"):
        GatewayClient("grpc://localhost:1")
    with GatewayClient(address) as client, pytest.raises(OptionError, match="at_seconds"):
        client.analyze(clip, options=AnalyzeOptions(sampling=Sampling(at_seconds=(0.1,))))
