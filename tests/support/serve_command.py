"""`deepfake serve` under a service manager, for tests that kill it. Import it as ``serve_command``."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
from server_processes import assert_all_end, shm_prefix, tritonserver_of

from deepfake_serve import Ports

DEEPFAKE = [sys.executable, "-c", "from deepfake_client.cli.main import main; raise SystemExit(main())"]


class Server:
    """`deepfake serve` under a service manager, which starts it again when it ends."""

    def __init__(self, repository: Path) -> None:
        with Ports().reserved() as reserved:
            ports = {name: item.getsockname()[1] for name, item in reserved.items()}
        self.urls = {"grpc": f"127.0.0.1:{ports['grpc']}", "http": f"http://127.0.0.1:{ports['http']}"}
        self.urls["grpc-shm"] = self.urls["grpc"]
        self._command = [*DEEPFAKE, "serve", "--repository", str(repository)]
        self._command += [item for name, port in ports.items() for item in (f"--{name}-port", str(port))]
        self.process = self._start()
        self._over = threading.Event()
        self._manager = threading.Thread(target=self._keep_running)
        self._manager.start()

    def supervisor(self) -> int:
        """Return the process id of the supervisor, once there is one."""
        while True:
            try:
                (found,) = psutil.Process(self.process.pid).children()
            except (psutil.NoSuchProcess, ValueError):
                time.sleep(0.05)  # between polls: it is about to be started
            else:
                return found.pid

    def wait_until_ready(self) -> None:
        """Return once health says so."""
        command = [*DEEPFAKE, "health", "--url", self.urls["grpc"]]
        while subprocess.run(command, capture_output=True, check=False).returncode:
            time.sleep(0.1)  # between polls

    def close(self) -> None:
        self._over.set()
        self._manager.join()
        prefix = shm_prefix(tritonserver_of(self.supervisor()))
        running = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(60) == 0
        assert_all_end(running)
        assert list(Path("/dev/shm").glob(f"{prefix}*")) == []

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _keep_running(self) -> None:
        while not self._over.wait(0.1):
            if self.process.poll() is not None:
                self.process = self._start()
