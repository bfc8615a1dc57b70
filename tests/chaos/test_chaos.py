"""Faults at random moments of runs over a directory: every verdict is there in the end, and none is another one.

Server, backend and client processes are killed and stopped, the command that serves is killed as well, and the disk
of the results is full. A few faults run with the other tests, many with ``make chaos N=100 SEED=1``; the moments and
the faults follow from the seed, what the machine does meanwhile does not.
"""

from __future__ import annotations

import collections
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from media import make_kinds
from serve_command import DEEPFAKE, Server
from server_processes import FAULTS
from tiny_model import write_tiny_repository

NUM_FAULTS = int(os.environ.get("CHAOS_FAULTS", "4"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
NUM_CLIPS = 8
NUM_FRAMES = 6
GAP = (0.05, 0.6)
"""From one fault to the next, in shares of how long an undisturbed run takes here. Some come while the last one is
not mended yet."""
STOPPED_S = (0.1, 1.0)
RUN_TIMEOUT_S = 900
PROTOCOLS = ("grpc", "http", "grpc-shm")


class Run:
    """`deepfake analyze` over a directory, started again with --resume as often as it takes."""

    def __init__(self, clips: Path, journal: Path, url: str, protocol: str) -> None:
        self._journal = journal
        self._command = [*DEEPFAKE, "analyze", str(clips), "--output", str(journal), "--retry", "120"]
        self._command += ["--num-frames", str(NUM_FRAMES), "--url", url, "--protocol", protocol]
        self._said: list[str] = []
        self._readers: list[threading.Thread] = []
        self.starts = 0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        resume = ["--resume"] if self.starts else []
        self.starts += 1
        process = subprocess.Popen(
            [*self._command, *resume], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        # By a pipe: the full disk is that of the results.
        reader = threading.Thread(target=self._listen, args=[process.stderr])
        reader.start()
        self._readers.append(reader)
        return process

    def _listen(self, stderr: IO[str]) -> None:
        with stderr:
            self._said.extend(stderr)

    def goes_on(self) -> bool:
        """Return whether there is more to do; starts it again where it ended before its end."""
        code = self.process.poll()
        if code in (0, 3):
            return False
        if code is not None:
            self.process = self._start()
        return True

    def fill_disk(self) -> None:
        """Let no file of this process grow any more, as on a full disk."""
        size = self._journal.stat().st_size if self._journal.exists() else 0
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size, size))

    def close(self) -> str:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join()
        return "".join(self._said)


def faults(server: Server, run: Run, chance: random.Random) -> dict[str, Callable[[], None]]:
    """Return what may happen, by name."""

    def stop_client() -> None:
        run.process.send_signal(signal.SIGSTOP)
        time.sleep(chance.uniform(*STOPPED_S))  # a pause is the fault itself
        run.process.send_signal(signal.SIGCONT)

    return {
        **{name: (lambda harm=harm: harm(server.supervisor())) for name, harm in FAULTS.items()},
        "supervisor killed": lambda: psutil.Process(server.supervisor()).kill(),
        "command that serves killed": lambda: server.process.kill(),
        "client killed": lambda: run.process.kill(),
        "client stopped": stop_client,
        "disk full": run.fill_disk,
    }


def verdicts(journal: Path) -> dict[str, dict[str, Any]]:
    """Return the results by source, each of which is there once."""
    items = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    assert max(collections.Counter(item["source"] for item in items).values()) == 1
    return {item["source"]: item for item in items}


def assert_same(found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]) -> None:
    assert found.keys() == expected.keys()
    for source, verdict in found.items():
        same = expected[source]
        assert verdict.get("label") == same["label"], verdict
        assert verdict["reason"] == same["reason"]
        assert verdict["fake_probability"] == pytest.approx(same["fake_probability"], abs=1e-5)
        assert len(verdict["frames"]) == len(same["frames"])


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    kinds = make_kinds(tmp_path, duration_s=1)
    for number in range(NUM_CLIPS):
        shutil.copy(kinds[number % len(kinds)], folder / f"clip{number:02}.mp4")
    return folder


@pytest.mark.timeout(RUN_TIMEOUT_S + 30 * NUM_FAULTS)
def test_no_verdict_is_lost_or_changed_by_faults(clips: Path, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    server = Server(write_tiny_repository(tmp_path / "models"))
    happened: collections.Counter[str] = collections.Counter()
    rounds = starts = 0
    try:
        server.wait_until_ready()
        start = time.monotonic()
        undisturbed = Run(clips, tmp_path / "undisturbed.jsonl", server.urls["grpc"], "grpc")
        while undisturbed.goes_on():
            time.sleep(0.1)  # between polls
        undisturbed.close()
        shortest_s, longest_s = (share * (time.monotonic() - start) for share in GAP)
        expected = verdicts(tmp_path / "undisturbed.jsonl")
        assert len(expected) == NUM_CLIPS
        while happened.total() < NUM_FAULTS:
            rounds += 1
            journal, protocol = tmp_path / f"round{rounds}.jsonl", chance.choice(PROTOCOLS)
            run = Run(clips, journal, server.urls[protocol], protocol)
            deadline, next_fault = (
                time.monotonic() + RUN_TIMEOUT_S,
                time.monotonic() + chance.uniform(shortest_s, longest_s),
            )
            while run.goes_on():
                assert time.monotonic() < deadline, f"round {rounds}: {happened}\n{run.close()}"
                if time.monotonic() > next_fault and happened.total() < NUM_FAULTS:
                    name, harm = chance.choice(sorted(faults(server, run, chance).items(), key=lambda item: item[0]))
                    try:
                        harm()
                        happened[name] += 1
                    except (ProcessLookupError, psutil.NoSuchProcess):
                        pass  # it had ended by itself, or by the fault before
                    next_fault = time.monotonic() + chance.uniform(shortest_s, longest_s)
                time.sleep(0.02)  # between polls
            said = run.close()
            print(f"round {rounds} over {protocol}: {happened.total()} faults so far, {run.starts} starts")
            assert "Traceback" not in said, said
            assert_same(verdicts(journal), expected)
            starts += run.starts
    finally:
        server.close()
    faults_seen = ", ".join(f"{count} x {name}" for name, count in sorted(happened.items()))
    print(f"\n{happened.total()} faults in {rounds} runs of {NUM_CLIPS} clips, {starts} starts: {faults_seen}")
