"""`deepfake bench gateway`: what a verdict by the gateway costs, against one by the client on the same server."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from deepfake_bench.cli.options import ClipsArgument, OutputOption, find_clips, print_table
from deepfake_bench.machine.results import write_results
from deepfake_bench.pipeline.gateway import measure_clips
from deepfake_bench.server.serving import embedded_server
from deepfake_client import AnalyzeOptions, Sampling
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, RepositoryOption
from deepfake_preprocess.support.extras import require_extra

COLUMNS = (
    ("at once", "{at_once}"),
    ("way", "{way}"),
    ("wall", "{wall_s:.2f} s"),
    ("CPU", "{cpu_s:.2f} s"),
    ("time by gateway", "{wall:.2f} x"),
    ("CPU by gateway", "{cpu:.2f} x"),
)


def gateway(
    clips: ClipsArgument,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    concurrency: Annotated[int, typer.Option(help="Analyses under way at once, in both.", min=1)] = 2,
    num_frames: Annotated[int, typer.Option(help="Frames sampled of each clip.", min=1)] = 32,
    rounds: Annotated[int, typer.Option(help="Runs of each way, in turn.", min=1)] = 5,
    output: OutputOption = None,
) -> None:
    """Measure what a verdict by the gateway costs, against one by the client, both from one private Triton.

    Uploads, the durable queue, the process that opens the file and the events are all in it. Library and command
    are measured by the gateway (GatewayClient, analyze --gateway) and without it (DeepfakeClient, analyze --url), in
    turn; their verdicts are first checked to be the same. The first clip is measured alone, then all of them at once.
    CPU time is that of all processes, Triton included.

    [bold]Examples[/]

      deepfake bench gateway clip.mp4
      deepfake bench gateway clips/*.mp4 --rounds 7
    """
    require_extra("deepfake_gateway.cli.gateway", extra="gateway")
    found = find_clips(clips)
    screen = Console(stderr=True, soft_wrap=True, highlight=False)
    options = AnalyzeOptions(sampling=Sampling(num_frames=num_frames))
    with embedded_server(repository) as server:
        screen.print(f"{server.model.name}, {server.form}", style="dim")
        measured = [
            measure_clips(
                given,
                str(server.connections["grpc"].address),
                options,
                concurrency=concurrency,
                rounds=rounds,
                announce=lambda text: screen.print(text, style="dim"),
            )
            for given in (found[:1], found)[: len(found)]
        ]
    rows = [
        {"at_once": item["at_once"], "way": way, **figures, **_ratio_of(item, way)}
        for item in measured
        for way, figures in item["ways"].items()
    ]
    print_table(rows, COLUMNS, left=2)
    results = {
        "model": server.model.name,
        "precision": server.model.precision,
        "engine": server.engine,
        **server.arrangement,
        "clips": [path.name for path in found],
        "num_frames": num_frames,
        "concurrency": concurrency,
        "rounds": rounds,
        "measured": measured,
    }
    typer.echo(f"written to {write_results('gateway', results, output)}")


def _ratio_of(item: dict[str, object], way: str) -> dict[str, float | None]:
    ratios: dict[str, dict[str, float]] = item["ratios"]  # type: ignore[assignment]
    kind = way.removesuffix(" by gateway")
    return dict(ratios[kind]) if way != kind else {"wall": None, "cpu": None}
