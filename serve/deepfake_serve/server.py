"""The life cycle of one embedded Triton: check, lay out, start, wait until ready, stop, leave nothing behind.

The server listens on the loopback interface only: this Triton is from 2024 and lacks every security fix since.
To serve other machines, use NVIDIA's container (docker-compose.yml).
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self, TextIO

from deepfake_preprocess.contract.model_dir import hold_version
from deepfake_preprocess.errors import ServerStartError
from deepfake_preprocess.support.machine import usable_cores
from deepfake_preprocess.support.wheels import Announce, on_stderr
from deepfake_serve._launch import (
    check_shared_memory,
    command_line,
    environment_of,
    shared_memory_mb,
    supervisor_command,
    write_backends,
)
from deepfake_serve._plan import HOST, STOP_TIMEOUT_S, Plan
from deepfake_serve._ports import Ports
from deepfake_serve._repository import CheckedModel, check_repository
from deepfake_serve._runtime import TritonRuntime, ensure_runtime
from deepfake_serve._shares import CpuShare, model_share
from deepfake_serve._view import MARK_PARAMETER, View

START_TIMEOUT_S = 120.0
"""A model of 100 MB is up in 3 s on two cores; this is for slow disks and many models."""
POLL_INTERVAL_S = 0.05
TAIL_LINES = 15


class EmbeddedTriton:
    """A real Triton on this machine's CPU, for as long as the context lasts.

    ::

        with EmbeddedTriton("models") as triton:
            client = tritonclient.grpc.InferenceServerClient(triton.grpc_url)

    The server ends with the context, and also when this process dies in any way. Starting fetches Triton the
    first time (see `deepfake_serve._runtime`).

    Attributes:
        grpc_url: ``127.0.0.1:PORT``, as gRPC clients take it; known after the start.
        http_url: ``http://127.0.0.1:PORT``.
        metrics_url: ``http://127.0.0.1:PORT/metrics``, in Prometheus' format.
        log_path: file that receives Triton's log; None when it goes to an open file.
        models: what is served, after the start.
        shares: instances and threads of each model, by its name, after the start.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        models: Sequence[str] = (),
        ports: Ports = Ports(),
        instances: int | None = None,
        threads: int | None = None,
        log: str | Path | TextIO | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
        announce: Announce | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        """Take the options; nothing is checked or started yet.

        Args:
            repository: model repository, as `deepfake export` writes it.
            models: names of the models to serve; all of them where empty.
            ports: to listen on; by default free ones.
            instances: copies of each model; by default as many as fit the cores.
            threads: threads of each copy; by default what is left per copy.
            log: file for Triton's log, overwritten, or one that is open, as `sys.stderr`; by default a temporary one.
            start_timeout_s: how long models may take to load.
            announce: called with one line before Triton is fetched, and where a model is served in another form than
                the repository names; by default it goes to standard error.
            flags: more of tritonserver's own, without the leading dashes, as in ``log-verbose=1``.
        """
        self._repository = Path(repository)
        self._model_names = tuple(models)
        self._ports = ports
        self._instances, self._threads = instances, threads
        self._log = log
        self._start_timeout_s = start_timeout_s
        self._announce = announce
        self._flags = tuple(flags)
        self._process: subprocess.Popen[bytes] | None = None
        self._plan: Plan | None = None
        self._view: View | None = None
        self._last_tail = ""
        self._marks: dict[str, str] = {}
        self._held: list[int] = []
        self._told: set[str] = set()
        self.grpc_url = self.http_url = self.metrics_url = ""
        self.log_path: Path | None = None
        self.models: list[CheckedModel] = []
        self.shares: dict[str, CpuShare] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Check the repository, start the server and return when every model has answered an inference.

        Raises:
            RepositoryError: the repository cannot be served.
            OptionError: a number is out of range.
            ServerStartError: a port is taken, Triton cannot be fetched, or it did not become ready.
        """
        if self._process is not None:
            raise ServerStartError("this embedded Triton was started already; stop it first, or make another one")
        models = check_repository(self._repository, self._model_names)
        shares = self._shares_of(models)
        with self._ports.reserved() as reserved:
            check_shared_memory(models, shares)
            runtime = ensure_runtime(announce=self._announce)
            ports = {name: listener.getsockname()[1] for name, listener in reserved.items()}
            self.grpc_url = f"{HOST}:{ports['grpc']}"
            self.http_url = f"http://{HOST}:{ports['http']}"
            self.metrics_url = f"http://{HOST}:{ports['metrics']}/metrics"
            self._tell_notes(models)
            try:
                self._held = _hold(models)
                self.models, self.shares = models, shares
                self._launch(runtime, ports, [listener.fileno() for listener in reserved.values()])
                self._wait_until_ready()
            except BaseException:
                self.stop()
                raise

    def reload(self) -> list[str]:
        """Serve what the repository's configurations name now, without losing a request.

        A version is served until the next one is ready. Models that were added are served from then on, and those
        that were removed are not. Where anything fails, everything is served as before.

        Returns:
            The names of the models that are served otherwise than before.

        Raises:
            RepositoryError: the repository cannot be served as it is now.
            ServerStartError: Triton could not load a version, or does not run.
        """
        if self._view is None:
            raise ServerStartError("this embedded Triton does not run; start it first")
        models = check_repository(self._repository, self._model_names)
        shares = self._shares_of(models)
        before, names = {**self._marks}, {model.spec.name for model in models}
        held = _hold(models)
        try:
            self._ask([model for model in self.models if model.spec.name in names])
            marks = self._view.show(models, shares)
            self._wait_until_loaded(models, marks)
        except BaseException:
            _release(held)
            self._view.show(self.models, self.shares)
            self._ask(self.models)
            raise
        self._ask(models)
        _release(self._held)
        self._tell_notes(models)
        self._held, self._marks, self.models, self.shares = held, marks, models, shares
        return sorted(name for name in before | marks if before.get(name) != marks.get(name))

    def stop(self) -> None:
        """End the server and remove everything it left on this machine; does nothing when it is not running."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                # Longer than the supervisor takes at most, which ends the server by force if need be.
                process.wait(STOP_TIMEOUT_S + 10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._last_tail = self.log_tail()
        if self._plan is not None:
            shutil.rmtree(self._plan.run_dir, ignore_errors=True)
            self._plan = self._view = None
        _release(self._held)

    @property
    def pid(self) -> int | None:
        """Process id of the supervisor, the parent of Triton's processes; None when nothing was started."""
        return None if self._process is None else self._process.pid

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until the server ends by itself, and return its exit code; None when the time is over."""
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def log_tail(self) -> str:
        """Return the last lines of Triton's log, without its tables; empty when it goes to an open file."""
        if self.log_path is None or not self.log_path.is_file():
            return self._last_tail
        with self.log_path.open(encoding="utf-8", errors="replace") as stream:
            kept = (line.rstrip() for line in stream if line.strip() and line[0] not in "+|")
            return "\n".join(collections.deque(kept, maxlen=TAIL_LINES))

    def _tell_notes(self, models: Sequence[CheckedModel]) -> None:
        """Say once of each model why it is not served as the repository says."""
        for note in (model.note for model in models if model.note and model.note not in self._told):
            self._told.add(note)
            (self._announce or on_stderr())(note)

    def _shares_of(self, models: Sequence[CheckedModel]) -> dict[str, CpuShare]:
        return {
            model.spec.name: model_share(model, usable_cores(), instances=self._instances, threads=self._threads)
            for model in models
        }

    def _launch(self, runtime: TritonRuntime, ports: Mapping[str, int], reserved: Sequence[int]) -> None:
        """Lay everything out in a temporary folder and start the supervisor, which keeps the ports reserved."""
        run_dir = Path(tempfile.mkdtemp(prefix="deepfake-serve-"))
        shm_prefix, shm_mb = f"deepfake-{secrets.token_hex(6)}-", max(map(shared_memory_mb, self.models))
        self._plan = plan = Plan(
            command=command_line(runtime, run_dir, ports, shm_prefix, shm_mb, self._flags),
            parent_pid=os.getpid(),
            http_port=ports["http"],
            shm_prefix=shm_prefix,
            run_dir=str(run_dir),
            start_timeout_s=self._start_timeout_s,
            notify=self._log is not sys.stderr,
        )
        self._view = View(run_dir)
        self._marks = self._view.show(self.models, self.shares)
        self._ask(self.models)
        plan.pulses.mkdir()
        write_backends(runtime, run_dir / "backends")
        plan.write(run_dir / "supervisor.json")
        with contextlib.ExitStack() as stack:
            log: IO[Any]
            if self._log is None or isinstance(self._log, str | Path):
                self.log_path = Path(self._log or run_dir / "triton.log")
                self.log_path.parent.mkdir(parents=True, exist_ok=True)
                log = stack.enter_context(self.log_path.open("wb"))
            else:
                log = self._log
            self._process = subprocess.Popen(
                supervisor_command(run_dir / "supervisor.json"),
                env=environment_of(runtime, plan),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=sys.__stderr__ or subprocess.DEVNULL,
                pass_fds=reserved,
                # Ctrl-C in a terminal goes to the whole group; the server must hear of it only from us.
                start_new_session=True,
            )

    def _ask(self, models: Sequence[CheckedModel]) -> None:
        """Have the supervisor ask exactly these models whether they answer."""
        assert self._plan is not None
        self._plan.set_questions(
            {model.spec.name: [model.spec.input_height_px, model.spec.input_width_px, 3] for model in models}
        )

    def _wait_until_ready(self) -> None:
        assert self._plan is not None
        deadline = time.monotonic() + self._start_timeout_s
        while not self._plan.serving.exists():
            if (code := self.wait(POLL_INTERVAL_S)) is not None:
                raise ServerStartError(self.failure(f"Triton ended while it started (exit code {code})"))
            if time.monotonic() > deadline:
                raise ServerStartError(self.failure(f"Triton was not ready within {self._start_timeout_s:g} s"))

    def _wait_until_loaded(self, models: Sequence[CheckedModel], marks: Mapping[str, str]) -> None:
        """Wait until each model is served in the state of its mark."""
        deadline = time.monotonic() + self._start_timeout_s
        for name, version in ((model.spec.name, model.spec.version) for model in models):
            while self._mark_served(name, version) != marks[name]:
                if (code := self.wait(POLL_INTERVAL_S)) is not None:
                    raise ServerStartError(self.failure(f"Triton ended by itself (exit code {code})"))
                what = f"version {version} of model {name!r} could not be loaded"
                if reason := self._refusal(name, version):
                    raise ServerStartError(f"{what}, what was served before still is: {reason}")
                if time.monotonic() > deadline:
                    raise ServerStartError(self.failure(f"{what} within {self._start_timeout_s:g} s"))

    def _mark_served(self, name: str, version: int) -> str:
        config = self._triton_json("GET", f"models/{name}/versions/{version}/config") or {}
        return str(config.get("parameters", {}).get(MARK_PARAMETER, {}).get("string_value", ""))

    def _refusal(self, name: str, version: int) -> str:
        """Return why Triton could not load a version; empty where it could, or has not tried yet."""
        for entry in self._triton_json("POST", "repository/index") or ():
            if (entry["name"], entry.get("version")) == (name, str(version)) and entry.get("state") == "UNAVAILABLE":
                # Python's traceback follows in further lines.
                reason, _, _ = str(entry.get("reason", "")).partition("\n")
                return "" if reason == "unloaded" else reason
        return ""

    def _triton_json(self, method: str, path: str) -> Any:
        """Ask Triton over HTTP; None where it has no answer now."""
        assert self._plan is not None
        with contextlib.closing(http.client.HTTPConnection(HOST, self._plan.http_port, timeout=1)) as connection:
            try:
                connection.request(method, f"/v2/{path}")
                answer = connection.getresponse()
                return json.load(answer) if answer.status == http.client.OK else None
            except (OSError, ValueError, http.client.HTTPException):
                return None

    def failure(self, what: str) -> str:
        """Return a message: what happened, the last error in Triton's log, and the end of that log."""
        if self.log_path is None:
            return f"{what}; its log above says why"
        tail = self.log_tail()
        kept = f" ({self.log_path})" if self._log else ""
        # Triton's errors begin with E and the date; the last one is the most complete.
        errors = re.findall(r'^E\d{4} .*?\] "(.*?)(?:\\n|"$)', tail, re.MULTILINE)
        reason = f": {errors[-1]}" if errors else ""
        return f"{what}{reason}; the end of its log{kept}:\n{tail}"


def _hold(models: Sequence[CheckedModel]) -> list[int]:
    """Mark the versions as in use; none is where one cannot be."""
    held: list[int] = []
    try:
        held.extend(hold_version(model.version_dir) for model in models)
    except BaseException:
        _release(held)
        raise
    return held


def _release(held: list[int]) -> None:
    while held:
        os.close(held.pop())
