"""The same crops through the same ONNX file, by everything that a user could have chosen.

All contenders run in turn in every round, under the same load generator, while the others are paused; ratios are
taken within a round, because a machine that is busy elsewhere then disturbs them alike; their medians over rounds are
reported. A contender whose probabilities are not the reference's is not timed, and one that cannot be installed or
started is reported with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Self

import numpy as np

from deepfake_bench.compare.contenders import Contender, Sample, server_contender, start_peer
from deepfake_bench.compare.environments import PeerUnavailableError
from deepfake_bench.compare.peer_list import Peer, in_process_name
from deepfake_bench.load.statistics import Latency
from deepfake_bench.machine.results import Results
from deepfake_bench.server.serving import Server
from deepfake_client.transport.address import ProtocolName

SERVED: Mapping[str, ProtocolName] = {
    "Triton, gRPC": "grpc",
    "Triton, HTTP": "http",
    "Triton, gRPC and shared memory": "grpc-shm",
}
"""Our server, by how crops get there."""
ONE, MANY = 1, 32
"""Requests of one crop in flight."""
TRIAL_S = 2.0
TRIALS = 2
"""Trials of each setting of a peer, and of each way to our server, in turn; the one with the best median is
compared."""

Round = Mapping[str, Mapping[int, Sample]]
"""One round: by contender and concurrency."""


class PeerComparison:
    """Our server and its contenders, started and paused; the context ends all but the server.

    `server` is embedded, with its reference; logs and crops go into `scratch`. `announce` is called with one line
    before something slow, and about each peer that cannot be measured.
    """

    def __init__(self, server: Server, *, scratch: Path, announce: Callable[[str], None]) -> None:
        reference = server.in_process()
        assert reference is not None
        self.server = server
        self._expected = np.concatenate([reference(crop[None]) for crop in server.crops])
        self._scratch, self._announce = scratch, announce
        self._contenders: list[Contender] = []
        self._tried: list[dict[str, Any]] = []
        self._not_measured: list[dict[str, str]] = []
        self._rounds: list[Round] = []
        self._ours = ""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for contender in _served(self.server):
                self._contenders.append(contender)
                stack.callback(contender.close)
            self._ours = self._fastest(self._contenders).name
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def add(self, settings: Sequence[Peer]) -> None:
        """Start one peer in all its settings and keep the fastest."""
        started: list[Contender] = []
        with ExitStack() as stack:
            for peer in settings:
                try:
                    contender = start_peer(
                        peer,
                        crops=self.server.crops,
                        expected=self._expected,
                        scratch=self._scratch,
                        announce=self._announce,
                    )
                except PeerUnavailableError as exc:
                    self.leave_out(peer.name, peer.setting, str(exc))
                    continue
                started.append(contender)
                stack.callback(contender.close)
            if not started:
                return
            try:
                best = self._fastest(started)
            except PeerUnavailableError as exc:
                self.leave_out(settings[0].name, "", str(exc))
                return
            stack.pop_all()
        for contender in started:
            if contender is not best:
                contender.close()
        self._contenders.append(best)
        self._stack.callback(best.close)

    def leave_out(self, name: str, setting: str, reason: str) -> None:
        """Note why something is not measured."""
        self._announce(f"not measured: {name}, {setting}: {reason}")
        self._not_measured.append({"name": name, "setting": setting, "reason": reason})

    def measure_round(self, seconds: float) -> None:
        """Measure all contenders once, alone and with many requests in flight."""
        self._rounds.append(
            {item.name: {level: item.measure(level, seconds) for level in (ONE, MANY)} for item in self._contenders}
        )

    def results(self) -> dict[str, Any]:
        """Return what the whole rounds gave, as plain JSON data; empty before the first is over."""
        if not self._rounds:
            return {}
        others = [item.name for item in self._contenders if item.name != self._ours]
        return {
            "model": self.server.identity,
            "settings_tried": self._tried,
            "not_measured": self._not_measured,
            "rounds": len(self._rounds),
            "contenders": [summary(item, self._rounds) for item in self._contenders],
            "ours": self._ours,
            "in_process": in_process_name(self.server.engine, self.server.model.precision),
            "ours_over": ratios(self._ours, others, self._rounds),
        }

    def _fastest(self, contenders: Sequence[Contender]) -> Contender:
        """Return the one that takes most with 32 in flight, by a trial where there is something to choose."""
        if len(contenders) == 1:
            return contenders[0]
        rounds = [[item.measure(MANY, TRIAL_S).crops_per_s for item in contenders] for _ in range(TRIALS)]
        rates = [round(median(item), 1) for item in zip(*rounds, strict=True)]
        self._tried += [
            {"name": contender.name, "setting": contender.setting, "crops_per_s": rate}
            for contender, rate in zip(contenders, rates, strict=True)
        ]
        return contenders[rates.index(max(rates))]


def _served(server: Server) -> Iterable[Contender]:
    """Yield the server, once for each protocol, each checked."""
    assert server.root is not None
    setting = ", ".join(f"{key} {value}" for key, value in server.arrangement.items())
    targets = {name: server.target(protocol) for name, protocol in SERVED.items()}
    differences = {name: server.verify(target) or 0.0 for name, target in targets.items()}
    for name, target in targets.items():  # from the first one on, the server is paused
        yield server_contender(
            name,
            setting,
            differences[name],
            target=target,
            crops=server.crops,
            root=server.root,
            counters=server.counters,
        )


def summary(contender: Contender, rounds: Sequence[Round]) -> dict[str, Any]:
    """Return one contender's figures as plain JSON data: medians over rounds, and the rounds themselves."""
    levels = {}
    for concurrency in (ONE, MANY):
        samples = [item[contender.name][concurrency] for item in rounds]
        latencies = [sample.latencies_s for sample in samples if sample.latencies_s is not None]
        levels[str(concurrency)] = {
            "crops_per_s": round(median(sample.crops_per_s for sample in samples), 1),
            "latency": asdict(Latency.of(np.concatenate(latencies))) if latencies else None,
            "cpu_ms_per_crop": round(median(sample.cpu_ms_per_crop for sample in samples), 4),
            "load_cpu_ms_per_crop": _median(sample.load_cpu_ms_per_crop for sample in samples),
            "mean_batch": _median(sample.mean_batch for sample in samples),
            "errors": dict(sum((Counter(sample.errors) for sample in samples), Counter())),
            "rounds_crops_per_s": [round(sample.crops_per_s, 1) for sample in samples],
        }
    return {
        "name": contender.name,
        "setting": contender.setting,
        "largest_probability_difference": contender.difference,
        "concurrency": levels,
    }


def ratios(ours_name: str, names: Sequence[str], rounds: Sequence[Round]) -> dict[str, dict[str, float | None]]:
    """Return ours against each other contender: medians over rounds of ratios within a round.

    ``throughput`` at 32 in flight (above 1: ours is faster), ``p99`` at 32 and ``p50_alone`` at 1 (below 1: ours
    waits less); a percentile is None against engines, which have no requests of one crop at 32.
    """

    def median_ratio(name: str, figure: Callable[[Sample], float | None], level: int) -> float | None:
        pairs = [(figure(item[ours_name][level]), figure(item[name][level])) for item in rounds]
        values = [ours / other for ours, other in pairs if ours is not None and other]
        return round(median(values), 3) if values else None

    return {
        name: {
            "throughput": median_ratio(name, lambda sample: sample.crops_per_s, MANY),
            "p99": median_ratio(name, lambda sample: sample.quantile_s(0.99), MANY),
            "p50_alone": median_ratio(name, lambda sample: sample.quantile_s(0.5), ONE),
        }
        for name in names
    }


def served_over_in_process(data: Results) -> dict[str, float]:
    """Return what serving costs, by protocol: throughput at 32 in flight over that of the same engine in-process.

    These are medians over rounds of ratios within a round; there are none where that engine was not measured.
    """
    rates = {item["name"]: item["concurrency"][str(MANY)]["rounds_crops_per_s"] for item in data["contenders"]}
    if (engine := data["in_process"]) not in rates:
        return {}
    found = {}
    for name in (item for item in SERVED if item in rates):
        if values := [ours / alone for ours, alone in zip(rates[name], rates[engine], strict=True) if alone]:
            found[name] = round(median(values), 3)
    return found


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(median(known), 2) if known else None
