"""`Sandbox`: one process that opens media, seen from outside; `SandboxPool`: some, started before they are needed."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from deepfake_client.transport.protocol import Transport
from deepfake_client.transport.request_id import REQUEST_ID
from deepfake_gateway.addresses import Addresses
from deepfake_gateway.logs import logs_in_use
from deepfake_gateway.sandbox.gate import Gate
from deepfake_gateway.sandbox.limits import Limits
from deepfake_gateway.sandbox.relay import Relay
from deepfake_preprocess.errors import DeepfakeError

logger = logging.getLogger(__name__)
_said: set[str] = set()

OnProgress = Callable[[dict[str, Any]], None]
RunTask = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Does a task in a sandbox and returns its result; raises TaskError or SandboxError."""

TASKS_PER_PROCESS: Final = 64
"""A process is replaced after this many: starting one costs CPU time, and a decoder may leak."""
LONGEST_LINE: Final = 64 * 2**20


class SandboxError(DeepfakeError):
    """A process that opened a medium died, or was ended for using more than it may.

    `was_killed`: by SIGKILL, which comes from outside: from the kernel when memory is short, or from a person.
    """

    def __init__(self, detail: str, *, was_killed: bool = False) -> None:
        super().__init__(detail)
        self.was_killed = was_killed


class TaskError(DeepfakeError):
    """A task ended with an error of the client's, whose class `kind` names."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class Sandbox:
    """One process that does one task at a time."""

    def __init__(self, limits: Limits, transport: Transport, model: str | None, *, has_door: bool = False) -> None:
        self._limits, self._transport, self._model, self._has_door = limits, transport, model, has_door
        self._process: asyncio.subprocess.Process | None = None
        self._files: socket.socket | None = None
        self._relay: Relay | None = None
        self._answering: asyncio.Task[None] | None = None
        self._ready = False
        self.tasks_done = 0

    async def start(self) -> None:
        """Start the process; it gets ready by itself."""
        relay, its_relay = socket.socketpair()
        self._files, its_files = socket.socketpair(type=socket.SOCK_DGRAM)
        setup = {
            "limits": asdict(self._limits), "model": self._model, "has_door": self._has_door,
            "logs": logs_in_use(), "relay_fd": its_relay.fileno(), "files_fd": its_files.fileno(),
        }  # fmt: skip
        with its_relay, its_files:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "deepfake_gateway.sandbox.entry", json.dumps(setup),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                pass_fds=(its_relay.fileno(), its_files.fileno()), limit=LONGEST_LINE, start_new_session=True,
            )  # fmt: skip
        self._relay = Relay(relay, self._transport)
        self._answering = asyncio.create_task(self._relay.run())

    async def run(self, task: dict[str, Any], on_progress: OnProgress | None = None) -> dict[str, Any]:
        """Do a task with the file at its ``path`` and return its result; canceling ends the process.

        Raises:
            TaskError: the client refused the medium or the server failed.
            SandboxError: the process died, or took longer than it may.
        """
        process = self._process
        assert process is not None
        finished = False
        try:
            async with asyncio.timeout(self._limits.wall_s):
                await self._wait_until_ready()
                await asyncio.to_thread(self._hand_over, task["path"])
                about = {name: value for name, value in task.items() if name != "path"}
                line = await self._answer(about, on_progress)
            finished = True
        except TimeoutError:
            raise SandboxError(
                f"{task['name']} took longer than {self._limits.wall_s:g} s; send a shorter part of it, or allow "
                "more with `job_timeout_s`"
            ) from None
        except (BrokenPipeError, ConnectionResetError):
            raise self._death(await process.wait()) from None
        finally:
            if not finished:
                await self.close()
        self.tasks_done += 1
        if "error" in line:
            raise TaskError(line["error"], line["detail"])
        return line

    async def watch(self, task: dict[str, Any], addresses: Addresses, on_progress: OnProgress) -> None:
        """Watch the live source at the ``url`` of a task until it ends; canceling ends the process.

        The sandbox must have a door; it is of no use afterwards. Progress is the JSON of verdicts.

        Raises:
            TaskError: the source cannot be opened or broke off for good, or the server failed.
            SandboxError: the process died.
        """
        process = self._process
        assert process is not None
        try:
            await self._wait_until_ready()
            assert self._files is not None
            _, descriptors, _, _ = socket.recv_fds(self._files, 1, 1)  # it was sent before the process was ready
            async with Gate(socket.socket(fileno=descriptors[0]), addresses, task["url"]) as gate:
                line = await self._answer({**task, "url": gate.url, "proxy": gate.proxy}, on_progress)
        except (BrokenPipeError, ConnectionResetError):
            raise self._death(await process.wait()) from None
        finally:
            await self.close()
        if "error" in line:
            raise TaskError(line["error"], gate.problem or line["detail"])

    async def _answer(self, about: dict[str, Any], on_progress: OnProgress | None) -> dict[str, Any]:
        """Hand a task over, and return its last line."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert self._relay is not None
        self._relay.context = copy_context()
        about = {**about, "request_id": REQUEST_ID.get()}
        process.stdin.write(json.dumps(about).encode() + b"\n")
        await process.stdin.drain()
        while True:
            line = await self._line()
            if (progress := line.get("progress")) is None:
                return line
            if on_progress is not None:
                on_progress(progress)

    async def _wait_until_ready(self) -> None:
        if not self._ready:
            _say_once(*(await self._line())["problems"])
            self._ready = True

    def _hand_over(self, path: str) -> None:
        """Send the open file: the process may open none itself."""
        assert self._files is not None
        with Path(path).open("rb") as file:
            socket.send_fds(self._files, [b"f"], [file.fileno()])

    async def _line(self) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._death(await process.wait())
        data: dict[str, Any] = json.loads(line)
        return data

    def _death(self, code: int) -> SandboxError:
        if code == -signal.SIGXCPU:
            return SandboxError(
                f"the medium took more than {self._limits.cpu_s} s of CPU time; send a shorter part of it"
            )
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        return SandboxError(
            f"the process that opened the medium ended {how}: the file is damaged or made to do harm, or needs more "
            f"than {self._limits.memory_bytes >> 20} MiB; convert it again from its source and retry",
            was_killed=code == -signal.SIGKILL,
        )

    async def close(self) -> None:
        """End the process, whatever it is doing."""
        process, self._process = self._process, None
        if process is None:
            return
        assert self._files is not None
        assert self._answering is not None
        self._files.close()
        self._answering.cancel()
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    @property
    def is_usable(self) -> bool:
        """Whether it can do another task."""
        return self._process is not None and self._process.returncode is None and self.tasks_done < TASKS_PER_PROCESS


class Sandboxes(Protocol):
    """Where tasks are done."""

    async def run(self, task: dict[str, Any], on_progress: OnProgress | None = None) -> dict[str, Any]:
        """Do a task; see `Sandbox.run`."""
        ...

    async def close(self) -> None:
        """End all that are idle."""
        ...


class SandboxPool:
    """Up to `size` sandboxes; one that was used up or died is replaced before it is asked for."""

    def __init__(self, size: int, limits: Limits, transport: Transport, model: str | None) -> None:
        self._make = partial(Sandbox, limits, transport, model)
        self._idle: list[Sandbox] = []
        self._size = size
        self._places = asyncio.Semaphore(size)

    async def start(self) -> None:
        """Start all; else each is started when it is needed."""
        for _ in range(self._size):
            await self._add()

    async def _add(self) -> None:
        sandbox = self._make()
        await sandbox.start()
        self._idle.append(sandbox)

    @asynccontextmanager
    async def sandbox(self) -> AsyncIterator[Sandbox]:
        """Lend one."""
        async with self._places:
            while self._idle and not self._idle[-1].is_usable:
                await self._idle.pop().close()
            if not self._idle:
                await self._add()
            sandbox = self._idle.pop()
            try:
                yield sandbox
            finally:
                if sandbox.is_usable:
                    self._idle.append(sandbox)
                else:
                    await sandbox.close()
                    await self._add()

    async def run(self, task: dict[str, Any], on_progress: OnProgress | None = None) -> dict[str, Any]:
        """Do a task in one of them; see `Sandbox.run`."""
        async with self.sandbox() as sandbox:
            return await sandbox.run(task, on_progress)

    async def close(self) -> None:
        """End all that are not lent."""
        while self._idle:
            await self._idle.pop().close()


def _say_once(network: str | None, user: str | None) -> None:
    """Log what sandboxes keep that they should not have, with the first of them."""
    for what, problem in (("with the network", network), ("as root", user)):
        if problem is not None and what not in _said:
            _said.add(what)
            logger.warning("media are opened %s, which cannot be given up here: %s", what, problem)
