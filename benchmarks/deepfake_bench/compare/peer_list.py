"""What the comparison compares with: each peer's packages, its settings, and how it is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from deepfake_bench.load.senders import Crops, HttpRequest, plain_http
from deepfake_serve._cores import CROPS_PER_THREAD

PEERS_DIR = Path(__file__).parent / "peers"
IN_PROCESS = "in-process"
"""End of the names of engines that serve nobody."""
BATCH_TIMEOUT_S = 0.005
"""How long a peer waits for a batch to fill; much longer than 32 waiting requests need."""
FORM_BOUNDARY = "deepfake-bench-crop"


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer in one setting.

    Attributes:
        name: of the peer; of several settings of one name, the best in a trial is compared.
        setting: in words.
        requirements: packages of its environment; empty for this project's own.
        command: after the interpreter; ``{port}`` stands for the port, of a server.
        env: environment variables, likewise.
        http: how crops travel to a server; None for an engine in-process.
    """

    name: str
    setting: str
    requirements: tuple[str, ...]
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    http: Callable[[str, Crops], HttpRequest] | None = None


def form_http(model: str, crops: Crops) -> HttpRequest:
    """A crop's bytes as a file in a multipart form."""
    head = (
        f'--{FORM_BOUNDARY}\r\nContent-Disposition: form-data; name="crops"; filename="crop"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + crops.tobytes() + f"\r\n--{FORM_BOUNDARY}--\r\n".encode()
    return HttpRequest("/predict", {"Content-Type": f"multipart/form-data; boundary={FORM_BOUNDARY}"}, body)


def peers(model: Path, *, cores: int, max_batch: int, checkpoint: Path | None) -> list[Peer]:
    """Return all peers in all settings.

    Args:
        model: the ONNX file.
        cores: cores to use.
        max_batch: the largest batch of the served model.
        checkpoint: of the same model, for eager PyTorch; a spec lies beside it.
    """
    runtime = tuple(f"{name}=={metadata.version(name)}" for name in ("onnxruntime", "numpy"))
    splits = [(1, cores)] if cores == 1 else [(1, cores), (cores, 1)]
    found = [
        Peer(
            f"ONNX Runtime {IN_PROCESS}",
            f"{sessions} session(s) of {threads} thread(s), batches of {batch}",
            (),
            _script("onnxruntime_engine", model, sessions=sessions, threads=threads, batch=batch),
        )
        for sessions, threads in splits
        for batch in sorted({CROPS_PER_THREAD * threads, max_batch})
    ]
    found.append(
        Peer(
            f"OpenVINO {IN_PROCESS}",
            "throughput mode; latency mode for single crops",
            ("openvino==2026.4.1", runtime[1]),
            _script("openvino_engine", model),
        )
    )
    for workers, threads in splits:
        for batch in (2, 8, 32):
            setting = f"{workers} worker(s) of {threads} thread(s), batches of up to {batch}"
            options = {"workers": workers, "threads": threads, "batch": batch, "batch-timeout": BATCH_TIMEOUT_S}
            found += [
                Peer(
                    "LitServe",
                    setting,
                    ("litserve==0.2.19", *runtime),
                    _script("litserve_server", model, port="{port}", **options),
                    http=plain_http,
                ),
                Peer(
                    "BentoML",
                    setting,
                    ("bentoml==1.4.39", *runtime),
                    ("-m", "bentoml", "serve", "bentoml_server:Detector", "--host", "127.0.0.1", "--port", "{port}"),
                    env={
                        "PEER_MODEL": str(model),
                        "PEER_WORKERS": str(workers),
                        "PEER_THREADS": str(threads),
                        "PEER_BATCH": str(batch),
                        "BENTOML_DO_NOT_TRACK": "True",
                    },
                    http=form_http,
                ),
                Peer(
                    "Ray Serve",
                    setting,
                    ("ray[serve]==2.60.0", *runtime),
                    _script("ray_server", model, port="{port}", **options),
                    env={"RAY_USAGE_STATS_ENABLED": "0"},
                    http=plain_http,
                ),
            ]
    if checkpoint is not None:
        found.append(
            Peer(
                "FastAPI + eager PyTorch",
                "one crop at a time, all threads",
                (),
                _script("fastapi_server", checkpoint, spec=checkpoint.with_suffix(".yaml"), port="{port}"),
                http=plain_http,
            )
        )
    return found


def _script(name: str, model: Path, **options: object) -> tuple[str, ...]:
    arguments = (text for key, value in options.items() for text in (f"--{key}", str(value)))
    return (str(PEERS_DIR / f"{name}.py"), str(model), *arguments)
