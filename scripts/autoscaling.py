"""Runs the chart's autoscaling without a cluster: ``python scripts/autoscaling.py --repository models``.

Real are Prometheus, the Tritons that it scrapes, our client, and the chart: queries, targets and behavior are read
from the ScaledObject that helm renders. Three things stand in for Kubernetes: its autoscaler's arithmetic
(tests/support/autoscaler.py), its name service (tests/support/name_server.py), and an address for each pod (a
forwarder here). Each replica may use a share of a core only, so that three are three times as fast on a small
machine.

Callers each wait for their answer before they ask again. Writes a results file and a plot of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))
import debian  # noqa: E402 - lies in that folder
from autoscaler import SYNC_S, Autoscaler  # noqa: E402
from kubernetes_tools import CHART, rendered  # noqa: E402
from name_server import name_server  # noqa: E402
from pods import Cluster  # noqa: E402

from deepfake_bench.machine.results import default_path, write_results  # noqa: E402
from deepfake_bench.report.plots import write_plots  # noqa: E402
from deepfake_client.transport import grpc as grpc_transport  # noqa: E402
from deepfake_client.transport.connect import connect  # noqa: E402
from deepfake_preprocess.contract.triton_config import (  # noqa: E402
    EMBEDDED_CONFIG_NAME,
    config_to_text,
    read_config,
)
from deepfake_preprocess.support.sockets import listening  # noqa: E402
from deepfake_serve import EmbeddedTriton  # noqa: E402

LOOK_S: Final = 5.0
"""How often what happens is noted: with each scrape."""
NAME: Final = "triton.test"


@dataclass
class Look:
    """What is noted every few seconds; times in seconds after the start."""

    at_s: float
    callers: int
    replicas: int
    ready: int
    wished: int
    queue: float
    requests: float
    queue_ms_now: float
    answers: int
    p50_ms: float | None
    p99_ms: float | None
    errors: int


class Callers:
    """Callers that each ask for one crop, wait for the answer, and ask again, in a thread of their own."""

    def __init__(self, url: str, model: str) -> None:
        self.wanted = 0
        self.taken: list[tuple[float, float | None]] = []
        self._url, self._model = url, model
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    def take(self) -> list[tuple[float, float | None]]:
        """Return what was answered since it was last asked: when, and seconds (None: an error)."""
        taken, self.taken = self.taken, []
        return taken

    def close(self) -> None:
        """End the callers."""
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        transport = connect(self._url)
        model = await transport.describe(self._model)
        size = (model.spec.input_height_px, model.spec.input_width_px, 3)
        crops = np.random.default_rng(0).integers(0, 256, (8, 1, *size), np.uint8)

        async def ask(number: int) -> None:
            while not self._stop.is_set():
                if number >= self.wanted:
                    await asyncio.sleep(0.1)
                    continue
                # People and programs do not all ask in the same moment.
                await asyncio.sleep(random.uniform(0, 0.05))
                begun = time.monotonic()
                try:
                    await transport.infer(model, crops[number % len(crops)])
                except Exception as exc:
                    print(f"a request failed: {exc}", file=sys.stderr)
                    self.taken.append((begun, None))
                else:
                    self.taken.append((begun, time.monotonic() - begun))

        await asyncio.gather(*(ask(number) for number in range(64)))
        await transport.close()


class Prometheus:
    """Debian's Prometheus, which scrapes what a file names."""

    def __init__(self, folder: Path, targets: Path, *, job: str, interval: str) -> None:
        with listening("127.0.0.1", 0) as probe:
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        config = {
            "global": {"scrape_interval": interval},
            "scrape_configs": [
                {"job_name": job, "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "5s"}]}
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = [
            str(debian.program("prometheus")), f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={self.url.removeprefix('http://')}",
        ]  # fmt: skip
        self._log = (folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)

    def ask(self, query: str) -> float | None:
        """Return the value of a query; None where there is none yet."""
        address = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                found = json.load(answer)["data"]["result"]
        except OSError:
            return None
        return float(found[0]["value"][1]) if found else None

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()
        self._log.close()


def watch(
    cluster: Cluster, prometheus: Prometheus, callers: Callers, rule: Autoscaler, phases: list[tuple[float, int]]
) -> list[Look]:
    """Let the rule decide for as long as the phases last, and return what was seen."""
    looks: list[Look] = []
    begun, decided = time.monotonic(), -SYNC_S
    before: dict[int, dict[str, float]] = {}
    ends = np.cumsum([seconds for seconds, _ in phases])
    while (now := time.monotonic() - begun) < ends[-1]:
        callers.wanted = phases[int(np.searchsorted(ends, now, side="right"))][1]
        values = {name: prometheus.ask(query) for name, query in rule.queries.items()}
        current = len(cluster.wanted)
        known = {name: value for name, value in values.items() if value is not None}
        whole = len(known) == len(values)
        if whole and now - decided >= SYNC_S - 0.5:
            decided = now
            cluster.scale(rule.decide(known, current, now))
        after = {one.number: counters for one in cluster.replicas if one.is_ready and (counters := one.counters())}
        taken = callers.take()
        times = [seconds for _, seconds in taken if seconds is not None]
        look = Look(
            at_s=round(now, 1), callers=callers.wanted, replicas=current,
            ready=sum(one.is_ready for one in cluster.wanted), wished=rule.wish(known, current) if whole else current,
            queue=round(known.get("queue", 0.0), 1), requests=round(known.get("requests", 0.0), 2),
            queue_ms_now=round(_queue_ms(before, after), 1), answers=len(times),
            p50_ms=_percentile(times, 50), p99_ms=_percentile(times, 99), errors=len(taken) - len(times),
        )  # fmt: skip
        before = after
        looks.append(look)
        print(json.dumps(vars(look)), flush=True)
        time.sleep(max(0.0, LOOK_S - (time.monotonic() - begun - now)))
    return looks


def _queue_ms(before: dict[int, dict[str, float]], after: dict[int, dict[str, float]]) -> float:
    """Return the mean time in the queue of the requests that were answered in between."""

    def gained(name: str) -> float:
        return sum(each.get(name, 0.0) - before.get(number, {}).get(name, 0.0) for number, each in after.items())

    return gained("nv_inference_queue_duration_us") / max(1.0, gained("nv_inference_request_success")) / 1000


def _percentile(times: list[float], percent: float) -> float | None:
    return round(float(np.percentile(times, percent)) * 1000, 1) if times else None


def summary(looks: list[Look], target_ms: float) -> dict[str, Any]:
    """Return what is judged: how long the queue was above the target after callers came, and what changed then."""
    rise = next(number for number in range(1, len(looks)) if looks[number].callers > looks[number - 1].callers)
    stays = looks[rise].callers
    fall = next((number for number in range(rise, len(looks)) if looks[number].callers != stays), len(looks))
    above = [number for number in range(rise, fall) if looks[number].queue_ms_now > target_ms]
    # The first of six quiet looks in a row: half a minute.
    calm = next(n for n in range(above[0] if above else rise, fall) if not any(n <= a < n + 6 for a in above))
    steps = [
        b.at_s - looks[rise].at_s
        for a, b in zip(looks[rise:fall], looks[rise + 1 : fall], strict=False)
        if a.replicas != b.replicas
    ]
    settled = steps[-1] if steps else 0.0
    after = looks[fall:]
    return {
        "queue_back_below_target_after_s": round(looks[calm].at_s - looks[rise].at_s, 1),
        "looks_above_target_afterwards": sum(number >= calm for number in above),
        "replica_changes_after_s": [round(step, 1) for step in steps],
        "then_unchanged_for_s": round(looks[fall - 1].at_s - looks[rise].at_s - settled, 1),
        "replicas_in_the_end": looks[-1].replicas,
        "went_down_after_s": next(
            (round(one.at_s - after[0].at_s, 1) for one in after if one.replicas < after[0].replicas), None
        ),
        "requests": sum(look.answers for look in looks),
        "failed_requests": sum(look.errors for look in looks),
    }


def with_delay(repository: Path, target: Path, delay_ms: float) -> Path:
    """Copy a repository and let the embedded server wait for its batches as long as a production server does."""
    shutil.copytree(repository, target)
    for path in target.glob(f"*/{EMBEDDED_CONFIG_NAME}"):
        config = read_config(path)
        config.dynamic_batching.max_queue_delay_microseconds = int(delay_ms * 1000)
        path.write_text(config_to_text(config), encoding="utf-8")
    return target


@contextmanager
def running(
    options: argparse.Namespace, release: list[dict[str, Any]]
) -> Iterator[tuple[Cluster, Prometheus, Callers]]:
    """Start one replica, Prometheus and the callers' client; end all of them."""
    (deployment,) = [
        item for item in release if item["kind"] == "Deployment" and "triton" in item["metadata"]["name"]
    ]
    (monitor,) = [item for item in release if item["kind"] == "ServiceMonitor"]
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    flags = [item.removeprefix("--") for item in arguments if "grpc-max-connection-age" in item]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        repository = with_delay(Path(options.repository), folder / "models", options.delay_milliseconds)
        names = stack.enter_context(name_server())
        # In place of the machine's own name server.
        grpc_transport._target = lambda address: f"dns://127.0.0.1:{names.port}/{address.target}"
        with listening("127.0.0.1", 0) as probe:
            port = probe.getsockname()[1]

        def make() -> EmbeddedTriton:
            return EmbeddedTriton(repository, models=[options.model], instances=1, threads=1, flags=flags)

        cluster = Cluster(make, options.cores, port, names, folder / "targets.json", {"namespace": "detectors"})
        stack.callback(cluster.close)
        cluster.scale(1)
        cluster.threads[0].join()
        interval = monitor["spec"]["endpoints"][0]["interval"]
        prometheus = Prometheus(folder, cluster.targets, job=deployment["metadata"]["name"], interval=interval)
        stack.callback(prometheus.close)
        callers = Callers(f"{NAME}:{port}", options.model)
        stack.callback(callers.close)
        yield cluster, prometheus, callers


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", default="models")
    parser.add_argument("--model", default="deepfake_efficientnet_lite0")
    parser.add_argument(
        "--cores", type=float, default=0.25, help="share of a core of each replica; 0 for no bound (needs root)"
    )
    parser.add_argument("--phases", default="120:1,750:11,480:1", help="seconds and callers of each")
    parser.add_argument("--queue-milliseconds", type=float, default=80)
    parser.add_argument("--requests", type=float, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    chart = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))["autoscaling"]
    options.delay_milliseconds = chart["batchingDelayMilliseconds"]
    phases = [
        (float(seconds), int(callers))
        for seconds, _, callers in (one.partition(":") for one in options.phases.split(","))
    ]
    values = yaml.safe_load((CHART / "values-cpu.yaml").read_text(encoding="utf-8"))
    values["gateway"] = {"enabled": False}
    values["autoscaling"] |= {
        "maxReplicas": 3,
        "queueMilliseconds": options.queue_milliseconds,
        "requests": options.requests,
    }
    release = rendered(values)
    (scaled,) = [item for item in release if item["kind"] == "ScaledObject"]
    rule = Autoscaler.of(scaled)
    with running(options, release) as (cluster, prometheus, callers):
        looks = watch(cluster, prometheus, callers, rule, phases)
    data = {
        "model": options.model,
        "cores_of_a_replica": options.cores,
        "phases": [{"seconds": seconds, "callers": count} for seconds, count in phases],
        "batching_delay_ms": options.delay_milliseconds,
        "targets": rule.targets,
        "queries": rule.queries,
        "behavior": scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
        "load_of_the_machine": os.getloadavg(),
        "summary": summary(looks, rule.targets["queue"]),
        "looks": [vars(look) for look in looks],
    }
    path = write_results("autoscaling", data, options.output or default_path("autoscaling"))
    write_plots(path, form="svg")
    print(json.dumps(data["summary"], indent=2))


if __name__ == "__main__":
    main()
