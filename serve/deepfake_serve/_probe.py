"""Asks a server, by real inferences, whether its models answer; for the supervisor, in a thread of its own.

A server that is only busy is not taken for one that is stuck: silence counts where no backend process has come any
further meanwhile. Standard library only.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from deepfake_serve._plan import HOST, Plan

INTERVAL_S, MAX_INTERVAL_S = 2.0, 10.0
SHARE = 0.02
"""Share of the time that probing may take: slow models are asked less often than every `INTERVAL_S`."""
START_INTERVAL_S = 0.05
TIMEOUT_S = 5.0
SILENT = f"gave no answer within {TIMEOUT_S:g} s"
FAILURES = 2
"""Errors in a row that count as an ailment. A single one may have met a model that was just replaced."""
SILENCE_S = 30.0
"""Without any answer or progress for this long, a server is stuck. An overloaded machine may be silent for a
while; processes that died, were stopped or compute without end are noticed otherwise, and sooner."""
BUSY_TEXTS = ("maximum queue size", "request timeout expired")


class Asking:
    """Asks all models again and again, from now on until it is closed.

    Attributes:
        ailment: why the server has to be started again; empty where it does not.
        told: descriptor that becomes readable with `ailment`.
        served: whether every model has answered once.
    """

    def __init__(self, plan: Plan, *, beats: Callable[[], int]) -> None:
        """Take what to ask; `beats` counts the computations of all backend processes."""
        self.ailment = ""
        self.served = False
        self.told, self._tell = os.pipe()
        self._plan, self._beats = plan, beats
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deepfake-probe", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask no more; the question under way may still be answered."""
        self._over.set()
        self._plan.serving.unlink(missing_ok=True)

    def close(self) -> None:
        """Wait for the question under way, which has ended with the server."""
        self.stop()
        self._thread.join()
        self._plan.serving.unlink(missing_ok=True)
        os.close(self.told)
        os.close(self._tell)

    def _run(self) -> None:
        start, failures, pause_s = time.monotonic(), 0, START_INTERVAL_S
        progress, progress_at = self._beats(), start
        while not self._over.wait(pause_s):
            began = time.monotonic()
            problem = next(filter(None, map(self._ask, self._plan.questions())), "")
            now = time.monotonic()
            is_silent = problem.endswith(SILENT)
            if not problem or self._beats() != progress:
                progress, progress_at = self._beats(), now
            if problem:
                self._plan.serving.unlink(missing_ok=True)
            elif not self._over.is_set():
                self.served = True
                self._plan.serving.touch()
            failures = failures + 1 if problem and not is_silent else 0
            limit_s = self._plan.start_timeout_s
            if not self.served and now - start > limit_s:
                return self._report(f"not every model answered within {limit_s:g} s of its start ({problem})")
            if self.served and (failures >= FAILURES or (is_silent and now - progress_at > SILENCE_S)):
                return self._report(problem)
            pause_s = self._pause_s(now - began, problem)
        return None

    def _pause_s(self, took_s: float, problem: str) -> float:
        if not self.served:
            return START_INTERVAL_S
        return INTERVAL_S / 4 if problem else min(max(INTERVAL_S, took_s / SHARE), MAX_INTERVAL_S)

    def _report(self, ailment: str) -> None:
        self.ailment = ailment
        os.write(self._tell, b"!")

    def _ask(self, question: dict[str, Any]) -> str:
        """Return why a model does not answer; empty where it does, or is only too busy to."""
        name = question["model"]
        head = question["head"].encode()
        headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
        connection = http.client.HTTPConnection(HOST, self._plan.http_port, timeout=TIMEOUT_S)
        with contextlib.closing(connection):
            try:
                connection.request("POST", f"/v2/models/{name}/infer", head + bytes(question["num_bytes"]), headers)
                answer = connection.getresponse()
                text = answer.read().decode(errors="replace")
            except TimeoutError:
                return f"model {name!r} {SILENT}"
            except (OSError, http.client.HTTPException) as exc:
                return f"model {name!r} could not be asked ({exc or type(exc).__name__})"
        if answer.status == http.client.OK or any(busy in text.lower() for busy in BUSY_TEXTS):
            return ""
        return f"model {name!r} failed a request ({' '.join(text.split())[:300]})"
