"""What the comparison compares with: each peer's packages, its settings, and how it is started."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import aiohttp

from deepfake_bench.load.senders import Crops, HttpRequest
from deepfake_bench.server.reference import PROBABILITY_TOLERANCE, tolerance_of
from deepfake_bench.server.serving import Server
from deepfake_export.proof.tolerances import TOLERANCES
from deepfake_preprocess.contract.forms import ENGINE_NAMES, FEATURES, ServedForm, cpu_features
from deepfake_preprocess.support.engines import CROPS_PER_THREAD

OPENVINO_PACKAGE = "openvino==2026.4.1"
PEERS_DIR = Path(__file__).parent / "peers"
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
        tolerance: how far its probabilities may be from the expected ones.
    """

    name: str
    setting: str
    requirements: tuple[str, ...]
    command: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    http: Callable[[Crops], Awaitable[HttpRequest]] | None = None
    tolerance: float = PROBABILITY_TOLERANCE


async def plain_http(crops: Crops) -> HttpRequest:
    """The crops' bytes as the body and nothing else, for servers whose requests are what their code reads."""
    return HttpRequest("/predict", {"Content-Type": "application/octet-stream"}, crops.tobytes())


async def form_http(crops: Crops) -> HttpRequest:
    """A crop's bytes as a file in a multipart form."""
    form = aiohttp.FormData()
    form.add_field("crops", crops.tobytes(), filename="crop", content_type="application/octet-stream")
    payload = form()
    return HttpRequest("/predict", {"Content-Type": payload.headers["Content-Type"]}, await payload.as_bytes())


SERVERS: Sequence[tuple[str, str, tuple[str, ...], dict[str, str], Callable[[Crops], Awaitable[HttpRequest]]]] = (
    ("LitServe", "litserve==0.2.19", ("litserve_server.py",), {}, plain_http),
    (
        "BentoML",
        "bentoml==1.4.39",
        ("-m", "bentoml", "serve", "bentoml_server:Detector", "-p", "{port}"),
        {"BENTOML_HOST": "127.0.0.1", "BENTOML_DO_NOT_TRACK": "True"},
        form_http,
    ),
    ("Ray Serve", "ray[serve]==2.60.0", ("ray_server.py",), {"RAY_USAGE_STATS_ENABLED": "0"}, plain_http),
)
"""Name, package, command, environment, and how crops travel."""


def in_process_name(engine: str, precision: str) -> str:
    """Return the name of an engine without a server."""
    shown = ENGINE_NAMES[engine] if precision == "fp32" else f"{ENGINE_NAMES[engine]} {precision.upper()}"
    return f"{shown} in-process"


def peers(server: Server, *, cores: int, checkpoint: Path | None) -> list[Peer]:
    """Return all peers in all settings, on `cores` cores.

    Servers run the same file in the same engine and precision as ours. Engines run without a server in every
    precision that the version has a file for, OpenVINO also in BF16 where the CPU has instructions for it.
    `checkpoint`, with its spec next to it, is for eager PyTorch.
    """
    splits = [(1, cores)] if cores == 1 else [(1, cores), (cores, 1)]
    found = [item for form in _in_process_forms(server) for item in _engines(server, form, splits)]
    named = (server.engine, server.model.precision)
    served = next(form for form in server.forms if (form.engine, form.precision) == named)
    requirement, numpy = _packages(server.engine)
    for name, package, command, env, http in SERVERS:
        found += [
            Peer(
                name,
                f"{workers} worker(s) of {threads} thread(s), batches of up to {batch}",
                (package, requirement, numpy),
                command,
                {
                    **_options(server, served, _reference(server)),
                    "workers": workers,
                    "threads": threads,
                    "batch": batch,
                    "batch_timeout_s": BATCH_TIMEOUT_S,
                },
                env,
                http,
                _tolerance(server, served),
            )
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
                tolerance=TOLERANCES[server.model.precision].probability_abs,
            )
        )
    return found


def _in_process_forms(server: Server) -> list[ServedForm]:
    """Return what can be run of a version without a server: a file for each engine and precision."""
    files = {form.precision: form.file for form in server.forms}
    found = [form for form in server.forms if form.engine == "onnxruntime"]
    if "fp32" in files and cpu_features().intersection(FEATURES["bf16"]):
        files.setdefault("bf16", files["fp32"])
    return found + [ServedForm("openvino", item, file) for item, file in files.items() if item != "fp16"]


def _engines(server: Server, form: ServedForm, splits: Sequence[tuple[int, int]]) -> list[Peer]:
    """Return an engine without a server, in its settings."""
    name, tolerance = in_process_name(form.engine, form.precision), _tolerance(server, form)
    options = _options(server, form, _reference(server).with_name(form.file))
    if form.engine == "openvino":
        setting = "throughput mode; latency mode for single crops"
        requirements, command = _packages(form.engine), ("openvino_engine.py",)
        return [Peer(name, setting, requirements, command, options, tolerance=tolerance)]
    return [
        Peer(
            name,
            f"{sessions} session(s) of {threads} thread(s), batches of {batch}",
            (),
            ("onnxruntime_engine.py",),
            {**options, "sessions": sessions, "threads": threads, "batch": batch},
            tolerance=tolerance,
        )
        for sessions, threads in splits
        for batch in sorted({CROPS_PER_THREAD * threads, server.model.max_batch_size})
    ]


def _options(server: Server, form: ServedForm, model: Path) -> dict[str, Any]:
    width, height = server.model.spec.input_size_wh
    return {
        "model": str(model.resolve()),
        "engine": form.engine,
        "precision": form.precision,
        "crop_shape": [height, width, 3],
    }


def _reference(server: Server) -> Path:
    assert server.reference is not None  # an embedded server has its file
    return server.reference


def _packages(engine: str) -> tuple[str, str]:
    return (OPENVINO_PACKAGE if engine == "openvino" else _pinned("onnxruntime")), _pinned("numpy")


def _pinned(name: str) -> str:
    return f"{name}=={metadata.version(name)}"


def _tolerance(server: Server, form: ServedForm) -> float:
    """Return how far a probability may be from the server's own file in its engine and precision."""
    if form.precision == server.model.precision:
        return tolerance_of(form.precision)
    return sum(TOLERANCES[item].probability_abs for item in (form.precision, server.model.precision))
