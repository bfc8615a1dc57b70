"""How the embedded server should batch and run a model here, under recorded traffic.

What counts is the rate of videos at which the 99th percentile of a request's latency stays within a bound (the
"server" scenario of MLPerf Inference, Reddi et al., 2020). Every setting is served by a private Triton and first
checked to give the model file's scores; another engine or precision must also give every clip its verdict. What wins
the search has to win again, side by side with the present setting, before it is written.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from deepfake_bench.load.generator import Load
from deepfake_bench.load.measure import Measurement
from deepfake_bench.load.process import LoadProcesses
from deepfake_bench.machine import processes
from deepfake_bench.server.serving import Server, embedded_server, runnable_forms
from deepfake_bench.tune.search import CLIMB, STEP, described, highest_rate, neighbors, search
from deepfake_bench.tune.traffic import holds, p99_ms, record, replay
from deepfake_preprocess.contract import triton_config
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.triton_config import ServingOptions
from deepfake_preprocess.errors import DeepfakeError, RepositoryError, ServerTimeoutError
from deepfake_preprocess.support.engines import is_installed
from deepfake_preprocess.support.machine import usable_cores
from deepfake_serve import CheckedModel, check_repository, model_share

FULL_LOAD, FULL_LOAD_S = 32, 1.5
FIRST_SHARE = 0.6
"""The first rate that is tried, as a share of the present setting's throughput without pauses."""
CONFIRMATIONS = 3


class Tuning:
    """One search on one model of a repository, whose name may be None where there is one.

    The traffic of the clips is replayed, each time for `window_s`; `p99_ms` is the bound. After `seconds` no further
    setting is tried. `announce` is called with one line on each step.
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
        self.repository, self.p99_ms, self.window_s = repository, p99_ms, window_s
        self.model = _served(repository, name)
        self.cores = usable_cores()
        self.start = self.best = _present_options(self.model, self.cores)
        self.best_rate = 0.0
        self.tried: list[dict[str, Any]] = []
        self.confirmation: list[dict[str, Any]] = []
        self.objection = ""
        self._manifest = Manifest.read(self.model.version_dir)
        self._forms = [item for item in runnable_forms(self._manifest) if is_installed(item.engine)]
        self._same_verdicts = {(self.start.engine, self.start.precision)}
        self._record = partial(record, clips=clips, num_frames=num_frames)
        self._announce = announce
        self._until = time.monotonic() + seconds
        announce("recording the clips' traffic")
        with self._server(self.start) as server:
            self.traffic = self._record(server)

    def run(self) -> None:
        """Search; afterwards `best` is what to write, which is `start` where nothing better was found."""
        self._try(self.start)
        # The largest batch that was proved.
        production = triton_config.read_config(self.model.version_dir.parent / triton_config.CONFIG_NAME)
        largest = max(int(production.max_batch_size), int(self.model.config.max_batch_size))
        self.best = search(
            self.start,
            lambda setting: neighbors(setting, cores=self.cores, largest_batch=largest, forms=self._forms),
            self._try,
            self._out_of_time,
        )
        if not self.best_rate:
            waits = [item["replays"][-1]["latency"]["p99_ms"] or math.inf for item in self.tried if item["replays"]]
            raise DeepfakeError(
                f"no setting answers 99% of the requests within {self.p99_ms:g} ms, not even at "
                f"{self._least_rate():.2g} videos/s: the least was {min(waits):.0f} ms; raise `p99_ms`"
            )
        if self.best != self.start:
            self.objection = self._objection()
        if self.objection:
            self.best = self.start

    def write(self) -> Path:
        """Write the best setting into the repository and return the configuration, which servers then start with."""
        from deepfake_export.repository.activation import activate

        name = self.model.spec.name
        activate(self.repository, name, self.model.spec.version, options=self.best)
        return self.repository / name / triton_config.EMBEDDED_CONFIG_NAME

    def results(self) -> dict[str, Any]:
        """Return what was measured so far as plain JSON data."""
        spec, rate = self.model.spec, self.tried[0]["videos_per_s"] or 0.0
        return {
            "model": {
                "name": spec.name,
                "precision": self.start.precision,
                "engine": self.start.engine,
                "version": spec.version,
            },
            "p99_bound_ms": self.p99_ms,
            "seconds_per_replay": self.window_s,
            "traffic": {
                "clips": [clip.name for clip in self.traffic.labels],
                "labels": list(self.traffic.labels.values()),
                "requests": len(self.traffic.requests),
                "crops": sum(map(len, self.traffic.requests)),
            },
            "start": {**asdict(self.start), "videos_per_s": rate},
            "best": asdict(self.best),
            "best_is_start": self.best == self.start,
            "objection": self.objection,
            "confirmation": self.confirmation,
            "tried": self.tried,
        }

    def _other_verdicts(self, server: Server) -> list[str]:
        """Return the names of the clips whose verdicts a server gives otherwise than the present setting."""
        labels = self._record(server).labels
        return [clip.name for clip, label in labels.items() if label != self.traffic.labels[clip]]

    @contextmanager
    def _server(self, setting: ServingOptions) -> Iterator[Server]:
        """Serve a setting, from a repository with the configuration that an export would write for it."""
        text = triton_config.embedded_config(
            self.model.spec,
            max_batch_size=int(self.model.config.max_batch_size),
            options=setting,
            forms=self._manifest.served_forms,
        )
        version_dir = self.model.version_dir
        with tempfile.TemporaryDirectory(prefix="deepfake-bench-") as folder:
            model_dir = Path(folder) / self.model.spec.name
            config_path = model_dir / triton_config.EMBEDDED_CONFIG_NAME
            config_path.parent.mkdir(parents=True)
            config_path.write_text(text, encoding="utf-8")
            (model_dir / version_dir.name).symlink_to(version_dir.resolve(), target_is_directory=True)
            with embedded_server(Path(folder), instances=setting.instances, threads=setting.threads) as server:
                yield server

    @contextmanager
    def _loaded(self, setting: ServingOptions) -> Iterator[tuple[Server, LoadProcesses]]:
        """Serve a setting, checked to give its file's scores and all verdicts, with processes that can load it."""
        with self._server(setting) as server:
            if (form := (setting.engine, setting.precision)) not in self._same_verdicts:
                if other := self._other_verdicts(server):
                    self._forms = [item for item in self._forms if (item.engine, item.precision) != form]
                    raise DeepfakeError(f"other verdicts on {', '.join(other)}")
                self._same_verdicts.add(form)
            target = server.target("grpc")
            server.verify(target)
            with LoadProcesses(target, self.traffic.requests) as load:
                _full_load(load)  # connections, allocations and caches
                yield server, load

    def _try(self, setting: ServingOptions) -> bool:
        """Measure a setting, note it, and return whether it is the best so far."""
        self._announce(described(setting))
        replays: list[dict[str, Any]] = []
        rate, failed = None, ""
        try:
            with self._loaded(setting) as (server, load):
                rate = self._highest_rate(setting, server, load, replays)
        except DeepfakeError as exc:
            if setting == self.start:
                raise
            failed = str(exc)
        if better := (rate or 0.0) > self.best_rate:
            self.best, self.best_rate = setting, rate or 0.0
        self.tried.append(
            {
                **asdict(setting),
                "videos_per_s": None if rate is None else round(rate, 4),
                "better": better,
                "failed": failed,
                "replays": replays,
            }
        )
        return better

    def _highest_rate(
        self, setting: ServingOptions, server: Server, load: LoadProcesses, replays: list[dict[str, Any]]
    ) -> float | None:
        def tries(rate: float) -> bool:
            replayed = replay(self.traffic, server, load, rate, window_s=self.window_s)
            replays.append({"videos_per_s": round(rate, 4), **asdict(replayed)})
            return holds(replayed, self.p99_ms)

        if setting == self.start:
            videos_per_s = _full_load(load) * len(self.traffic.videos) / len(self.traffic.requests)
            return highest_rate(tries, FIRST_SHARE * videos_per_s)
        first = max(STEP * self.best_rate, self._least_rate())
        if not tries(first):
            return None
        return highest_rate(tries, CLIMB * first, known=first, out_of_time=self._out_of_time)

    def _least_rate(self) -> float:
        return min(float(item["videos_per_s"]) for item in self.tried[0]["replays"])

    def _out_of_time(self) -> bool:
        return time.monotonic() > self._until

    def _objection(self) -> str:
        """Return why the best setting does not hold: in turn with the present one, with other random numbers."""
        replays: dict[str, list[Measurement]] = {"best": [], "start": []}
        with ExitStack() as stack:
            sides = {}
            for name, setting in (("best", self.best), ("start", self.start)):
                self._announce(f"confirming: {described(setting)}")
                server, load = stack.enter_context(self._loaded(setting))
                if name == "best" and self._other_verdicts(server):
                    return "it gives other verdicts"
                assert server.root is not None
                sides[name] = server, load, server.root
                stack.callback(processes.resume, server.root)
                processes.pause(server.root)
            for number, name in itertools.product(range(CONFIRMATIONS), sides):
                server, load, root = sides[name]
                with processes.running(root):
                    found = replay(
                        self.traffic, server, load, self.best_rate, window_s=self.window_s, seed=1 + number
                    )
                replays[name].append(found)
                self.confirmation.append({"side": name, "videos_per_s": round(self.best_rate, 4), **asdict(found)})
        best_ms, start_ms = (statistics.median(map(p99_ms, items)) for items in replays.values())
        held = sum(holds(item, self.p99_ms) for item in replays["best"])
        if held > CONFIRMATIONS / 2 and best_ms < start_ms:
            return ""
        return (
            f"in turn with the present setting it kept the bound {held} times of {CONFIRMATIONS}, with a p99 of "
            f"{best_ms:.0f} against {start_ms:.0f} ms"
        )


def _full_load(load: LoadProcesses) -> float:
    """Return requests answered per second while many are in flight without pause; a slow network takes longer."""
    for measure_s in (FULL_LOAD_S, 4 * FULL_LOAD_S, 16 * FULL_LOAD_S):
        (trace,) = load.run(Load(concurrency=FULL_LOAD, ramp_s=0.5, measure_s=measure_s))
        if trace.answered:
            return trace.answered / measure_s
    raise ServerTimeoutError(
        f"with {FULL_LOAD} requests in flight, none was answered within {measure_s:g} s; let less run beside it"
    )


def _served(repository: Path, name: str | None) -> CheckedModel:
    models = check_repository(repository, [name] if name else ())
    if len(models) > 1:
        names = ", ".join(model.spec.name for model in models)
        raise RepositoryError(f"{repository} holds {names}; name one as the model")
    return models[0]


def _present_options(model: CheckedModel, cores: int) -> ServingOptions:
    share, parameters = model_share(model, cores), triton_config.config_parameters(model.config)
    return ServingOptions(
        *triton_config.batching_options(model.config),
        share.instances,
        share.threads,
        tuned_for_cores=cores,
        engine=parameters[triton_config.ENGINE_PARAMETER],
        precision=parameters[triton_config.PRECISION_PARAMETER],
    )
