"""`deepfake bench compare`: the embedded Triton against what else could have run the same ONNX file."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deepfake_bench.cli.options import ModelOption, OutputOption, print_table, shown
from deepfake_bench.compare.comparison import MANY, ONE, Comparison, served_over_in_process
from deepfake_bench.compare.peer_list import peers
from deepfake_bench.machine.environment import usable_cores
from deepfake_bench.machine.results import Results, write_results
from deepfake_bench.server.serving import embedded_server
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, RepositoryOption
from deepfake_preprocess.errors import OptionError

PACKAGES = ("numpy", "onnxruntime", "tritonclient", "grpcio", "torch", "timm", "fastapi", "uvicorn")


def compare(
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    model: ModelOption = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Its checkpoint, with its spec beside it, for the server with eager PyTorch.")
    ] = None,
    peer: Annotated[str, typer.Option(help="Only peers whose names hold one of these words, comma-separated.")] = "",
    rounds: Annotated[int, typer.Option(help="How often the contenders alternate.", min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="Length of one measurement.", min=0.1)] = 4.0,
    output: OutputOption = None,
) -> None:
    """Compare the embedded Triton with what else could have run the same ONNX file.

    In-process ONNX Runtime and OpenVINO, LitServe, BentoML, Ray Serve, and FastAPI with eager PyTorch (with
    --checkpoint). Each is installed once into an environment of its own in the cache folder, is tried in several
    settings, and is compared in its best one, after its answers were found equal. Ours runs over gRPC, HTTP, and gRPC
    with shared memory: against ONNX Runtime in-process, that is what serving costs.

    [bold]Examples[/]

      deepfake bench compare --repository model_repository --checkpoint detector.safetensors
      deepfake bench compare --peer onnx
    """
    screen = Console(stderr=True, highlight=False, markup=False)
    words = [word.strip().lower() for word in peer.split(",") if word.strip()]
    with ExitStack() as stack:
        stack.enter_context(_sigterm_as_exit())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deepfake-bench-")))
        server = stack.enter_context(embedded_server(repository, model=model))
        assert server.reference is not None
        listed = peers(
            server.reference, cores=usable_cores(), max_batch=server.model.max_batch_size, checkpoint=checkpoint
        )
        names = list(dict.fromkeys(item.name for item in listed))
        wanted = [name for name in names if not words or any(word in name.lower() for word in words)]
        if not wanted:
            raise OptionError(f"--peer is {peer!r}; known are: {', '.join(names)}")
        comparison = stack.enter_context(Comparison(server, scratch=scratch, announce=screen.print))
        for name in wanted:
            comparison.add([item for item in listed if item.name == name])
        if checkpoint is None and not words:
            comparison.leave_out("FastAPI + eager PyTorch", "", "no checkpoint was given")
        try:
            for number in range(rounds):
                screen.print(f"round {number + 1} of {rounds}")
                comparison.measure_round(seconds)
        finally:  # whole rounds are kept, whatever ended the rest
            if results := comparison.results():
                results["seconds_per_measurement"] = seconds
                results["requirements"] = {item.name: item.requirements for item in listed if item.name in wanted}
                path = write_results("compare", results, packages=PACKAGES, path=output)
                screen.print(f"written to {path}")
    _print(results)


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """End by an exception on SIGTERM, so that no peer outlives this process."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print(data: Results) -> None:
    columns = ("contender", "setting", "crops/s", "p50", "p99 ms", "CPU ms per crop", "alone: p50 ms")
    in_process = served_over_in_process(data)
    rows = []
    for item in data["contenders"]:
        many, alone = item["concurrency"][str(MANY)], item["concurrency"][str(ONE)]
        waits, ratio = many["latency"] or {}, data["ours_over"].get(item["name"], {})
        rows.append(
            (
                item["name"],
                item["setting"],
                shown(many["crops_per_s"], ".1f"),
                shown(waits.get("p50_ms"), ".1f"),
                shown(waits.get("p99_ms"), ".1f"),
                shown(many["cpu_ms_per_crop"], ".2f"),
                shown(alone["latency"]["p50_ms"], ".1f"),
                *(shown(ratio.get(key), ".2f") for key in ("throughput", "p99", "p50_alone")),
                shown(in_process.get(item["name"]), ".2f"),
            )
        )
    print_table((*columns, "ours: throughput", "p99", "alone", "of in-process"), rows, left=2)
