"""The engine of a cluster: Ray Data hands addresses to a pool of actors that grows and shrinks.

Rows are ids and addresses, never frames. Each actor has a pool of processes (`work.pool`), and writes a part for
each batch itself, into storage that every node reaches. A part's name follows from its ids: a batch that Ray gives
out again, because an actor or a node was lost, writes the same part again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

from deepfake_client.result.outcome import Outcome
from deepfake_client.sources.threads import LoopThread
from deepfake_preprocess import errors
from deepfake_preprocess.errors import ServerError, ServerUnavailableError
from deepfake_preprocess.support.extras import require_extra
from deepfake_scan.engines.local import analyze_until_served
from deepfake_scan.inputs.todo import Item, Todo
from deepfake_scan.results.parts import ResultRow, write_part
from deepfake_scan.results.upkeep import done_ids
from deepfake_scan.storage import Storage, open_storage
from deepfake_scan.tally import ScanTally
from deepfake_scan.work.pool import Pool
from deepfake_scan.work.task import ProcessAnswer, Setup

ROUND: Final = 50_000
"""Inputs that Ray is given at once: some 15 MB in its object store."""
CORES_PER_ACTOR: Final = 4
"""Most cores, and so processes, of an actor; they share what the actor itself takes."""
BATCH: Final = 64
"""Inputs of a part; what is done again where an actor is lost."""
BATCHES_PER_ACTOR: Final = 4
"""At least, so that the last ones end together."""
BATCHES_AT_ONCE: Final = 2
"""In an actor: inputs of the next batch take the place of those of the first one that are finished. Their pool bounds
how many are under way."""


class Scanner:
    """An actor: analyzes a batch of addresses and writes its part."""

    def __init__(self, setup: Setup, output: str, processes: int) -> None:
        self._setup, self._storage = setup, open_storage(output)
        self._loop = LoopThread("this actor of a scan")
        self._pool = Pool(setup, size=processes)
        self._loop.wait_for(self._pool.__aenter__())

    def __call__(self, batch: Any) -> Any:
        """Analyze a table of ids and addresses; returns a row for each with its label or error.

        Called by several threads at once.
        """
        return self._loop.wait_for(self._scan(batch.to_pylist()))

    async def _scan(self, batch: list[dict[str, str]]) -> Any:
        found = await asyncio.gather(*(self._analyze(item["address"]) for item in batch))
        answers = [answer for answer, _ in found]
        # Where the server answers others, what it fails is to blame itself.
        serves = any(not answer.server for answer in answers)
        kept = [serves and answer.server in ("", errors.InferenceError.__name__) for answer in answers]
        rows = [
            ResultRow(item["id"], answer.cells, answer.json, finished_at, answer.faces)
            for item, (answer, finished_at), keep in zip(batch, found, kept, strict=True)
            if keep
        ]
        if rows:
            await asyncio.to_thread(write_part, self._storage, rows, faces=self._setup.faces)
        pa = require_extra("pyarrow", extra="scan")
        told = [
            {
                "label": answer.cells.get("label"),
                "error_type": answer.cells.get("error_type"),
                "server": "" if keep else answer.server or ServerError.__name__,
                "why": "" if keep else answer.why,
            }
            for answer, keep in zip(answers, kept, strict=True)
        ]
        names = ("label", "error_type", "server", "why")
        return pa.table({name: pa.array([row[name] for row in told], pa.string()) for name in names})

    async def _analyze(self, address: str) -> tuple[ProcessAnswer, datetime]:
        """Return what became of an input, and when."""
        try:
            answer = await analyze_until_served(self._pool, address)
        except ServerError as exc:
            outcome = Outcome(address, error=exc)
            answer = ProcessAnswer.of(outcome, json.dumps(outcome.to_dict()))
        return answer, datetime.now(UTC)


def _start(ray: Any) -> bool:
    """Connect to the cluster of RAY_ADDRESS, or start one here; returns whether this process was in none before."""
    if ray.is_initialized():
        return False
    try:
        # Progress is the command's to show. The dashboard of a cluster is its own.
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as exc:  # of no class of its own
        ray.shutdown()
        reason = str(exc).partition("\n")[0].rstrip(". ")
        what = "Ray did not start here ({}); try again when the machine is less busy, or take the engine `local`"
        if address := os.environ.get("RAY_ADDRESS"):
            what = f"there is no Ray cluster at {address} ({{}}); see that RAY_ADDRESS is right and Ray runs there"
        raise ServerUnavailableError(what.format(reason)) from exc
    return True


def scan_on_ray(todo: Todo, setup: Setup, storage: Storage, tally: ScanTally) -> None:
    """Analyze all of `todo` on the cluster that RAY_ADDRESS names, or on a local one.

    Raises:
        ServerError: the servers are away for good, and what is done is kept; or there is no Ray.
        MissingExtraError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = require_extra("ray", extra="ray")
    data = require_extra("ray.data", extra="ray")
    started = _start(ray)
    data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the command shows the progress
    try:
        cores = min(CORES_PER_ACTOR, max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes()))
        actors = max(1, int(ray.cluster_resources().get("CPU", 1)) // cores)
        while items := list(islice(todo, ROUND)):
            tally.in_flight = len(items)
            for row in _round(data, items, setup, storage, cores, actors):
                if row["server"]:
                    raise getattr(errors, row["server"], ServerError)(row["why"])
                cells = {key: row[key] for key in ("label", "error_type") if row[key] is not None}
                tally.add(cells)
                tally.in_flight -= 1
    finally:
        if started:
            ray.shutdown()
    done_ids(storage)  # an actor that was believed lost may have written late


def _round(
    data: Any, items: list[Item], setup: Setup, storage: Storage, cores: int, actors: int
) -> Iterator[Mapping[str, Any]]:
    """Yield what became of each of some items, as they are finished."""
    pa = require_extra("pyarrow", extra="scan")
    size = max(1, min(BATCH, math.ceil(len(items) / (BATCHES_PER_ACTOR * actors))))
    # One block for each batch: Ray gives out blocks.
    tables = [
        pa.table({"id": [item.id for item in some], "address": [item.input.address for item in some]})
        for some in (items[start : start + size] for start in range(0, len(items), size))
    ]
    found = data.from_arrow(tables).map_batches(
        Scanner,
        fn_constructor_args=(setup, storage.address, cores),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=cores,
        compute=data.ActorPoolStrategy(
            min_size=1, max_concurrent_calls_per_actor=BATCHES_AT_ONCE, enable_true_multi_threading=True
        ),
    )
    yield from found.iter_rows()
