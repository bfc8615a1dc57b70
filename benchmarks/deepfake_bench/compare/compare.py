"""`deepfake bench compare`: the same crops through the same ONNX file, by everything a user could have chosen.

All contenders run in turn in every round, under the same load generator, while the others are paused; ratios are
taken within a round, so that a machine that is busy elsewhere disturbs them alike, and their medians over rounds are
reported. A contender whose probabilities are not the reference's is not timed, and one that cannot be installed or
started is reported with the reason.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from deepfake_bench.compare.contenders import Contender, Sample, ServerContender, start_peer
from deepfake_bench.compare.environments import PeerUnavailableError
from deepfake_bench.compare.peer_list import IN_PROCESS, Peer, peers
from deepfake_bench.load.statistics import Latency
from deepfake_bench.machine.environment import environment, usable_cores, write_results
from deepfake_bench.machine.tables import table_console
from deepfake_bench.server.reference import OnnxReference
from deepfake_bench.server.serving import Server, embedded_server
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, RepositoryOption
from deepfake_preprocess.errors import OptionError

PACKAGES = ("numpy", "onnxruntime", "tritonclient", "grpcio", "torch", "timm", "fastapi", "uvicorn")
SERVED = {"Triton, gRPC": "grpc", "Triton, HTTP": "http", "Triton, gRPC and shared memory": "grpc-shm"}
"""Our server, by how crops get there."""
ONE, MANY = 1, 32
"""Requests of one crop in flight."""
TRIAL_S = 2.0
TRIALS = 2
"""Of each setting of a peer, and of each way to our server, in turn; the one with the best median is compared."""

Round = Mapping[str, Mapping[int, Sample]]
"""One round: by contender and concurrency."""


def served_contenders(server: Server) -> list[Contender]:
    """Return the server, once for each protocol.

    Raises:
        DeepfakeError: its probabilities are not the reference's.
    """
    assert server.root is not None
    root = server.root
    targets = {name: server.target(protocol) for name, protocol in SERVED.items()}
    differences = {name: server.verify(target) for name, target in targets.items()}
    setting = ", ".join(f"{key} {value}" for key, value in server.arrangement.items())
    return [
        ServerContender(
            name,
            setting,
            differences[name] or 0.0,
            target=target,
            crops=server.crops,
            root=root,
            stop=lambda: None,  # it is not ours to end
        )
        for name, target in targets.items()
    ]


def trial_rates(contenders: Sequence[Contender]) -> list[float]:
    """Return what each takes with 32 in flight, in crops per second; zeros where there is nothing to choose."""
    if len(contenders) < 2:
        return [0.0] * len(contenders)
    rounds = [[item.measure(MANY, TRIAL_S).crops_per_s for item in contenders] for _ in range(TRIALS)]
    return [round(median(rates), 1) for rates in zip(*rounds, strict=True)]


def best_setting(settings: Sequence[Contender]) -> tuple[Contender, list[dict[str, Any]]]:
    """Try the settings of one peer in turn, close all but the fastest, and return it with what was tried."""
    rates = trial_rates(settings)
    best = settings[rates.index(max(rates))]
    for contender in settings:
        if contender is not best:
            contender.close()
    return best, _tried(settings, rates)


def _tried(contenders: Sequence[Contender], rates: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {"name": contender.name, "setting": contender.setting, "crops_per_s": rate}
        for contender, rate in zip(contenders, rates, strict=True)
        if rate
    ]


def summary(contender: Contender, rounds: list[Round]) -> dict[str, Any]:
    """Return one contender's figures as plain JSON data: medians over rounds, and the rounds themselves."""
    levels = {}
    for concurrency in (ONE, MANY):
        samples = [item[contender.name][concurrency] for item in rounds]
        errors: dict[str, int] = {}
        for sample in samples:
            for status, count in sample.errors.items():
                errors[status] = errors.get(status, 0) + count
        latencies = [sample.latencies_s for sample in samples if sample.latencies_s is not None]
        levels[str(concurrency)] = {
            "crops_per_s": round(median(sample.crops_per_s for sample in samples), 1),
            "latency": asdict(Latency.of(np.concatenate(latencies))) if latencies else None,
            "cpu_ms_per_crop": round(median(sample.cpu_ms_per_crop for sample in samples), 2),
            "errors": errors,
            "rounds_crops_per_s": [round(sample.crops_per_s, 1) for sample in samples],
        }
    return {
        "name": contender.name,
        "setting": contender.setting,
        "largest_probability_difference": contender.difference,
        "concurrency": levels,
    }


def ratios(ours_name: str, names: list[str], rounds: list[Round]) -> dict[str, dict[str, float | None]]:
    """Return ours against each other contender: medians over rounds of ratios within a round.

    ``throughput`` at 32 in flight (above 1: ours is faster), ``p99`` at 32 and ``p50_alone`` at 1 (below 1: ours
    waits less); a percentile is None against engines, which have no requests of one crop at 32.
    """
    found: dict[str, dict[str, float | None]] = {}
    for name in names:
        pairs = [(item[ours_name], item[name]) for item in rounds]
        found[name] = {
            "throughput": _median_ratio((ours[MANY].crops_per_s, other[MANY].crops_per_s) for ours, other in pairs),
            **{
                key: _median_ratio(
                    (_quantile(ours[load], share), _quantile(other[load], share)) for ours, other in pairs
                )
                for key, load, share in (("p99", MANY, 0.99), ("p50_alone", ONE, 0.5))
            },
        }
    return found


def best_engine_ratio(ours: str, engines: list[str], rounds: list[Round]) -> dict[str, float | None]:
    """Return ours against the best in-process engine of each round: throughput at 32, and latency alone (p50)."""
    if not engines:
        return {"throughput": None, "p50_alone": None}
    return {
        "throughput": _median_ratio(
            (item[ours][MANY].crops_per_s, max(item[name][MANY].crops_per_s for name in engines)) for item in rounds
        ),
        "p50_alone": _median_ratio(
            (
                _quantile(item[ours][ONE], 0.5),
                min(found for name in engines if (found := _quantile(item[name][ONE], 0.5)) is not None),
            )
            for item in rounds
        ),
    }


def _quantile(sample: Sample, share: float) -> float | None:
    if sample.latencies_s is None or not len(sample.latencies_s):
        return None
    return float(np.quantile(sample.latencies_s, share))


def _median_ratio(pairs: Iterable[tuple[float | None, float | None]]) -> float | None:
    values = [ours / other for ours, other in pairs if ours is not None and other]
    return round(median(values), 3) if values else None


def compare(
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    model: Annotated[str | None, typer.Option(help="Model to measure; the first one by default.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Its checkpoint, with its spec beside it, for the server with eager PyTorch.")
    ] = None,
    peer: Annotated[str, typer.Option(help="Only peers whose names hold one of these words, comma-separated.")] = "",
    rounds: Annotated[int, typer.Option(help="How often the contenders alternate.", min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="Length of one measurement.", min=0.1)] = 4.0,
    output: Annotated[
        Path | None, typer.Option(help="Results file; by default benchmarks/results/MACHINE-compare.json.")
    ] = None,
) -> None:
    """Compare the embedded Triton with what else could have run the same ONNX file.

    In-process ONNX Runtime and OpenVINO, LitServe, BentoML, Ray Serve, and FastAPI with eager PyTorch (with
    --checkpoint). Each is installed once into an environment of its own in the cache folder, is tried in several
    settings, and is compared in its best one, after its answers were found equal. So is ours: over gRPC, HTTP, and
    gRPC with shared memory.

    [bold]Example[/]

      deepfake bench compare --repository model_repository --checkpoint detector.safetensors
    """
    screen = Console(stderr=True, highlight=False, markup=False)
    words = [word.strip().lower() for word in peer.split(",") if word.strip()]
    # Ends by an exception, so that no peer outlives this process.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, before)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deepfake-bench-")))
        server = stack.enter_context(embedded_server(repository, model=model))
        assert server.reference is not None
        listed = peers(server.reference, cores=usable_cores(), max_batch=server.max_batch_size, checkpoint=checkpoint)
        names = list(dict.fromkeys(item.name for item in listed))
        wanted = [name for name in names if not words or any(word in name.lower() for word in words)]
        if not wanted:
            raise OptionError(f"--peer is {peer!r}; known are: {', '.join(names)}")
        reference = OnnxReference(server.reference)
        expected = np.concatenate([reference(crop[None]) for crop in server.crops])
        contenders = served_contenders(server)
        for contender in contenders:
            stack.callback(contender.close)
        data: dict[str, Any] = {
            "benchmark": "compare",
            "environment": environment(PACKAGES),
            "model": server.identity,
            "seconds_per_measurement": seconds,
            "requirements": {item.name: list(item.requirements) for item in listed if item.name in wanted},
            "settings_tried": [],
            "not_measured": [],
        }
        for name in wanted:
            started = _start([item for item in listed if item.name == name], server, expected, scratch, data, screen)
            if started is not None:
                contenders.append(started)
                stack.callback(started.close)
        if checkpoint is None and not words:
            reason = "--checkpoint was not given"
            data["not_measured"].append({"name": "FastAPI + eager PyTorch", "setting": "", "reason": reason})
        rates = trial_rates(contenders[: len(SERVED)])
        data["settings_tried"] += _tried(contenders[: len(SERVED)], rates)
        ours = contenders[rates.index(max(rates))].name
        done: list[Round] = []
        try:
            for number in range(rounds):
                screen.print(f"round {number + 1} of {rounds}")
                done.append(
                    {item.name: {level: item.measure(level, seconds) for level in (ONE, MANY)} for item in contenders}
                )
        finally:  # whole rounds are kept, whatever ended the rest
            if done:
                data |= _figures(ours, contenders, done)
                screen.print(f"written to {write_results('compare', data, path=output)}")
    table_console().print(_table(data))
    for item in data["not_measured"]:
        screen.print(f"not measured: {item['name']}, {item['setting']}: {item['reason']}")


def _start(
    settings: list[Peer],
    server: Server,
    expected: npt.NDArray[np.float32],
    scratch: Path,
    data: dict[str, Any],
    screen: Console,
) -> Contender | None:
    """Start a peer in all settings and return the best; what was tried and what failed is noted in `data`."""
    started: list[Contender] = []
    try:
        for peer in settings:
            try:
                started.append(
                    start_peer(peer, crops=server.crops, expected=expected, scratch=scratch, announce=screen.print)
                )
            except PeerUnavailableError as exc:
                screen.print(f"not measured: {exc}")
                data["not_measured"].append({"name": peer.name, "setting": peer.setting, "reason": str(exc)})
        if not started:
            return None
        best, tried = best_setting(started)
    except BaseException as exc:
        for contender in started:
            contender.close()
        if not isinstance(exc, PeerUnavailableError):
            raise
        data["not_measured"].append({"name": settings[0].name, "setting": "", "reason": str(exc)})
        return None
    data["settings_tried"] += tried
    return best


def _figures(ours: str, contenders: list[Contender], rounds: list[Round]) -> dict[str, Any]:
    others = [item.name for item in contenders if item.name != ours]
    engines = [name for name in others if name.endswith(IN_PROCESS)]
    return {
        "rounds": len(rounds),
        "contenders": [summary(item, rounds) for item in contenders],
        "ours": ours,
        "ours_over": ratios(ours, others, rounds),
        "ours_over_best_engine": best_engine_ratio(ours, engines, rounds),
    }


def _table(data: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold")
    for column in ("contender", "setting"):
        table.add_column(column)
    for column in ("crops/s", "p50", "p99 ms", "alone: p50 ms", "ours: throughput", "p99", "alone"):
        table.add_column(column, justify="right")
    for item in data["contenders"]:
        many, alone = item["concurrency"][str(MANY)], item["concurrency"][str(ONE)]
        waits, ratio = many["latency"] or {}, data["ours_over"].get(item["name"], {})
        table.add_row(
            item["name"],
            item["setting"],
            _text(many["crops_per_s"], ".1f"),
            _text(waits.get("p50_ms"), ".1f"),
            _text(waits.get("p99_ms"), ".1f"),
            _text(alone["latency"]["p50_ms"], ".1f"),
            *(_text(ratio.get(key), ".2f") for key in ("throughput", "p99", "p50_alone")),
        )
    return table


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
