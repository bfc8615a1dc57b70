"""`deepfake scan`: options, progress and exit code of a bulk scan."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from deepfake_client.cli.exit_codes import EXIT_INTERRUPTED, EXIT_SOME_INPUTS_FAILED
from deepfake_client.cli.groups import AnalysisOptions, ServerOptions
from deepfake_client.cli.main import print_error
from deepfake_client.client import DeepfakeClient
from deepfake_preprocess.cli.grouping import Group, with_groups
from deepfake_preprocess.cli.options import JsonOption
from deepfake_preprocess.cli.signals import terminated_as_interrupted
from deepfake_preprocess.errors import DeepfakeError, OptionError
from deepfake_preprocess.support.limits import yield_cores
from deepfake_preprocess.support.machine import usable_cores
from deepfake_scan.cli.progress import shown_progress
from deepfake_scan.cli.status import compact_results, print_plan, print_status, print_summary
from deepfake_scan.engines import ENGINES
from deepfake_scan.engines.local import scan_here
from deepfake_scan.engines.on_ray import scan_on_ray
from deepfake_scan.metrics import served_metrics
from deepfake_scan.plan import parse_plan
from deepfake_scan.run import Scan
from deepfake_scan.storage import open_storage
from deepfake_scan.tally import ScanTally
from deepfake_scan.work import entry
from deepfake_scan.work.task import InputLimits, Setup

RUN_PANEL: Final = "Run"
NICE: Final = 10
"""Niceness of this program, which hands out work. Those that do the work yield more, so that they never wait for
it."""


def _limits(
    input_gib: Annotated[float, typer.Option(help="Memory that one input may take, in GiB.")] = 4.0,
    input_seconds: Annotated[float, typer.Option(help="Time that one input may take.")] = 600.0,
) -> InputLimits:
    return InputLimits(memory_bytes=int(input_gib * 2**30), seconds=input_seconds)


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What is done instead of a scan, where one of them is asked for."""

    status: Annotated[bool, typer.Option("--status", help="Count the results of OUTPUT.")] = False
    compact: Annotated[bool, typer.Option("--compact", help="Join the small parts of OUTPUT.")] = False
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="CLIPS[,CROPS]",
            help="Cores and servers for that many clips a day; CROPS: what one of your servers scores in a second.",
        ),
    ] = None


@with_groups
def scan(
    server: ServerOptions,
    options: AnalysisOptions,
    limits: Annotated[InputLimits, Group(_limits, RUN_PANEL)],
    upkeep: Annotated[Upkeep, Group(Upkeep, "Instead of a scan")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Folders, patterns, prefixes of buckets (s3://, gs://, az://), manifests (.parquet, .csv, .jsonl).",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="DIR|ADDRESS", help="Folder or bucket prefix of the results.")
    ] = None,
    engine: Annotated[
        str, typer.Option(metavar="|".join(ENGINES), help="Who does the work; ray: the cluster of RAY_ADDRESS.")
    ] = "local",
    column: Annotated[
        str | None, typer.Option(help="Column of a manifest that holds addresses.", show_default="found by its name")
    ] = None,
    faces: Annotated[bool, typer.Option("--faces", help="Write the tracks as a nested column, too.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try inputs again that have no verdict.")
    ] = False,
    cores: Annotated[
        int | None, typer.Option(min=1, help="Cores to use here.", show_default="all", rich_help_panel=RUN_PANEL)
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Serve Prometheus metrics here; 0 takes a free port.", rich_help_panel=RUN_PANEL
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Analyze folders, buckets and manifests of any size; started again, it does only what is missing.

    Results are Parquet files under OUTPUT/parts, a row for each input, also
    for those that cannot be analyzed (error_type, error), and the verdicts'
    JSON under OUTPUT/json. docs/scale.md lists the columns, shows how to read
    them, and how large a cluster is needed.

    An input is done once: the same address, size and ETag, checkpoint and
    options are not analyzed again. Ctrl-C keeps what is done.

    Buckets are reached with the credentials of the environment
    (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_..., AZURE_...).

    [bold]Examples[/]

      deepfake scan videos --output results --embedded
      deepfake scan s3://bucket/2026/ --output s3://bucket/verdicts --url triton:8001
      deepfake scan clips.parquet --column url --output results --url triton:8001,triton2:8001
      deepfake scan s3://bucket/in/ --output s3://bucket/out --engine ray --url triton:8001
      deepfake scan --status --output results --json
      deepfake scan --plan 10e6,900

    [bold]Exit codes[/]

      0    every input of this run has a verdict
      2    a wrong option or source, or an output that cannot be written
      4    server unreachable or failed; what is done is kept
      5    some inputs have no verdict; their rows say why
      130  interrupted; what is done is kept
    """
    if upkeep.plan is not None:
        print_plan(parse_plan(upkeep.plan), as_json=as_json)
        return
    if output is None:
        raise OptionError("name the folder or the bucket prefix of the results as `output`")
    if engine not in ENGINES:
        raise OptionError(f"`engine` is {engine!r}; allowed: {', '.join(ENGINES)}")
    storage = open_storage(output)
    if upkeep.status or upkeep.compact:
        if sources:
            raise OptionError("`status` and `compact` look at `output` alone; leave out the sources")
        (compact_results if upkeep.compact else print_status)(storage, as_json=as_json)
        return
    if not sources:
        raise OptionError("name what is to be scanned: a folder, a pattern, a bucket prefix or a manifest")
    screen = Console(stderr=True, highlight=False, soft_wrap=True)
    job = Scan(sources=sources, column=column, retry_failed=retry_failed)
    tally = ScanTally()
    with terminated_as_interrupted(), ExitStack() as stack:
        with screen.status("looking at the sources"):
            inputs = job.inputs()  # a wrong path is said whether or not a server runs
        connection = replace(stack.enter_context(server.serving(screen.status)), bulk=True)
        yield_cores(_niceness(engine), session=NICE)
        with DeepfakeClient(connection, model=server.model) as client:
            model = client.model().identity
        setup = Setup(connection=connection, model=model.name, options=options, limits=limits, faces=faces)
        with screen.status("looking at the results that are there"):
            todo = job.todo(inputs, storage, setup, model, tally)
        port = stack.enter_context(served_metrics(tally, metrics_port))
        if port is not None:
            screen.print(f"metrics: http://localhost:{port}/metrics")
        job.write_facts(storage, setup, model, tally, "running")
        state, error = "interrupted", None
        try:
            with shown_progress(screen, tally), todo:
                if engine == "ray":
                    scan_on_ray(todo, setup, storage, tally)
                else:
                    processes = cores or usable_cores()
                    asyncio.run(scan_here(todo, setup, storage, tally, processes=processes))
            state = "finished"
        except KeyboardInterrupt:
            pass
        except DeepfakeError as exc:
            state, error = "failed", exc
        with suppress(OptionError) if error else ExitStack():
            job.write_facts(storage, setup, model, tally, state)
    _finish(screen, tally, output, state, error, as_json=as_json)


def _niceness(engine: str) -> int:
    """Return by how much this program yields the cores.

    Loading Ray takes seconds of CPU time, and its actors have their next batch already, so with a cluster it yields
    as much as those that do the work. One that Ray starts here must be up within 30 s, also beside busy programs.
    """
    return entry.NICE if engine == "ray" and os.environ.get("RAY_ADDRESS") else NICE


def _finish(
    screen: Console, tally: ScanTally, output: str, state: str, error: DeepfakeError | None, *, as_json: bool
) -> NoReturn:
    """Say what came out, and end with the exit code of it."""
    print_summary(screen, tally, output, state, as_json=as_json)
    if error is not None:
        print_error(error)
    if state != "finished":
        screen.print(escape("what is done is kept; the same command does the rest"), style="yellow")
    code = EXIT_INTERRUPTED if state == "interrupted" else EXIT_SOME_INPUTS_FAILED if tally.failed else 0
    raise typer.Exit(error.exit_code if error is not None else code)
