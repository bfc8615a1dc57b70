"""`deepfake bench tune`: how the embedded server should batch and run a model here, under recorded traffic.

What counts is the rate of videos at which the 99th percentile of a request's latency stays within a bound (the
"server" scenario of MLPerf Inference, Reddi et al., 2020). Every setting is served by a private Triton and first
checked to give the model file's scores; another precision must also give every clip its verdict. What wins the search
has to win again, side by side with the present setting, before it is written.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deepfake_bench.load.process import LoadProcesses
from deepfake_bench.load.senders import Target
from deepfake_bench.load.traffic import Traffic, labels_of, record
from deepfake_bench.machine import processes
from deepfake_bench.machine.environment import environment, write_results
from deepfake_bench.machine.tables import table_console
from deepfake_bench.pipeline.clips import find_clips
from deepfake_bench.server.reference import OnnxReference, verify_served
from deepfake_bench.tune.search import CLIMB, STEP, Setting, highest_rate, respects, search
from deepfake_bench.tune.server import Replay, Running, TunedTriton
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, RepositoryOption
from deepfake_preprocess.contract import triton_config
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.model_dir import versions_of
from deepfake_preprocess.contract.repository import MODEL_FILE
from deepfake_preprocess.contract.triton_config import ServingOptions
from deepfake_preprocess.errors import DeepfakeError, RepositoryError
from deepfake_serve._repository import ServedModel, available_cores, check_repository, model_share

PACKAGES = ("numpy", "onnxruntime", "tritonclient", "grpcio", "protobuf")
VERIFIED_CROPS = 16
FIRST_SHARE = 0.6
"""Of the throughput without pauses: the first rate that is tried of the present setting."""
CONFIRMATIONS = 3


class Tuning:
    """One search on one model.

    Args:
        repository: the model repository.
        name: of the model.
        clips: whose traffic is replayed.
        num_frames: sampled of each clip.
        p99_ms: the bound.
        window_s: measured time of one replay.
        seconds: after which no further setting is tried.
        announce: called with one line on each step.
    """

    def __init__(
        self,
        repository: Path,
        name: str | None,
        clips: Sequence[Path],
        *,
        num_frames: int,
        p99_ms: float,
        window_s: float,
        seconds: float,
        announce: Callable[[str], None],
    ) -> None:
        self.repository, self.clips = repository, list(clips)
        self.model = _served(repository, name)
        self.cores = available_cores()
        self.manifests, self.not_considered = _versions(self.model)
        self.tried: list[dict[str, Any]] = []
        self.confirmation: list[dict[str, Any]] = []
        self.start = Setting(self.model.spec.version, _present_options(self.model, self.cores))
        self.best, self.best_rate = self.start, 0.0
        self.objection = ""
        self._num_frames, self._p99_ms, self._window_s, self._announce = num_frames, p99_ms, window_s, announce
        self._until = time.monotonic() + seconds
        self._floor_rate = 0.0
        self.traffic = self._record()

    def run(self) -> None:
        """Search; afterwards `best` is what to write, which is `start` where nothing better was found.

        Raises:
            DeepfakeError: no setting holds the bound at any rate.
        """
        self._drop_other_verdicts()
        self._try(self.start, self._measure_start)
        production = _production_batch(self.model)
        self.best = search(
            self.start,
            lambda setting: respects(
                setting, cores=self.cores, largest_batch=production, versions=sorted(self.manifests)
            ),
            lambda setting: self._try(setting, self._challenge),
            self._out_of_time,
        )
        if not self.best_rate:
            seen = [item["replays"][-1]["latency"]["p99_ms"] for item in self.tried if item["replays"]]
            least = min((value for value in seen if value is not None), default=float("nan"))
            raise DeepfakeError(
                f"no setting answers 99% of the requests within {self._p99_ms:g} ms, not even at "
                f"{self._floor_rate:.2g} videos/s: the least was {least:.0f} ms; give a larger --p99"
            )
        if self.best != self.start:
            self.objection = self._objection()
        if self.objection:
            self.best = self.start

    def _record(self) -> Traffic:
        self._announce("recording the clips' traffic")
        with self._triton(self.start) as triton:
            return record(triton.grpc_url, self.model.spec.name, self.clips, num_frames=self._num_frames)

    def _drop_other_verdicts(self) -> None:
        for version, manifest in list(self.manifests.items()):
            if version == self.start.version:
                continue
            self._announce(f"verdicts of version {version}, {manifest.precision}")
            try:
                with self._triton(replace(self.start, version=version)) as triton:
                    labels = labels_of(triton.grpc_url, self.model.spec.name, self.clips, num_frames=self._num_frames)
                other = [Path(name).name for name in labels if labels[name] != self.traffic.labels[name]]
                reason = f"other verdicts on {', '.join(other)}" if other else ""
            except DeepfakeError as exc:
                reason = str(exc)
            if reason:
                del self.manifests[version]
                self.not_considered[str(version)] = f"{manifest.precision}: {reason}"

    def _triton(self, setting: Setting) -> TunedTriton:
        manifest = self.manifests[setting.version]
        return TunedTriton(self.repository, self.model.spec.name, manifest, setting.options)

    @contextmanager
    def _serving(self, setting: Setting) -> Iterator[Running]:
        """Serve a setting, checked to give the scores of its file.

        Raises:
            DeepfakeError: it does not.
        """
        name = self.model.spec.name
        with self._triton(setting) as triton:
            target = Target("grpc", triton.grpc_url, name)
            path = self.model.version_dir.parent / str(setting.version) / MODEL_FILE
            verify_served(target, self.traffic.some_crops(VERIFIED_CROPS), OnnxReference(path))
            with LoadProcesses(target, self.traffic.requests) as load:
                running = Running(triton, name, setting.version, load, self.traffic)
                running.full_load()  # connections, allocations and caches
                yield running

    def _try(self, setting: Setting, measure: Callable[[Running, list[Replay]], float | None]) -> bool:
        """Measure a setting, note it, and return whether it is the best so far."""
        self._announce(str(setting))
        replays: list[Replay] = []
        rate, reason = None, ""
        try:
            with self._serving(setting) as running:
                rate = measure(running, replays)
        except DeepfakeError as exc:
            if setting == self.start:
                raise
            reason = str(exc)
        better = rate is not None and rate > self.best_rate
        if better and rate is not None:
            self.best, self.best_rate = setting, rate
        self.tried.append(
            {
                "version": setting.version,
                "precision": self.manifests[setting.version].precision,
                **asdict(setting.options),
                "videos_per_s": None if rate is None else round(rate, 4),
                "better": better,
                "failed": reason,
                "replays": [asdict(item) for item in replays],
            }
        )
        return better

    def _holds(self, running: Running, replays: list[Replay]) -> Callable[[float], bool]:
        def holds(rate: float) -> bool:
            replays.append(running.replay(rate, window_s=self._window_s))
            return replays[-1].holds(self._p99_ms)

        return holds

    def _measure_start(self, running: Running, replays: list[Replay]) -> float | None:
        most = running.full_load() * len(self.traffic.videos) / len(self.traffic.requests)
        rate = highest_rate(self._holds(running, replays), FIRST_SHARE * most)
        self._floor_rate = min(item.videos_per_s for item in replays)
        return rate

    def _challenge(self, running: Running, replays: list[Replay]) -> float | None:
        holds = self._holds(running, replays)
        first = max(STEP * self.best_rate, self._floor_rate)
        if not holds(first):
            return None
        return highest_rate(holds, CLIMB * first, known=first, out_of_time=self._out_of_time)

    def _out_of_time(self) -> bool:
        return time.monotonic() > self._until

    def _objection(self) -> str:
        """Return why the best setting is none after all: beside the present one, in turn, and under other luck."""
        with ExitStack() as stack:
            sides = {}
            for name, setting in (("best", self.best), ("start", self.start)):
                self._announce(f"confirming: {setting}")
                sides[name] = stack.enter_context(self._serving(setting))
                if name == "best":
                    labels = labels_of(
                        sides[name].grpc_url, self.model.spec.name, self.clips, num_frames=self._num_frames
                    )
                    if labels != self.traffic.labels:
                        return "it gives other verdicts"
                stack.callback(processes.resume, sides[name].root)
                processes.pause(sides[name].root)
            replays: dict[str, list[Replay]] = {name: [] for name in sides}
            for number in range(CONFIRMATIONS):
                for name, running in sides.items():
                    with processes.running(running.root):
                        replay = running.replay(self.best_rate, window_s=self._window_s, seed=1 + number)
                    replays[name].append(replay)
                    self.confirmation.append({"side": name, **asdict(replay)})
        waits = {name: statistics.median(_p99(item) for item in items) for name, items in replays.items()}
        held = sum(item.holds(self._p99_ms) for item in replays["best"])
        if held > CONFIRMATIONS / 2 and waits["best"] < waits["start"]:
            return ""
        return (
            f"beside the present setting it kept the bound {held} times of {CONFIRMATIONS}, with a p99 of "
            f"{waits['best']:.0f} against {waits['start']:.0f} ms"
        )


def _p99(replay: Replay) -> float:
    return float("inf") if replay.latency.p99_ms is None else replay.latency.p99_ms


def _served(repository: Path, name: str | None) -> ServedModel:
    models = check_repository(repository, [name] if name else ())
    if len(models) > 1:
        names = ", ".join(model.spec.name for model in models)
        raise RepositoryError(f"{repository} holds {names}; name one with --model")
    return models[0]


def _present_options(model: ServedModel, cores: int) -> ServingOptions:
    batching, share = model.config.dynamic_batching, model_share(model, cores)
    return ServingOptions(
        model.config.max_batch_size,
        batching.max_queue_delay_microseconds,
        max(batching.preferred_batch_size, default=None),
        share.instances,
        share.threads,
        tuned_for_cores=cores,
    )


def _production_batch(model: ServedModel) -> int:
    """Return the largest batch that was proved: that of the production configuration."""
    config = triton_config.read_config(model.version_dir.parent / triton_config.CONFIG_NAME)
    return max(int(config.max_batch_size), int(model.config.max_batch_size))


def _versions(model: ServedModel) -> tuple[dict[int, Manifest], dict[str, str]]:
    """Return the versions of the same network that may be served, and why others may not.

    A version is in the repository because its export's gate accepted its precision; it counts here when it was made
    from the same checkpoint and spec and is whole. Of each precision the newest counts.
    """
    model_dir = model.version_dir.parent
    served = Manifest.read(model.version_dir)
    found, others = {model.spec.version: served}, {}
    for version in reversed(versions_of(model_dir)):
        if version == model.spec.version:
            continue
        try:
            manifest = Manifest.read(model_dir / str(version))
            manifest.verify(model_dir / str(version))
        except RepositoryError as exc:
            others[str(version)] = str(exc)
            continue
        if manifest.spec != replace(model.spec, version=version):
            others[str(version)] = "another checkpoint or spec"
        elif MODEL_FILE not in manifest.files or manifest.precision in {item.precision for item in found.values()}:
            others[str(version)] = f"{manifest.precision}: nothing new to serve"
        else:
            found[version] = manifest
    return found, others


def tune(
    clips: Annotated[list[str], typer.Argument(metavar="CLIP...", help="Videos, folders or patterns.")],
    p99: Annotated[
        float, typer.Option(metavar="MS", help="Bound: 99% of the requests must be answered within it.", min=0.1)
    ],
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    model: Annotated[str | None, typer.Option(help="Model to tune; may be left out where there is one.")] = None,
    minutes: Annotated[float, typer.Option(help="Try no further setting after so long.", min=0.01)] = 10.0,
    frames: Annotated[int, typer.Option(help="Frames sampled of each clip.", min=1)] = 32,
    window: Annotated[float, typer.Option(help="Measured seconds of one replay.", min=0.2)] = 5.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Search, and leave the repository as it is.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Results file; by default benchmarks/results/MACHINE-tune.json.")
    ] = None,
) -> None:
    """Search how the embedded server should run a model on this machine, under the traffic of real clips.

    The clips are analyzed once, and their requests recorded with their times. Each setting (instances and threads,
    largest and preferred batch, queue delay, and the precisions whose versions the repository holds) is served by a
    private Triton; what counts is how many videos per second it takes while 99% of the requests are answered within
    the bound. Scores must be those of the model file, and verdicts of the clips equal, before anything is timed.

    The winner must win again, in turn with the present setting; then it is written into the model's
    configs/embedded.pbtxt. `deepfake serve` uses it on machines with as many cores, and exports keep it.

    [bold]Examples[/]

      deepfake bench tune clips/ --p99 200
      deepfake bench tune clip.mp4 --p99 500 --minutes 3 --dry-run
    """
    paths = find_clips(clips)
    screen = Console(stderr=True, highlight=False, markup=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(20), TimeElapsedColumn())
    with Progress(*columns, console=screen, transient=True) as progress:
        task = progress.add_task("", total=60 * minutes)
        started = time.monotonic()

        def announce(line: str) -> None:
            progress.update(task, description=line, completed=time.monotonic() - started)

        tuning = Tuning(
            repository,
            model,
            paths,
            num_frames=frames,
            p99_ms=p99,
            window_s=window,
            seconds=60 * minutes,
            announce=announce,
        )
        try:
            tuning.run()
        finally:  # what was measured is kept, whatever ended the rest
            if tuning.tried:
                path = write_results("tune", _data(tuning, p99, window), path=output)
                screen.print(f"written to {path}")
    table_console().print(_table(tuning))
    if tuning.objection:
        typer.echo(f"the present setting stays; {tuning.objection}")
    elif tuning.best == tuning.start:
        typer.echo("the present setting stays: no other was better by more than noise")
    elif dry_run:
        typer.echo(f"best: {tuning.best}; nothing was changed (--dry-run)")
    else:
        written = _write(tuning)
        typer.echo(f"best: {tuning.best}; written to {written}; servers take it when they start")


def _write(tuning: Tuning) -> Path:
    from deepfake_export.repository.activation import rollback, write_serving_options

    name = tuning.model.spec.name
    if tuning.best.version != tuning.start.version:
        rollback(tuning.repository, name, version=tuning.best.version)
    return write_serving_options(tuning.repository, name, tuning.best.options)


def _data(tuning: Tuning, p99_ms: float, window_s: float) -> dict[str, Any]:
    manifest = tuning.manifests[tuning.start.version]
    rates = [item["videos_per_s"] or 0.0 for item in tuning.tried]
    return {
        "benchmark": "tune",
        "environment": environment(PACKAGES),
        "model": {"name": manifest.spec.name, "precision": manifest.precision, "version": manifest.spec.version},
        "p99_bound_ms": p99_ms,
        "seconds_per_replay": window_s,
        "traffic": tuning.traffic.summary(),
        "start": {"version": tuning.start.version, **asdict(tuning.start.options), "videos_per_s": rates[0]},
        "best": {"version": tuning.best.version, **asdict(tuning.best.options)},
        "best_is_start": tuning.best == tuning.start,
        "objection": tuning.objection,
        "confirmation": tuning.confirmation,
        "tried": tuning.tried,
        "not_considered": tuning.not_considered,
    }


def _table(tuning: Tuning) -> Table:
    table = Table(box=None, header_style="bold")
    for column in ("instances x threads", "batch", "preferred", "delay us", "precision"):
        table.add_column(column)
    for column in ("videos/s within the bound", "p99 ms at", "videos/s", "batch formed"):
        table.add_column(column, justify="right")
    for item in tuning.tried:
        last = item["replays"][-1] if item["replays"] else None
        waited = np.nan if last is None or last["latency"]["p99_ms"] is None else last["latency"]["p99_ms"]
        table.add_row(
            f"{item['instances']} x {item['threads']}",
            str(item["max_batch_size"]),
            str(item["preferred_batch_size"] or "-"),
            str(item["queue_delay_us"]),
            item["precision"],
            item["failed"][:40] or (f"{item['videos_per_s']:.2f}" if item["videos_per_s"] else "less"),
            f"{waited:.0f}",
            "-" if last is None else f"{last['videos_per_s']:.2f}",
            "-" if last is None or last["mean_batch"] is None else f"{last['mean_batch']:.1f}",
            style="bold" if item["better"] else "",
        )
    return table
