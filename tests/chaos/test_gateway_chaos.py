"""Kills at random moments while the verdict service works: nothing is lost, doubled or stuck, and no verdict differs.

Gateway, worker, sandboxes, Triton, its supervisor and the database, a Postgres, are killed with SIGKILL, each under
what starts it again where people run it. Some kills run with the other tests, many with ``make chaos-gateway N=100
SEED=1``.
"""

from __future__ import annotations

import collections
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from media import make_clip
from postgres import Postgres
from serve_command import DEEPFAKE, Server
from server_processes import assert_all_end, tritonserver_of
from tiny_model import write_tiny_repository

from deepfake_client import AnalyzeOptions, DeepfakeClient, Sampling
from deepfake_preprocess.support.sockets import listening

NUM_KILLS = int(os.environ.get("CHAOS_FAULTS", "4"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
JOBS = 4
"""Sent at first; another one comes with each kill."""
ROUND = 8
"""Kills, after which all that was sent may end: else jobs that take longer than the gaps would outlive them all."""
GAP = (0.1, 1.5)
"""From one kill to the next, in shares of how long the service takes to start here, of which at most `START_S` count.
Some come while the last one is not mended yet."""
START_S = 20.0
TIMEOUT_S = 300
"""From the last kill, or what was sent last, until all jobs are over."""


class Gateway:
    """`deepfake gateway` under a service manager, which starts it again when it ends."""

    def __init__(self, url: str, database: str, folder: Path) -> None:
        with listening("127.0.0.1", 0) as probe:
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self._log = (folder / "gateway.log").open("ab")
        self._command = [*DEEPFAKE, "gateway", "--url", url, "--port", str(port), "--data-dir", str(folder / "data")]
        self._command += ["--database", database]
        self.process = self._start()
        self._over = threading.Event()
        self._manager = threading.Thread(target=self._keep_running)
        self._manager.start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdout=self._log, stderr=self._log)

    def _keep_running(self) -> None:
        while not self._over.wait(0.1):
            if self.process.poll() is not None:
                self.process = self._start()

    def below(self, module: str) -> psutil.Process:
        """Return a process of a module, or raise psutil.NoSuchProcess."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            if module in process.cmdline():
                return process
        raise psutil.NoSuchProcess(self.process.pid, module)

    def ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Return what a request is answered, sent again while the service is away."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                answer = httpx.request(method, self.address + path, timeout=30, **options)
                if answer.status_code < 400:
                    data: dict[str, Any] = answer.json()
                    return data
                assert answer.status_code in (429, 503), answer.text
            except httpx.TransportError:
                pass
            time.sleep(0.1)  # between polls
        raise AssertionError(f"{method} {path} was not answered")

    def close(self) -> None:
        self._over.set()
        self._manager.join()
        running = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(60) == 0
        assert_all_end(running)
        self._log.close()


def kills(server: Server, gateway: Gateway, database: Postgres) -> dict[str, Callable[[], None]]:
    """Return what may be killed, by name."""
    return {
        "database": lambda: database.process.kill(),
        "gateway": lambda: gateway.process.kill(),
        "worker": lambda: gateway.below("deepfake_gateway.worker").kill(),
        "sandbox": lambda: gateway.below("deepfake_gateway.sandbox.entry").kill(),
        "Triton": lambda: tritonserver_of(server.supervisor()).kill(),
        "supervisor of Triton": lambda: psutil.Process(server.supervisor()).kill(),
    }


def facts(verdict: dict[str, Any]) -> dict[str, Any]:
    """Return what must be the same in every run; the score apart, whose last digits depend on the batch."""
    frames = [(frame["index"], len(frame["faces"])) for frame in verdict["frames"]]
    return {"label": verdict["label"], "reason": verdict["reason"], "frames": frames, "model": verdict["model"]}


@pytest.mark.debian("postgresql")
@pytest.mark.timeout(TIMEOUT_S + 60 * NUM_KILLS)
def test_nothing_is_lost_doubled_or_stuck_whatever_is_killed(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    clips = [
        make_clip(tmp_path / f"{faces}.mp4", size_wh=(320, 180), duration_s=1, faces=faces, moving=True)
        for faces in (1, 2)
    ]
    jobs: list[Job] = []
    killed: list[tuple[float, str]] = []
    with ExitStack() as stack:
        server = Server(write_tiny_repository(tmp_path / "models"))
        stack.callback(server.close)
        database = Postgres()
        stack.callback(database.close)
        database.keep_running()
        server.wait_until_ready()
        begun = time.monotonic()
        gateway = Gateway(server.urls["grpc"], database.url, tmp_path)
        stack.callback(gateway.close)
        gateway.ask("GET", "/v1/health/ready")
        shortest_s, longest_s = (share * min(time.monotonic() - begun, START_S) for share in GAP)
        sender = stack.enter_context(ThreadPoolExecutor(1))  # it waits while the gateway is away, kills do not

        def send() -> None:
            # Another number of frames or least size each time, so that none is answered by an earlier result.
            job = Job(len(jobs), clips[len(jobs) % 2], 3 + len(jobs) % 5)
            job.sending = sender.submit(job.send, gateway)
            jobs.append(job)

        for _ in range(JOBS):
            send()
        targets = in_turn(kills(server, gateway, database), chance)
        while len(killed) < NUM_KILLS:
            name, kill = next(targets)
            with suppress(psutil.NoSuchProcess):  # it had ended by itself, or by the kill before
                kill()
                killed.append((time.time(), name))
                send()
            if len(killed) % ROUND == 0:
                wait_until_over(gateway, jobs)
            time.sleep(chance.uniform(shortest_s, longest_s))
        wait_until_over(gateway, jobs)
        found = all_analyses(gateway)
        assert len(found) == len(jobs)  # none lost, none doubled
        analyses = compare(gateway, server, found, [(job.clip, job.frames) for job in jobs])
    outlived = sorted(
        sum(seconds_of(item["created_at"]) < at < seconds_of(item["finished_at"]) for at, _ in killed)
        for item in analyses
    )
    print(f"\n{len(killed)} kills: {dict(collections.Counter(name for _, name in killed))}")
    print(f"{len(jobs)} jobs; one outlived {outlived[len(outlived) // 2]} kills (median; {outlived[-1]} at most)")


@dataclass
class Job:
    """An analysis, which is sent until the gateway takes it."""

    number: int
    clip: Path
    frames: int
    sending: Future[None] | None = None

    def send(self, gateway: Gateway) -> None:
        fields = {
            "num_frames": str(self.frames), "min_face_px": str(self.number / 1e4), "file_name": self.clip.name,
        }  # fmt: skip
        headers = {"idempotency-key": f"job{self.number}"}
        gateway.ask("POST", "/v1/analyses", content=self.clip.read_bytes(), headers=headers, params=fields)


def wait_until_over(gateway: Gateway, jobs: list[Job]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    for job in jobs:
        assert job.sending is not None
        job.sending.result(deadline - time.monotonic())
    while is_busy(gateway):
        assert time.monotonic() < deadline, "stuck"
        time.sleep(0.1)  # between polls


def seconds_of(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def in_turn(
    targets: dict[str, Callable[[], None]], chance: random.Random
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield targets at random, each once before any comes again."""
    while True:
        yield from chance.sample(sorted(targets.items()), len(targets))


def is_busy(gateway: Gateway) -> bool:
    return any(
        gateway.ask("GET", "/v1/analyses", params={"status": status, "limit": "1"})["items"]
        for status in ("queued", "running")
    )


def all_analyses(gateway: Gateway) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = gateway.ask("GET", "/v1/analyses", params={"limit": "100", **cursor})
        found += page["items"]
        if page["next_cursor"] is None:
            return found
        cursor = {"cursor": page["next_cursor"]}


def compare(
    gateway: Gateway, server: Server, found: list[dict[str, Any]], sent: list[tuple[Path, int]]
) -> list[dict[str, Any]]:
    """Each analysis is done, once, with the verdict that the client gives; returns them complete."""
    server.wait_until_ready()
    own: dict[tuple[str, int], dict[str, Any]] = {}
    with DeepfakeClient(server.urls["grpc"]) as client:
        for clip, frames in set(sent):
            options = AnalyzeOptions(sampling=Sampling(num_frames=frames))
            own[clip.name, frames] = client.analyze(clip, options=options).to_dict()
    asked = collections.Counter((clip.name, frames) for clip, frames in sent)
    seen: collections.Counter[tuple[str, int]] = collections.Counter()
    analyses = []
    for item in found:
        analysis = gateway.ask("GET", item["links"]["self"])
        assert analysis["status"] == "done", analysis
        analyses.append(analysis)
        key = analysis["file"]["name"], analysis["options"]["sampling"]["num_frames"]
        seen[key] += 1
        assert facts(analysis["verdict"]) == facts(own[key])
        assert analysis["verdict"]["fake_probability"] == pytest.approx(own[key]["fake_probability"], abs=1e-5)
        events = httpx.get(f"{gateway.address}{item['links']['events']}", timeout=30).text
        assert events.count('data: {"status": "done"}') == 1
    assert seen == asked
    return analyses
