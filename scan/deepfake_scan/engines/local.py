"""The engine of one machine: a pool of processes, and one program that hands out inputs and writes parts."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Final

from deepfake_client.sources.concurrency import each_finished
from deepfake_preprocess import errors
from deepfake_preprocess.errors import ServerError
from deepfake_preprocess.support.pauses import Pauses
from deepfake_scan.inputs.todo import Item, Todo
from deepfake_scan.results.parts import load
from deepfake_scan.results.sink import ResultSink
from deepfake_scan.storage import Storage
from deepfake_scan.tally import ScanTally
from deepfake_scan.work.pool import Pool
from deepfake_scan.work.task import ProcessAnswer, Setup

SERVER_WAIT_S: Final = 600.0
"""How long a scan waits for servers that are away before it ends."""


async def analyze_until_served(pool: Pool, address: str) -> ProcessAnswer:
    """Analyze an input, again while no server answers; ServerError where none came back, or none can ever answer."""
    pauses, failures = Pauses(SERVER_WAIT_S), 0
    while True:
        answer = await pool.analyze(address)
        if not answer.server:
            return answer
        failures += 1
        if answer.server == errors.InferenceError.__name__:
            if failures > 1:
                return answer
        elif answer.server not in errors.AWAY or not pauses.fits:
            kind = getattr(errors, answer.server, ServerError)
            raise kind(answer.why)
        await pauses.take()


async def scan_here(todo: Todo, setup: Setup, storage: Storage, tally: ScanTally, *, processes: int) -> None:
    """Analyze all of `todo`; canceled, it keeps what is done.

    Raises:
        ServerError: the servers are away for good; what is done is kept.
        OptionError: results cannot be written.
    """

    def on_part() -> None:
        tally.parts += 1

    sink = ResultSink(storage, faces=setup.faces, on_row=lambda answer: tally.add(answer.cells), on_part=on_part)
    complete = False
    loading = asyncio.create_task(asyncio.to_thread(load))  # while the first inputs are analyzed
    async with Pool(setup, size=processes) as pool:

        async def work(item: Item) -> tuple[Item, ProcessAnswer]:
            tally.in_flight += 1
            try:
                return item, await analyze_until_served(pool, item.input.address)
            finally:
                tally.in_flight -= 1
                tally.deaths = pool.deaths

        try:
            async with aclosing(each_finished(work, todo, concurrency=pool.slots, ordered=False)) as finished:
                async for item, answer in finished:
                    await sink.add(item, answer)
            complete = True
        finally:
            await loading
            await sink.close(complete=complete)
