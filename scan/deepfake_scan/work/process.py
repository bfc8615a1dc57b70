"""`Process`: one process that opens media, seen from outside; several inputs are under way in it at once."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import pickle
import signal
import sys
from contextlib import suppress
from typing import Final

from deepfake_preprocess.errors import DeepfakeError
from deepfake_scan.work.clock import CoreTime
from deepfake_scan.work.task import ProcessAnswer, Setup

COMMAND: Final = (sys.executable, "-m", "deepfake_scan.work.entry")
LONGEST_LINE: Final = 256 * 2**20


class ProcessDiedError(DeepfakeError):
    """A process ended with inputs under way; says how."""


class ProcessStartError(DeepfakeError):
    """A process ended before it was given any input, which is not the input's fault."""


class Process:
    """Analyzes inputs until it is closed, or dies of one of them."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._process: asyncio.subprocess.Process | None = None
        self._waiting: dict[int, asyncio.Future[ProcessAnswer]] = {}
        self._numbers = itertools.count()
        self._reader: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._death = ""
        self._was_ready = False

    async def start(self) -> None:
        """Start the process; it gets ready by itself."""
        self._process = process = await asyncio.create_subprocess_exec(
            *COMMAND,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LONGEST_LINE, start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        # Headers may be secret, so not as an argument, which `ps` shows.
        process.stdin.write(base64.b64encode(pickle.dumps(self._setup)) + b"\n")
        self._reader = asyncio.create_task(self._read(process))

    async def analyze(self, address: str) -> ProcessAnswer:
        """Analyze an input; canceling does not end what is under way in the process.

        Raises:
            ProcessDiedError: the process ended, be it because of this input or of another one.
            ProcessStartError: it could not even start.
        """
        process = self._process
        assert process is not None
        assert process.stdin is not None
        await self._ready.wait()
        if self._death and not self._was_ready:
            raise ProcessStartError(
                f"a process that opens media ended {self._death} while it started; see its message"
            )
        if self._death:
            raise ProcessDiedError(self._death)
        number = next(self._numbers)
        self._waiting[number] = answer = asyncio.get_running_loop().create_future()
        try:
            with suppress(ConnectionError):  # then it is dead, which its reader finds out
                process.stdin.write(json.dumps({"number": number, "address": address}).encode() + b"\n")
                await process.stdin.drain()
            result: ProcessAnswer = await answer
        finally:
            self._waiting.pop(number, None)
        return result

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while (line := await process.stdout.readline()).endswith(b"\n"):
            data = json.loads(line)
            if "ready" in data:
                self._was_ready = True
                self._ready.set()
            elif (waiting := self._waiting.get(data["number"])) is not None and not waiting.done():
                waiting.set_result(ProcessAnswer(**data["answer"]))
        code = await process.wait()
        self._death = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        self._ready.set()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ProcessDiedError(self._death))

    def core_time(self) -> CoreTime:
        """What it has of the cores from now on."""
        assert self._process is not None
        return CoreTime(self._process.pid)

    @property
    def is_alive(self) -> bool:
        """Whether it can be given inputs."""
        return self._process is not None and not self._death and self._process.returncode is None

    async def close(self) -> None:
        """End the process, whatever it is doing."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        if self._reader is not None:
            await self._reader
