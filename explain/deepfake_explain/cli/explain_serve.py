"""`deepfake explain-serve`: loads one checkpoint and serves its explanations until it is stopped."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated

import cv2
import torch
import typer
import uvicorn
from rich.console import Console
from rich.markup import escape

from deepfake_client.async_client import AsyncDeepfakeClient
from deepfake_client.cli.groups import ConnectionOptions, ModelOption
from deepfake_client.transport.retry import NO_RETRY
from deepfake_explain.explainer import CheckpointExplainer
from deepfake_explain.service.admission import RequestLimits
from deepfake_explain.service.app import build_app
from deepfake_preprocess.cli.grouping import Group, with_groups
from deepfake_preprocess.faces.mtcnn import MtcnnDetector
from deepfake_preprocess.support.limits import yield_cores
from deepfake_preprocess.support.sockets import listening


def _limits(
    max_requests: Annotated[int, typer.Option(min=1, help="Requests let in at a time; more are refused.")] = 32,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="Largest upload, in MiB.")] = 10,
    deadline: Annotated[float, typer.Option(min=0.1, help="Deadline of each explanation, in seconds.")] = 30.0,
) -> RequestLimits:
    return RequestLimits(max_requests=max_requests, max_upload_bytes=max_upload_mb * 2**20, timeout_s=deadline)


@with_groups
def explain_serve(
    checkpoint: Annotated[Path, typer.Argument(help="The served model's checkpoint, or an ensemble's .yaml.")],
    connection: ConnectionOptions,
    limits: Annotated[RequestLimits, Group(_limits, "Limits")],
    model: ModelOption = None,
    spec: Annotated[
        Path | None, typer.Option(help="Model spec (YAML). Default: the .yaml with the checkpoint's name next to it.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; there is no login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8005,
    device: Annotated[str, typer.Option(help="PyTorch's name of the device, such as cpu or cuda:0.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of PyTorch and OpenCV.")] = 1,
    nice: Annotated[
        int, typer.Option(min=0, max=19, help="Lower the priority by this much: serving comes first.")
    ] = 10,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Serve heatmaps of one detector: POST /v1/explain, GET /v1/model, /health, /metrics and /openapi.json.

    A side path next to Triton: it explains one face at a time at low priority, and refuses what it cannot take.
    With --url (or DEEPFAKE_URL) every score is first compared with that server's; without it only scores that a
    request brings along are compared.

    [bold]Examples[/]

      deepfake explain-serve detector.safetensors --url localhost:8001
      curl -F frame=@frame.png -F box=412,120,560,330 http://127.0.0.1:8005/v1/explain
    """
    # Not tried again: who waits has a deadline, and holds one of the few places.
    once = dataclasses.replace(connection, retry=NO_RETRY)
    yield_cores(nice)
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    screen = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
    with screen.status("loading the checkpoint"):
        explainer = CheckpointExplainer.load(checkpoint, spec, device=device)
    # The checkpoint's own name: a server of several models offers it under that.
    served = model or explainer.spec.name
    connect = None if connection.url is None else partial(AsyncDeepfakeClient, once, model=served)
    app = build_app(explainer, MtcnnDetector(), limits=limits, connect=connect)
    with listening(host, port) as listener:
        address = f"http://{host}:{listener.getsockname()[1]}"
        screen.print(
            f"explaining {escape(explainer.spec.name)} ({explainer.default_layer()}, checkpoint "
            f"{str(explainer.spec.checkpoint_sha256)[:12]}) on {address}; stop with Ctrl-C"
        )
        if connect is None:
            screen.print("without --url only scores that a request brings along are compared", style="yellow")
        if host not in ("127.0.0.1", "::1", "localhost"):
            screen.print(f"{host} is reachable from elsewhere, and the service has no login", style="yellow")
        # Requests under way may take ten seconds to end after a signal.
        config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=10)
        uvicorn.Server(config).run(sockets=[listener])
