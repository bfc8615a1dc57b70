"""One run of a scan: what is asked for, what is left to do, and the facts that are kept beside the results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from deepfake_client.result.verdict import ModelIdentity
from deepfake_scan.inputs.ids import IdMaker, ScanInput
from deepfake_scan.inputs.listing import each_input
from deepfake_scan.inputs.manifest import count_rows, is_manifest
from deepfake_scan.inputs.todo import Todo
from deepfake_scan.results.upkeep import done_ids, forget_failed
from deepfake_scan.storage import Storage
from deepfake_scan.tally import ScanTally
from deepfake_scan.work.task import Setup

FACTS: Final = "scan.json"
"""File beside the results that says what was scanned, how, and how many inputs there were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What is scanned.

    Attributes:
        sources: folders, patterns, prefixes, manifests, files, addresses.
        column: the manifests' column of addresses; found by its name when None.
        retry_failed: try again what has no verdict.
    """

    sources: Sequence[str]
    column: str | None = None
    retry_failed: bool = False

    def inputs(self) -> Iterator[ScanInput]:
        """Return what the sources stand for; InputError where one cannot be used."""
        return each_input(self.sources, self.column)

    def todo(
        self, inputs: Iterator[ScanInput], storage: Storage, setup: Setup, model: ModelIdentity, tally: ScanTally
    ) -> Todo:
        """Look at the results that are there, and return what is left; InputError where they cannot be read."""
        if self.retry_failed:
            forget_failed(storage)
        done = done_ids(storage)
        if len(self.sources) == 1 and is_manifest(self.sources[0]):
            tally.total = count_rows(self.sources[0])
        # Deadlines change no verdict.
        settings = {name: value for name, value in asdict(setup.options).items() if name != "timeout_s"}
        return Todo(inputs, IdMaker(model, settings), done, tally)

    def write_facts(self, storage: Storage, setup: Setup, model: ModelIdentity, tally: ScanTally, state: str) -> None:
        """Write what is scanned and how far it has come."""
        facts = {
            "sources": list(self.sources),
            "model": model.to_dict(),
            "settings": asdict(setup.options),
            "state": state,
            "inputs": tally.total,
            "changed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        storage.write(FACTS, json.dumps(facts, indent=2, default=list).encode() + b"\n")


def read_facts(storage: Storage) -> Mapping[str, Any]:
    """Return the facts beside the results; none where there are none."""
    try:
        with storage.open(FACTS) as file:
            facts: Mapping[str, Any] = json.load(file)
    except FileNotFoundError:
        return {}
    return facts
