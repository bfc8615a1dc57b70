"""`deepfake gateway` in a process of its own, as people start it. Import it as ``gateway_process``."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
from server_processes import assert_all_end

from deepfake_gateway.settings import DATABASE_NAME

START_S = 90


class Running:
    """A gateway in a process of its own; settings are named as in its environment, without the prefix.

    `server` is the address of a Triton, or the folder of a repository for one of its own.
    """

    def __init__(self, server, data_dir, **settings):
        given = ["--embedded", "--repository", str(server)] if isinstance(server, Path) else ["--url", server]
        command = [sys.executable, "-m", "deepfake_client.cli.main", "gateway", *given, "--port", "0"]
        self.log = data_dir / f"{settings.get('worker_name', 'worker')}.log"
        self._database = data_dir / DATABASE_NAME
        data_dir.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            **{f"DEEPFAKE_GATEWAY_{name.upper()}": value for name, value in settings.items()},
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*command, "--data-dir", str(data_dir)], stderr=log, env=environment)
        self.address = self.until(lambda: re.search(r"http://[\d.:]+", self.log.read_text()))[0]
        self.until(self._is_ready)

    def until(self, found):
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            if result := found():
                return result
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def _is_ready(self):
        try:
            return httpx.get(f"{self.address}/v1/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def descendants(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def running(self, words):
        """The processes below it whose command line has these words."""
        found = []
        for item in self.descendants():
            with suppress(psutil.NoSuchProcess):  # one that ends meanwhile
                found += [item] * (words in " ".join(item.cmdline()))
        return found

    def worker(self):
        return self.until(lambda: self.running("deepfake_gateway.worker"))[0]

    @contextmanager
    def paused_worker(self):
        """Hold the worker, outside of a transaction: with SQLite's lock it would hold up the gateway, too."""
        worker = self.worker()
        self.until(lambda: self._is_held_without_lock(worker))
        try:
            yield
        finally:
            worker.resume()

    def _is_held_without_lock(self, worker):
        worker.suspend()
        self.until(lambda: worker.status() == psutil.STATUS_STOPPED)
        try:
            with closing(sqlite3.connect(self._database, timeout=1, isolation_level=None)) as database:
                database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            worker.resume()
            return False
        return True

    def send(self, clip, *, wait_s=0, **fields):
        headers = {"Prefer": f"wait={wait_s}"} if wait_s else {}
        files = {"file": (clip.name, clip.read_bytes())}
        return httpx.post(
            f"{self.address}/v1/analyses", files=files, data=fields, headers=headers, timeout=120
        ).json()

    def events(self, analysis):
        """Yield kind and data of an analysis' events as they come."""
        with httpx.stream("GET", f"{self.address}{analysis['links']['events']}", timeout=120) as answer:
            kind = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield kind, json.loads(line.removeprefix("data: "))

    def stop(self, number=signal.SIGINT):
        descendants = self.descendants()
        self.process.send_signal(number)
        code = self.process.wait(60)
        assert_all_end(descendants)
        return code
