"""The small process between a caller and Triton; it keeps Triton running, and makes sure that nothing is left behind.

It starts `tritonserver` and watches it: the server and each backend process are there and not stopped, no backend
process computes without end, and every model answers a real inference. Triton 2.51 never replaces a backend process
that died, and still calls itself ready; so whatever is wrong, all of Triton is started again, and only a bounded
number of times.

When it is asked to stop, when Triton cannot be kept running, or when the caller is gone for whatever reason (SIGKILL
included), it ends every process of Triton and removes its shared memory and its temporary folder. A death signal
alone (`PR_SET_PDEATHSIG`) would not do: it is bound to the *thread* that started the child, and cleans nothing up.

Triton's log passes through it, to see when the last request was answered: what Triton does after that takes
3 s and only frees what the end of its processes frees at once.

Runs as a process of its own with the standard library only: it takes over signals.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from deepfake_serve._plan import RESTARTS_VARIABLE, SHARED_MEMORY, STOP_TIMEOUT_S, Plan
from deepfake_serve._probe import Asking
from deepfake_serve._pulse import STOPPED_S, PulseWatch, is_stopped

ENVIRONMENTS = Path("/tmp")
ENVIRONMENT_PATTERN = "python_env_*"
"""Triton's Python backend makes such a folder for each server, wherever `TMPDIR` points, and removes it at an orderly
end that is not waited for. It stays empty: no model of ours brings a Python environment."""
ALL_ANSWERED = b"All models are stopped, unloading models"
"""What Triton 2.51 logs when no request is in flight any more. Where it never comes, stopping takes longer."""
FLUSH_S = 0.2
"""From there on, the last answers are on their way out of the server's sockets."""
TICK_S = 0.25
PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>
PR_SET_CHILD_SUBREAPER = 36

MAX_FAILED_STARTS = 5
"""So many starts in a row after which no model answered are the last ones."""
MAX_RESTARTS_PER_HOUR = 200
"""Requests that kill the server each time it is back must not go on for ever. 100 faults in a row are outlived."""
FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 5.0
"""The pause before a start; it doubles while the server does not stay up for `CALM_S`."""
CALM_S = 10.0
EXIT_GIVEN_UP = 1


@dataclass(frozen=True, slots=True)
class End:
    """How one run of Triton ended.

    Attributes:
        reason: what was wrong; empty where somebody asked for the end.
        code: what a shell would report: Triton's code, or 128 + signal.
        served: whether every model had answered.
    """

    reason: str
    code: int
    served: bool


@dataclass(slots=True)
class Restarts:
    """How often, and how soon, Triton is started again."""

    total: int = 0
    failed: int = 0
    pause_s: float = 0.0
    times: list[float] = field(default_factory=list)

    def next_pause_s(self, end: End, up_s: float) -> float | None:
        """Return how long to wait after a run that lasted `up_s`; None where it was the last one."""
        now = time.monotonic()
        self.total += 1
        self.times = [*(item for item in self.times if now - item < 3_600), now]
        self.failed = 0 if end.served else self.failed + 1
        if self.failed >= MAX_FAILED_STARTS or len(self.times) > MAX_RESTARTS_PER_HOUR:
            return None
        self.pause_s = FIRST_PAUSE_S if up_s >= CALM_S else min(max(FIRST_PAUSE_S, 2 * self.pause_s), MAX_PAUSE_S)
        return self.pause_s


def main(plan_path: str) -> int:
    """Keep one server running until it is asked to stop, the caller is gone, or it cannot be kept running.

    Returns 0 where it was asked to stop, else the code of the last `End`. A server that never served is not started
    again: what is wrong with it was wrong from the start.
    """
    plan = Plan.read(Path(plan_path))
    # Python stubs that outlive the server become children of this process, which then can wait for them.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wakeup = _signal_pipe(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    parent: int | None = None
    try:
        if os.getppid() != plan.parent_pid:
            return 0
        # Its threads and forks do not matter.
        parent = os.pidfd_open(plan.parent_pid)
        return _keep_running(plan, parent, wakeup)
    except ProcessLookupError:
        return 0
    finally:
        if parent is None or _wait_for([parent], 0):
            shutil.rmtree(plan.run_dir, ignore_errors=True)


def _keep_running(plan: Plan, parent: int, wakeup: int) -> int:
    restarts, has_served = Restarts(), False
    while True:
        start = time.monotonic()
        with TritonRun(plan, number=restarts.total) as run:
            end = run.until_end(parent, wakeup)
        if not end.reason:
            return 0
        has_served |= end.served
        if not has_served:
            return end.code
        pause_s = restarts.next_pause_s(end, time.monotonic() - start)
        if pause_s is None:
            _say(plan, f"{end.reason}; Triton was started again {restarts.total - 1} times, and is given up")
            return end.code
        _say(plan, f"{end.reason}; starting Triton again (restart {restarts.total})")
        if _wait_for([parent, wakeup], pause_s):
            return 0


class TritonRun:
    """Triton from one start to its end; after the context nothing of it is left."""

    def __init__(self, plan: Plan, *, number: int) -> None:
        self._plan, self._number = plan, number
        self._environments = set(ENVIRONMENTS.glob(ENVIRONMENT_PATTERN))
        self._server = subprocess.Popen(
            plan.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, RESTARTS_VARIABLE: str(number)},
            # The server must not outlive this process either. Safe here, as no other thread runs now.
            preexec_fn=_die_with_parent,
        )
        assert self._server.stdout is not None
        self._log = self._server.stdout
        self._ended = os.pidfd_open(self._server.pid)
        self._watch = PulseWatch(plan.pulses)
        self._asking = Asking(plan, beats=lambda: self._watch.beats)
        self._stopped_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        _end_group(self._server)
        self._asking.close()
        self._watch.close()
        self._log.close()
        os.close(self._ended)
        for path in SHARED_MEMORY.glob(self._plan.shm_prefix + "*"):
            path.unlink(missing_ok=True)
        for path in ENVIRONMENTS.glob(ENVIRONMENT_PATTERN):
            # One that another server made since then is empty as well, or stays.
            if path not in self._environments:
                with contextlib.suppress(OSError):
                    path.rmdir()

    def until_end(self, parent: int, wakeup: int) -> End:
        """Watch until Triton ends, has to be ended, or is asked to: by a signal, or by the end of the parent."""
        start = looked_at = time.monotonic()
        announced = self._number == 0
        while True:
            ready = _pass_log_until(
                self._log.fileno(),
                [parent, wakeup, self._ended, self._asking.told, *self._watch.ends],
                timeout_s=TICK_S,
            )
            if parent in ready or wakeup in ready:
                if self._ended not in ready:
                    self._stop(wakeup)
                return End("", 0, self._asking.served)
            now = time.monotonic()
            # What the supervisor did not see does not count: it may have been stopped itself.
            reason, code = self._ailment(min(now - looked_at, 2 * TICK_S), has_ended=self._ended in ready)
            looked_at = now
            if reason:
                _pass_log_until(self._log.fileno(), [], timeout_s=0)
                return End(reason, code, self._asking.served)
            if self._asking.served and not announced:
                announced = True
                _say(self._plan, f"Triton serves again, {now - start:.1f} s after its start")

    def _ailment(self, elapsed_s: float, *, has_ended: bool) -> tuple[str, int]:
        """Return why Triton has to be started again, empty where it does not, and the exit code that this means."""
        if has_ended:
            code = self._server.wait()
            code = code if code >= 0 else 128 - code
            return f"Triton ended by itself (exit code {code})", code
        self._stopped_s = self._stopped_s + elapsed_s if is_stopped(self._server.pid) else 0.0
        if self._stopped_s > STOPPED_S:
            return f"Triton's process {self._server.pid} was stopped", EXIT_GIVEN_UP
        return self._watch.look(elapsed_s) or self._asking.ailment, EXIT_GIVEN_UP

    def _stop(self, wakeup: int) -> None:
        """Let Triton answer what it has accepted; a second signal means that the caller has lost patience."""
        _drain(wakeup)
        self._asking.stop()
        self._server.terminate()
        log, until = self._log.fileno(), [wakeup, self._ended]
        _pass_log_until(log, until, timeout_s=STOP_TIMEOUT_S, text=ALL_ANSWERED)
        _pass_log_until(log, until, timeout_s=FLUSH_S)


def _say(plan: Plan, text: str) -> None:
    """Write a line into the log, and where that is another place to standard error."""
    line = f"deepfake-serve: {text}\n".encode()
    for descriptor in {1, 2} if plan.notify else {1}:
        # Nobody may read it any more; that must not keep the server from being watched.
        if _wait_for([], 0, to_write=descriptor):
            with contextlib.suppress(OSError):
                os.write(descriptor, line)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _signal_pipe(*signals: signal.Signals) -> int:
    """Return a descriptor that becomes readable when one of `signals` arrives."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in signals:
        signal.signal(number, lambda *_: None)
    return read_end


def _drain(descriptor: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(descriptor, 1)


def _wait_for(descriptors: list[int], timeout_s: float, *, to_write: int | None = None) -> bool:
    """Return whether one of `descriptors` becomes readable in time, or `to_write` takes a line."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    if to_write is not None:
        poll.register(to_write, select.POLLOUT)
    return bool(poll.poll(timeout_s * 1_000))


def _pass_log_until(
    log: int, descriptors: list[int], *, timeout_s: float | None = None, text: bytes | None = None
) -> set[int]:
    """Copy the server's log to standard output until one of `descriptors` is readable, and return those that are.

    Also returns after the time, with what can be read at once copied even for 0, and when the log says `text`.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    poll = select.poll()
    for descriptor in (log, *descriptors):
        poll.register(descriptor, select.POLLIN)
    recent = b""
    while True:
        wait_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1_000
        ready = {descriptor for descriptor, _ in poll.poll(wait_ms)}
        if log in ready:
            chunk = os.read(log, 65_536)
            if not chunk:  # closed; its readiness says nothing from now on
                poll.unregister(log)
            # The caller's end may be closed; that must not keep the server from being ended.
            with contextlib.suppress(OSError):
                os.write(sys.stdout.fileno(), chunk)
            recent = recent[-200:] + chunk
            if text is not None and text in recent:
                return ready - {log}
        if ready - {log} or not ready:
            return ready - {log}


def _end_group(server: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of the server's process group, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
