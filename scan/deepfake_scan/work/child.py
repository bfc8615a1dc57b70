"""What runs in a process that opens media: each line is an input, each line that it answers a result.

The first line is its `Setup`; `entry` is where it starts.
Libraries and the face detector are loaded before memory is bounded.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import sys
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, TextIO

from deepfake_client.async_client import AsyncDeepfakeClient
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.verdict import Reason, Verdict
from deepfake_client.sources.threads import Worker
from deepfake_preprocess.errors import DeepfakeError, InputError, MediaCrashError, MediaLimitError
from deepfake_preprocess.faces.mtcnn import MtcnnDetector
from deepfake_preprocess.support.limits import bound_process
from deepfake_scan.storage import is_bucket, open_object
from deepfake_scan.work.task import ProcessAnswer, Setup

NO_FILE: Final = 2**20
"""Bytes of a file that the process may write; it writes none."""
_OUT_OF_MEMORY: Final = (
    "bad_alloc",
    "bad allocation",
    "Insufficient memory",
    "ailed to allocate",
    "start new thread",
)


def main() -> None:
    """Answer until standard input ends."""
    # Pickled by the parent, which is this same program, and sent through a pipe between the two.
    setup: Setup = pickle.loads(base64.b64decode(sys.stdin.buffer.readline()))
    # What a library prints must not come between the lines.
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    asyncio.run(_serve(setup, lines))


async def _serve(setup: Setup, lines: TextIO) -> None:
    client = AsyncDeepfakeClient(setup.connection, model=setup.model, detector=MtcnnDetector(), detect_threads=1)
    inputs = Worker("scan-inputs")  # its thread is there before memory is bounded
    allowed = setup.limits.memory_bytes * setup.concurrency
    much = _peak_bytes() + allowed // 2
    bound_process(memory_bytes=allowed, file_bytes=NO_FILE)
    print(json.dumps({"ready": True}), file=lines, flush=True)
    running: set[asyncio.Task[None]] = set()

    async def answer(task: dict[str, Any]) -> None:
        outcome, starved = await _outcome(client, setup, task["address"])
        if outcome.verdict is not None and _cut_short(outcome.verdict) and _peak_bytes() > much:
            # FFmpeg skips what it finds no memory for, as if it were damaged.
            what = "could not be decoded whole: it is damaged, or needs more memory than is allowed"
            outcome = Outcome(outcome.source, error=MediaLimitError(f"{outcome.source} {what}; raise `memory_bytes`"))
            starved = True
        # The JSON is made here and not in the parent, which has more to do than one process.
        text = json.dumps(outcome.to_dict())
        found = asdict(ProcessAnswer.of(outcome, text, faces=setup.faces, starved=starved))
        print(json.dumps({"number": task["number"], "answer": found}), file=lines, flush=True)

    try:
        while line := await asyncio.wrap_future(inputs.submit(sys.stdin.buffer.readline)):
            task = asyncio.create_task(answer(json.loads(line)))
            running.add(task)
            task.add_done_callback(running.discard)
    except BaseException:  # no memory to go on; an orderly end would need some, and could wait forever
        traceback.print_exc()
        os._exit(1)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await client.close()


async def _outcome(client: AsyncDeepfakeClient, setup: Setup, address: str) -> tuple[Outcome, bool]:
    try:
        if not is_bucket(address):
            return Outcome(address, await client.analyze(address, options=setup.options)), False
        with await asyncio.to_thread(open_object, address) as file:
            verdict = await client.analyze(file, options=setup.options)
            return Outcome(address, replace(verdict, source=address)), False
    except DeepfakeError as exc:
        error: DeepfakeError = exc
        if isinstance(exc, InputError) and _out_of_memory(exc):
            error = MediaLimitError(f"{address} needs more memory than is allowed; raise `memory_bytes`")
        return Outcome(address, error=error), isinstance(error, MediaLimitError)
    except MemoryError:
        error = MediaLimitError(f"{address} needs more memory than is allowed; raise `memory_bytes`")
        return Outcome(address, error=error), True
    except Exception as exc:  # one input must not end a scan of millions
        detail = f"{type(exc).__name__}: {' '.join(str(exc).split())[:200]}"
        error = MediaCrashError(f"{address} made the analysis fail ({detail}); report it, with the file")
        return Outcome(address, error=error), _out_of_memory(exc)


def _out_of_memory(error: BaseException | None) -> bool:
    """Return whether memory ran out somewhere below an error; libraries in C++ say so in words only."""
    while error is not None:
        foreign = not isinstance(error, DeepfakeError)
        if isinstance(error, MemoryError) or (foreign and any(words in str(error) for words in _OUT_OF_MEMORY)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _cut_short(verdict: Verdict) -> bool:
    return verdict.corrupt_packets > 0 or verdict.reason is Reason.UNDECODABLE


def _peak_bytes() -> int:
    """Return the largest address space that this process has had (Linux; 0 elsewhere)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmPeak:")), 0)
