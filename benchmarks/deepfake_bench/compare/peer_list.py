"""What the comparison compares with: each peer's packages, its settings, and how it is started."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import aiohttp

from deepfake_bench.load.senders import Crops, HttpRequest
from deepfake_serve import CROPS_PER_THREAD

PEERS_DIR = Path(__file__).parent / "peers"
ONNX_RUNTIME = "ONNX Runtime in-process"
BATCHES = (2, 8, 32)
BATCH_TIMEOUT_S = 0.005
"""How long a peer waits for a batch to fill; much longer than 32 waiting requests need."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer in one setting; of several settings of one name, the best in a trial is compared.

    Attributes:
        requirements: packages of its environment; empty for this project's own.
        command: after the interpreter; ``{port}`` stands for the port of a server.
        options: what its file reads, with ``port``, as JSON from the environment variable ``PEER_OPTIONS``.
        env: more environment variables.
        http: how crops travel to a server; None for an engine in-process.
    """

    name: str
    setting: str
    requirements: tuple[str, ...]
    command: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    http: Callable[[Crops], Awaitable[HttpRequest]] | None = None


async def plain_http(crops: Crops) -> HttpRequest:
    """The crops' bytes as the body and nothing else, for servers whose requests are what their code reads."""
    return HttpRequest("/predict", {"Content-Type": "application/octet-stream"}, crops.tobytes())


async def form_http(crops: Crops) -> HttpRequest:
    """A crop's bytes as a file in a multipart form."""
    form = aiohttp.FormData()
    form.add_field("crops", crops.tobytes(), filename="crop", content_type="application/octet-stream")
    payload = form()
    return HttpRequest("/predict", {"Content-Type": payload.headers["Content-Type"]}, await payload.as_bytes())


def peers(model: Path, *, cores: int, max_batch: int, checkpoint: Path | None) -> list[Peer]:
    """Return all peers in all settings, on so many cores.

    `model` is the ONNX file, `max_batch` the largest batch of its server, and `checkpoint`, with its spec next to it,
    is for eager PyTorch.
    """
    onnxruntime, numpy = (f"{name}=={metadata.version(name)}" for name in ("onnxruntime", "numpy"))
    splits = [(1, cores)] if cores == 1 else [(1, cores), (cores, 1)]
    found = [
        Peer(
            ONNX_RUNTIME,
            f"{sessions} session(s) of {threads} thread(s), batches of {batch}",
            (),
            ("onnxruntime_engine.py",),
            {"model": str(model.resolve()), "sessions": sessions, "threads": threads, "batch": batch},
        )
        for sessions, threads in splits
        for batch in sorted({CROPS_PER_THREAD * threads, max_batch})
    ]
    found.append(
        Peer(
            "OpenVINO in-process",
            "throughput mode; latency mode for single crops",
            ("openvino==2026.4.1", numpy),
            ("openvino_engine.py",),
            {"model": str(model.resolve())},
        )
    )
    servers: list[tuple[str, str, tuple[str, ...], dict[str, str], Callable[[Crops], Awaitable[HttpRequest]]]] = [
        ("LitServe", "litserve==0.2.19", ("litserve_server.py",), {}, plain_http),
        (
            "BentoML",
            "bentoml==1.4.39",
            ("-m", "bentoml", "serve", "bentoml_server:Detector", "-p", "{port}"),
            {"BENTOML_HOST": "127.0.0.1", "BENTOML_DO_NOT_TRACK": "True"},
            form_http,
        ),
        ("Ray Serve", "ray[serve]==2.60.0", ("ray_server.py",), {"RAY_USAGE_STATS_ENABLED": "0"}, plain_http),
    ]
    found += [
        Peer(
            name,
            f"{workers} worker(s) of {threads} thread(s), batches of up to {batch}",
            (requirement, onnxruntime, numpy),
            command,
            {
                "model": str(model.resolve()),
                "workers": workers,
                "threads": threads,
                "batch": batch,
                "batch_timeout_s": BATCH_TIMEOUT_S,
            },
            env,
            http,
        )
        for name, requirement, command, env, http in servers
        for workers, threads in splits
        for batch in BATCHES
    ]
    if checkpoint is not None:
        found.append(
            Peer(
                "FastAPI + eager PyTorch",
                "one crop at a time, all threads",
                (),
                ("fastapi_server.py",),
                {"checkpoint": str(checkpoint.resolve())},
                http=plain_http,
            )
        )
    return found
