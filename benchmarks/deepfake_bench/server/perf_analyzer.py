"""`deepfake bench perf-analyzer`: NVIDIA's own load generator beside ours, as an independent check.

Both send the same load to the same server, in turn. The binary comes with NVIDIA's Triton SDK container and as the
package `perf-analyzer`; see https://github.com/triton-inference-server/perf_analyzer.
"""

from __future__ import annotations

import csv
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deepfake_bench.load.measure import Level, Measurement, Stopping, measure_level, parse_levels
from deepfake_bench.load.process import LoadProcesses
from deepfake_bench.load.senders import Target
from deepfake_bench.machine.environment import environment, write_results
from deepfake_bench.machine.tables import table_console
from deepfake_bench.server.serving import Server, embedded_server, running_server
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, RepositoryOption
from deepfake_preprocess.errors import DeepfakeError

PACKAGES = ("numpy", "onnxruntime", "tritonclient", "grpcio")
BINARY = "perf_analyzer"
AGREEMENT = 0.10
"""Largest difference of throughput at which two generators are said to agree."""
STABILITY_PERCENT = 50
"""How much its three last windows may differ; it reports nothing where they differ more. What matters is the mean."""
MAX_TRIALS = 10
OUR_WINDOWS = 4
TIMEOUT_S = 300.0
HOW_TO_GET = "pip install perf-analyzer (needs glibc 2.38), or NVIDIA's Triton SDK container (tritonserver:*-py3-sdk)"


class PerfAnalyzerUnavailableError(DeepfakeError):
    """NVIDIA's perf_analyzer cannot run here; the message says why and what would be needed."""


@dataclass(frozen=True, slots=True)
class Report:
    """One line of perf_analyzer's report.

    Attributes:
        concurrency: requests in flight.
        crops_per_s: throughput; its report calls crops inferences.
        p50_ms: latency as its client saw it.
        p90_ms: likewise.
        p95_ms: likewise.
        p99_ms: likewise.
        queue_ms: mean wait in the server.
        compute_ms: mean time in the backend, with input and output.
    """

    concurrency: int
    crops_per_s: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    queue_ms: float
    compute_ms: float


def find_binary(given: Path | None) -> Path:
    """Return perf_analyzer, checked to run here.

    Raises:
        PerfAnalyzerUnavailableError: it is not there, or does not run.
    """
    found = given or shutil.which(BINARY)
    if found is None:
        raise PerfAnalyzerUnavailableError(f"{BINARY} is not on the PATH; get it with: {HOW_TO_GET}")
    try:
        answer = subprocess.run([str(found), "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise PerfAnalyzerUnavailableError(f"{found} does not run: {exc}; get it with: {HOW_TO_GET}") from exc
    if answer.returncode:
        reason = " ".join((answer.stderr or answer.stdout).split())
        raise PerfAnalyzerUnavailableError(f"{found} does not run: {reason}; get it with: {HOW_TO_GET}")
    return Path(found)


def read_report(path: Path) -> list[Report]:
    """Return the lines of a report that perf_analyzer wrote with ``-f``: CSV with times in microseconds.

    Raises:
        PerfAnalyzerUnavailableError: it is another format.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [_report(row) for row in csv.DictReader(stream)]
    except (OSError, KeyError, ValueError, TypeError) as exc:
        raise PerfAnalyzerUnavailableError(
            f"the report of perf_analyzer cannot be read ({type(exc).__name__}: {exc}); known is that of 2.60"
        ) from exc


def _report(row: Mapping[str, str]) -> Report:
    def ms(*columns: str) -> float:
        return round(sum(float(row[column]) for column in columns) / 1_000, 3)

    return Report(
        concurrency=int(row["Concurrency"]),
        crops_per_s=float(row["Inferences/Second"]),
        p50_ms=ms("p50 latency"),
        p90_ms=ms("p90 latency"),
        p95_ms=ms("p95 latency"),
        p99_ms=ms("p99 latency"),
        queue_ms=ms("Server Queue"),
        compute_ms=ms("Server Compute Input", "Server Compute Infer", "Server Compute Output"),
    )


def run_binary(binary: Path, target: Target, concurrency: int, *, window_s: float) -> Report:
    """Let perf_analyzer measure one concurrency until its own windows agree.

    Raises:
        PerfAnalyzerUnavailableError: it fails.
    """
    with tempfile.TemporaryDirectory(prefix="deepfake-bench-") as folder:
        path = Path(folder) / "report.csv"
        command = [
            *(str(binary), "-m", target.model, "-u", target.url, "-i", "grpc", "--async"),
            *("-b", str(target.crops_per_request), "--input-data", "random"),
            *("--concurrency-range", str(concurrency), "--measurement-interval", str(round(1_000 * window_s))),
            *("--stability-percentage", str(STABILITY_PERCENT), "--max-trials", str(MAX_TRIALS), "-f", str(path)),
        ]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise PerfAnalyzerUnavailableError(f"{binary} was not done within {TIMEOUT_S:g} s") from None
        if not path.is_file():
            reason = " ".join((answer.stderr or answer.stdout).split()[-40:])
            raise PerfAnalyzerUnavailableError(f"{binary} failed (exit code {answer.returncode}): {reason}")
        (report,) = read_report(path)
    return report


def compare_level(
    binary: Path,
    server: Server,
    target: Target,
    load: LoadProcesses,
    concurrency: int,
    *,
    window_s: float,
    rounds: int,
) -> dict[str, Any]:
    """Measure one concurrency with ours and theirs in turn, and return both with their differences.

    Each measurement of theirs lies between two of ours and is compared with their mean; differences are medians over
    the rounds. What changes on the machine meanwhile shows as a difference of ours from itself.
    """

    def measure() -> Measurement:
        return measure_level(
            load,
            Level(concurrency=concurrency),
            crops_per_request=target.crops_per_request,
            counters=server.counters,
            server=server.root,
            stopping=Stopping(window_s, max_windows=OUR_WINDOWS),
        )

    ours, theirs = [measure()], []
    for _ in range(rounds):
        theirs.append(run_binary(binary, target, concurrency, window_s=window_s))
        ours.append(measure())
    rates = [item.crops_per_s for item in ours]
    waits = [item.latency.p50_ms for item in ours]
    difference = _median_difference([item.crops_per_s for item in theirs], rates)
    return {
        "concurrency": concurrency,
        "ours": [asdict(item) for item in ours],
        "perf_analyzer": [asdict(item) for item in theirs],
        "throughput_difference": difference,
        "p50_difference": _median_difference([item.p50_ms for item in theirs], [wait for wait in waits if wait]),
        "ours_from_one_to_the_next": round(
            max(abs(after / before - 1) for before, after in itertools.pairwise(rates)), 4
        ),
        "agree": difference is not None and abs(difference) <= AGREEMENT,
    }


def _median_difference(theirs: Sequence[float], ours: Sequence[float]) -> float | None:
    if len(ours) != len(theirs) + 1:
        return None
    around = (fmean(pair) for pair in itertools.pairwise(ours))
    return round(median(their / our - 1 for their, our in zip(theirs, around, strict=True)), 4)


def perf_analyzer(
    binary: Annotated[Path | None, typer.Option(help="The binary; found on the PATH by default.")] = None,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    url: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Measure this running server (its gRPC port) instead.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to measure; the first one by default.")] = None,
    concurrency: Annotated[str, typer.Option(help="Requests in flight, comma-separated.")] = "1,8,32",
    crops: Annotated[int, typer.Option(help="Crops in each request.", min=1)] = 1,
    window: Annotated[float, typer.Option(help="Seconds of one window.", min=0.5)] = 3.0,
    rounds: Annotated[int, typer.Option(help="How often the two alternate.", min=1)] = 3,
    output: Annotated[
        Path | None, typer.Option(help="Results file; by default benchmarks/results/MACHINE-perf-analyzer.json.")
    ] = None,
) -> None:
    """Check our load generator against NVIDIA's perf_analyzer, on the same server under the same load.

    Where perf_analyzer cannot run, the results file says "not measured" and why.
    """
    levels = [level.concurrency for level in parse_levels(concurrency, "") if level.concurrency is not None]
    screen = Console(stderr=True, highlight=False, markup=False)
    data: dict[str, Any] = {"benchmark": "perf-analyzer", "environment": environment(PACKAGES)}
    try:
        found = find_binary(binary)
    except PerfAnalyzerUnavailableError as exc:
        path = write_results("perf-analyzer", {**data, "levels": "not measured", "reason": str(exc)}, path=output)
        screen.print(f"written to {path}")
        raise
    done: list[dict[str, Any]] = []
    with ExitStack() as stack:
        server = (
            stack.enter_context(embedded_server(repository, model=model))
            if url is None
            else running_server(url, "", model=model, reference=None)
        )
        target = server.target("grpc", crops)
        data |= {"model": server.identity, **server.arrangement, "crops_per_request": crops, "levels": done}
        load = stack.enter_context(LoadProcesses(target, server.crops))
        try:
            for level in levels:
                screen.print(f"{level} in flight")
                done.append(compare_level(found, server, target, load, level, window_s=window, rounds=rounds))
        finally:  # what was measured is kept, whatever ended the rest
            if done:
                screen.print(f"written to {write_results('perf-analyzer', data, path=output)}")
    table_console().print(_table(done))


def _table(levels: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold")
    for column in ("in flight", "ours", "perf_analyzer crops/s", "difference", "p50 difference", "ours, in turn"):
        table.add_column(column, justify="right")
    for item in levels:
        table.add_row(
            str(item["concurrency"]),
            *(f"{median(side['crops_per_s'] for side in item[key]):.1f}" for key in ("ours", "perf_analyzer")),
            f"{item['throughput_difference']:+.1%}",
            "-" if item["p50_difference"] is None else f"{item['p50_difference']:+.1%}",
            f"{item['ours_from_one_to_the_next']:.1%}",
        )
    return table
