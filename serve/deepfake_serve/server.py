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
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from deepfake_preprocess.contract.model_dir import hold_version
from deepfake_preprocess.contract.triton_config import EMBEDDED_BACKEND
from deepfake_preprocess.errors import OptionError, ServerStartError
from deepfake_preprocess.support.wheels import Announce
from deepfake_serve import _supervisor as supervisor
from deepfake_serve._repository import (
    CpuShare,
    ServedModel,
    available_cores,
    check_repository,
    model_share,
    write_view,
)
from deepfake_serve._runtime import TritonRuntime, ensure_runtime, library_path

HOST = "127.0.0.1"
START_TIMEOUT_S = 120.0
"""A model of 100 MB is up in 3 s on two cores; this is for slow disks and many models."""
STOP_TIMEOUT_S = 10.0
"""How long requests in flight may take to finish before the server is killed."""
POLL_INTERVAL_S = 0.05
SHARED_MEMORY_PER_INSTANCE_MB = 16
"""What an instance may come to need in /dev/shm: input and output of the largest batch, several times."""
TAIL_LINES = 15


class EmbeddedTriton:
    """A real Triton on this machine's CPU, for as long as the context lasts.

    ::

        with EmbeddedTriton("model_repository") as triton:
            client = tritonclient.grpc.InferenceServerClient(triton.grpc_url)

    The server ends with the context, and also when this process dies in any way. Starting fetches Triton the
    first time (see `deepfake_serve._runtime`).

    Attributes:
        grpc_url: ``127.0.0.1:PORT``, as gRPC clients take it; known after the start.
        http_url: ``http://127.0.0.1:PORT``.
        metrics_url: ``http://127.0.0.1:PORT/metrics``, in Prometheus' format.
        log_path: file that receives Triton's log; None when it goes to standard error.
        models: what is served, after the start.
        shares: instances and threads of each model, by its name, after the start.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        models: Sequence[str] = (),
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int = 0,
        instances: int | None = None,
        threads: int | None = None,
        log_path: str | Path | None = None,
        log_to_stderr: bool = False,
        start_timeout_s: float = START_TIMEOUT_S,
        announce: Announce | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        """Take the options; nothing is checked or started yet.

        Args:
            repository: model repository, as `deepfake export` writes it.
            models: names of the models to serve; all of them where empty.
            grpc_port: port to listen on; 0 takes a free one.
            http_port: port to listen on; 0 takes a free one.
            metrics_port: port to listen on; 0 takes a free one.
            instances: copies of each model; by default as many as fit the cores.
            threads: ONNX Runtime threads of each copy; by default what is left per copy.
            log_path: file for Triton's log, overwritten; by default a temporary one.
            log_to_stderr: pass Triton's log through instead of writing a file.
            start_timeout_s: how long models may take to load.
            announce: called with one line before Triton is fetched; by default it goes to standard error.
            flags: more of tritonserver's own, without the leading dashes, as in ``log-verbose=1``.
        """
        self._repository = Path(repository)
        self._model_names = tuple(models)
        self._ports = {"grpc_port": grpc_port, "http_port": http_port, "metrics_port": metrics_port}
        self._instances, self._threads = instances, threads
        self._wanted_log_path = None if log_path is None else Path(log_path)
        self._log_to_stderr = log_to_stderr
        self._start_timeout_s = start_timeout_s
        self._announce = announce
        self._flags = tuple(flags)
        self._process: subprocess.Popen[bytes] | None = None
        self._run_dir: Path | None = None
        self._last_tail = ""
        self._held: list[int] = []
        self.grpc_url = self.http_url = self.metrics_url = ""
        self.log_path: Path | None = None
        self.models: list[ServedModel] = []
        self.shares: dict[str, CpuShare] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Check the repository, start the server and return when every model is ready.

        Raises:
            RepositoryError: the repository cannot be served.
            OptionError: a port or number is out of range.
            ServerStartError: a port is taken, Triton cannot be fetched, or it did not become ready.
        """
        if self._process is not None:
            raise ServerStartError("this embedded Triton was started already; stop it first, or make another one")
        self.models = check_repository(self._repository, self._model_names)
        self.shares = {
            model.spec.name: model_share(model, available_cores(), instances=self._instances, threads=self._threads)
            for model in self.models
        }
        ports = _choose_ports(self._ports)
        _check_shared_memory(sum(share.instances for share in self.shares.values()))
        runtime = ensure_runtime(announce=self._announce)
        self.grpc_url = f"{HOST}:{ports['grpc_port']}"
        self.http_url = f"http://{HOST}:{ports['http_port']}"
        self.metrics_url = f"http://{HOST}:{ports['metrics_port']}/metrics"
        self._run_dir = Path(tempfile.mkdtemp(prefix="deepfake-serve-"))
        try:
            for model in self.models:
                self._held.append(hold_version(model.version_dir))
            self._launch(runtime, ports)
            self._wait_until_ready(ports["http_port"])
        except BaseException:
            self.stop()
            raise

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
        if self._run_dir is not None:
            shutil.rmtree(self._run_dir, ignore_errors=True)
            self._run_dir = None
        while self._held:
            os.close(self._held.pop())

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
        """Return the last lines of Triton's log, without its tables; empty when it goes to standard error."""
        if self.log_path is None or not self.log_path.is_file():
            return self._last_tail
        with self.log_path.open(encoding="utf-8", errors="replace") as stream:
            kept = (line.rstrip() for line in stream if line.strip() and line[0] not in "+|")
            return "\n".join(collections.deque(kept, maxlen=TAIL_LINES))

    def _launch(self, runtime: TritonRuntime, ports: dict[str, int]) -> None:
        run_dir = self._run_dir
        assert run_dir is not None
        write_view(self.models, run_dir / "repository", self.shares)
        _write_backends(runtime, run_dir / "backends")
        shm_prefix = f"deepfake-{secrets.token_hex(6)}-"
        config = {
            "command": _command(runtime, run_dir, ports, shm_prefix, self._flags),
            "parent_pid": os.getpid(),
            "shm_prefix": shm_prefix,
            "run_dir": str(run_dir),
            "stop_timeout_s": STOP_TIMEOUT_S,
        }
        config_path = run_dir / "supervisor.json"
        config_path.write_text(json.dumps(config), encoding="utf-8")
        with contextlib.ExitStack() as stack:
            if self._log_to_stderr:
                output: int = sys.__stderr__.fileno() if sys.__stderr__ is not None else subprocess.DEVNULL
            else:
                self.log_path = self._wanted_log_path or run_dir / "triton.log"
                self.log_path.parent.mkdir(parents=True, exist_ok=True)
                output = stack.enter_context(self.log_path.open("wb")).fileno()
            self._process = subprocess.Popen(
                # Isolated and without site: the supervisor needs the standard library only, and starts faster.
                [sys.executable, "-I", "-S", supervisor.__file__, str(config_path)],
                env=_environment(runtime),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # The versions stay marked as in use until the server has ended, even where this process is killed.
                pass_fds=self._held,
                # Ctrl-C in a terminal goes to the whole group; the server must hear of it only from us.
                start_new_session=True,
            )

    def _wait_until_ready(self, http_port: int) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._start_timeout_s
        while not _is_ready(http_port):
            if (code := self.wait(POLL_INTERVAL_S)) is not None:
                raise ServerStartError(self.failure(f"Triton ended while it started (exit code {code})"))
            if time.monotonic() > deadline:
                raise ServerStartError(self.failure(f"Triton was not ready within {self._start_timeout_s:g} s"))

    def failure(self, what: str) -> str:
        """Return a message: what happened, the last error in Triton's log, and the end of that log."""
        if self.log_path is None:
            return f"{what}; its log above says why"
        tail = self.log_tail()
        kept = f" ({self.log_path})" if self._wanted_log_path else ""
        # Triton's errors begin with E and the date; the last one is the most complete.
        errors = re.findall(r'^E\d{4} .*?\] "(.*?)(?:\\n|"$)', tail, re.MULTILINE)
        reason = f": {errors[-1]}" if errors else ""
        return f"{what}{reason}; the end of its log{kept}:\n{tail}"


def _choose_ports(wanted: dict[str, int]) -> dict[str, int]:
    """Return a usable port for each name: the one given, or a free one for 0."""
    given = [port for port in wanted.values() if port]
    for name, port in wanted.items():
        if not 0 <= port <= 65535:
            raise OptionError(f"`{name}` is {port}; allowed: 1 to 65535, or 0 for a free port")
        if port and given.count(port) > 1:
            raise OptionError(f"`{name}` is {port}, as another port is; give each its own")
    with contextlib.ExitStack() as stack:
        chosen: dict[str, int] = {}
        # Given ones first, so that no free one takes them. All stay bound until the last one is chosen.
        for name, port in sorted(wanted.items(), key=lambda item: item[1] == 0):
            listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            # As Triton binds: a port whose last connections are just closing is free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, port))
                listener.listen(1)
            except OSError as exc:
                raise ServerStartError(
                    f"port {port} cannot be used ({exc.strerror}); choose another `{name}`, or 0 for a free one"
                ) from exc
            chosen[name] = listener.getsockname()[1]
    return chosen


def _check_shared_memory(instances: int) -> None:
    try:
        free_mb = shutil.disk_usage(supervisor.SHARED_MEMORY).free // 2**20
    except OSError as exc:
        raise ServerStartError(
            f"Triton's Python backend needs {supervisor.SHARED_MEMORY}, which is not there ({exc.strerror})"
        ) from exc
    needed_mb = instances * SHARED_MEMORY_PER_INSTANCE_MB
    if free_mb < needed_mb:
        raise ServerStartError(
            f"{supervisor.SHARED_MEMORY} has {free_mb} MB free, and {instances} model instances need {needed_mb} MB; "
            f"enlarge it (in Docker: shm_size {max(256, 2 * needed_mb)}m) or lower `instances`"
        )


def _write_backends(runtime: TritonRuntime, target: Path) -> None:
    """Lay out a backend directory: Triton's Python backend, and ours on top of it."""
    target.mkdir()
    # The folder as a whole: Triton refuses a backend whose library alone is a link to elsewhere.
    (target / "python").symlink_to(runtime.python_backend, target_is_directory=True)
    ours = target / EMBEDDED_BACKEND
    ours.mkdir()
    # The stub embeds a Python in isolated mode, which ignores PYTHONPATH; so the path travels in the file.
    search_path = [str(Path(__file__).parents[1]), *(entry for entry in sys.path if entry)]
    (ours / "model.py").write_text(
        "import sys\n\n"
        f"sys.path[:0] = {search_path!r}\n"
        "from deepfake_serve._backend import TritonPythonModel  # noqa: E402, F401\n",
        encoding="utf-8",
    )


def _environment(runtime: TritonRuntime) -> dict[str, str]:
    return {
        **os.environ,
        "LD_LIBRARY_PATH": library_path(runtime),
        # The stub finds its standard library through the first `python3` on the path.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        # This server runs on the CPU; with a GPU in sight it would set aside memory there.
        "CUDA_VISIBLE_DEVICES": "",
    }


def _command(
    runtime: TritonRuntime, run_dir: Path, ports: dict[str, int], shm_prefix: str, more_flags: Sequence[str]
) -> list[str]:
    flags = [
        f"model-repository={run_dir / 'repository'}",
        f"backend-directory={run_dir / 'backends'}",
        f"backend-config=python,shm-region-prefix-name={shm_prefix}",
        "model-control-mode=none",
        "strict-readiness=true",
        "disable-auto-complete-config",
        f"exit-timeout-secs={int(STOP_TIMEOUT_S)}",
        "allow-gpu-metrics=false",
        *(f"{kind}-address={HOST}" for kind in ("grpc", "http", "metrics")),
        *(f"{name.replace('_', '-')}={port}" for name, port in ports.items()),
    ]
    return [str(runtime.tritonserver), *(f"--{flag}" for flag in (*flags, *more_flags))]


def _is_ready(http_port: int) -> bool:
    with contextlib.closing(http.client.HTTPConnection(HOST, http_port, timeout=1)) as connection:
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
