"""Kills at random moments of a scan on a cluster: every input has its result once, and none is another one.

The driver, actors, nodes of the cluster, Triton and its backend are killed. A few kills run with the slow tests, many
with ``make chaos-scan N=50 CLIPS=2000 SEED=1``; moments and kills follow from the seed, what the machine does
meanwhile does not.
"""

from __future__ import annotations

import collections
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from media import make_kinds
from scan_results import results
from serve_command import DEEPFAKE, Server
from server_processes import FAULTS
from tiny_model import write_tiny_repository

from deepfake_client import AnalyzeOptions, DeepfakeClient, Sampling

NUM_KILLS = int(os.environ.get("CHAOS_FAULTS", "5"))
NUM_CLIPS = int(os.environ.get("CHAOS_CLIPS", "100"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
NUM_FRAMES = 4
GAP_S = (2.0, 12.0)
"""From one kill to the next; a driver takes some 5 s until its first result."""
WORKERS = 2
"""Nodes beside the first one, which holds the cluster's state and stays."""
NODE_STARTS = 4
LONGEST_S = 300 + 60 * NUM_KILLS + NUM_CLIPS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LONGEST_S + 300)]


class Cluster:
    """Several raylets on this machine; one that is killed is replaced."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as Raylets

        self._raylets = Raylets(initialize_head=True, head_node_args={"num_cpus": 1})
        self._workers = [self._added() for _ in range(WORKERS)]
        self.address = self._raylets.address

    def _added(self) -> Any:
        for _ in range(NODE_STARTS - 1):
            try:
                return self._raylets.add_node(num_cpus=1)
            except Exception as exc:  # Ray gives a node 30 s to start, which a busy machine may not have
                print(f"a node did not start in time: {exc}")
        return self._raylets.add_node(num_cpus=1)

    def kill_a_node(self, chance: random.Random) -> None:
        victim = chance.randrange(WORKERS)
        self._raylets.remove_node(self._workers[victim], allow_graceful=False)
        self._workers[victim] = self._added()

    def close(self) -> None:
        self._raylets.shutdown()


class Scan:
    """`deepfake scan` on the cluster, started again until all is done."""

    def __init__(self, clips: Path, output: Path, url: str, cluster: str) -> None:
        self._command = [*DEEPFAKE, "scan", str(clips), "--output", str(output), "--engine", "ray"]
        self._command += ["--url", url, "--num-frames", str(NUM_FRAMES), "--retry", "120"]
        self._environment = {**os.environ, "RAY_ADDRESS": cluster}
        self._log = output.with_suffix(".log")
        self.starts = 0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)

    def goes_on(self) -> bool:
        code = self.process.poll()
        if code is None:
            return True
        if code == 0:
            return False
        assert code in (-9, 4), self.said()  # killed, or a server was away for longer than it waits
        self.process = self._start()
        return True

    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def actors() -> list[psutil.Process]:
    return list(_named("MapWorker"))


def _named(title: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter(["cmdline"]):
        if title in " ".join(process.info["cmdline"] or ()):
            yield process


def kills(server: Server, scan: Scan, cluster: Cluster, chance: random.Random) -> dict[str, Callable[[], None]]:
    def kill_an_actor() -> None:
        if not (running := actors()):
            raise ProcessLookupError
        chance.choice(running).kill()

    return {
        "driver": lambda: scan.process.kill(),
        "actor": kill_an_actor,
        "node": lambda: cluster.kill_a_node(chance),
        "Triton": lambda: FAULTS["server killed"](server.supervisor()),
        "backend": lambda: FAULTS["backend killed"](server.supervisor()),
    }


def largest_mib(scan: Scan) -> int:
    """Return the memory of the largest of the driver and the actors, with the processes below each."""
    sizes = [0]
    for root in (psutil.Process(scan.process.pid), *actors()):
        with suppress(psutil.NoSuchProcess):
            sizes.append(sum(one.memory_info().rss for one in (root, *root.children(recursive=True))))
    return max(sizes) >> 20


def test_no_result_of_a_scan_is_lost_doubled_or_changed_by_kills(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    kinds = make_kinds(tmp_path, duration_s=0.4)
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(NUM_CLIPS):
        shutil.copy(kinds[number % len(kinds)], clips / f"{number:05}.mp4")
    happened: collections.Counter[str] = collections.Counter()
    memory: list[int] = []
    with ExitStack() as stack:
        server = stack.enter_context(closing(Server(write_tiny_repository(tmp_path / "models"))))
        cluster = stack.enter_context(closing(Cluster()))
        server.wait_until_ready()
        with DeepfakeClient(server.urls["grpc"]) as client:
            options = AnalyzeOptions(sampling=Sampling(num_frames=NUM_FRAMES))
            expected = [client.analyze(kind, options=options).to_dict() for kind in kinds]
        scan = stack.enter_context(closing(Scan(clips, tmp_path / "out", server.urls["grpc"], cluster.address)))
        started = time.monotonic()
        next_kill = started + chance.uniform(*GAP_S)
        while scan.goes_on():
            assert time.monotonic() - started < LONGEST_S, f"{happened}\n{scan.said()}"
            if time.monotonic() > next_kill and happened.total() < NUM_KILLS:
                name, kill = chance.choice(sorted(kills(server, scan, cluster, chance).items()))
                with suppress(ProcessLookupError, psutil.NoSuchProcess):  # not there at this moment
                    kill()
                    happened[name] += 1
                next_kill = time.monotonic() + chance.uniform(*GAP_S)
            memory.append(largest_mib(scan))
            time.sleep(0.5)  # between polls
        print(
            f"\n{NUM_CLIPS} clips, {happened.total()} kills ({dict(happened)}), {scan.starts} starts, "
            f"{time.monotonic() - started:.0f} s; at most {max(memory[: len(memory) // 2])} MiB in the first half, "
            f"{max(memory[len(memory) // 2 :])} in the second"
        )
        assert "Traceback" not in scan.said(), scan.said()
    found = results(tmp_path / "out")
    assert sorted(found) == sorted(map(str, clips.iterdir()))
    for address, verdict in found.items():
        same = expected[int(Path(address).stem) % len(kinds)]
        assert verdict.get("label") == same["label"], verdict
        assert verdict["reason"] == same["reason"]
        assert verdict["fake_probability"] == pytest.approx(same["fake_probability"], abs=1e-5)
        assert len(verdict["frames"]) == len(same["frames"])
