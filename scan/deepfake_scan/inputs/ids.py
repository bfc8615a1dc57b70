"""What identifies an input in a scan, and sets of ten million such ids in little memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepfake_client.result.verdict import ModelIdentity

ID_BYTES: Final = 16
"""Two of 10^9 inputs have the same id with a probability of 1.5e-21."""

Ids: TypeAlias = NDArray[np.uint64]
"""uint64 ``[N, 2]``: the halves of N ids."""


class ScanInput(NamedTuple):
    """One thing to analyze; a tuple, since ten million of them are made to find those that are left.

    Attributes:
        address: an absolute path, or the address of an object or a web server.
        version: what changes with its content (size, ETag or time of change); empty where that is not known.
    """

    address: str
    version: str = ""


class IdMaker:
    """Makes ids of inputs. The same content under the same address, checkpoint and options has the same id."""

    def __init__(self, model: ModelIdentity, settings: Mapping[str, Any]) -> None:
        facts = {"model": [model.name, model.version, model.checkpoint_sha256], "settings": settings}
        self._key = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=32).digest()

    def ids(self, inputs: Sequence[ScanInput]) -> Ids:
        """Return the ids of some inputs."""
        key, new = self._key, hashlib.blake2b
        digests = [
            new(f"{one.address}\0{one.version}".encode("utf-8", "surrogateescape"), digest_size=ID_BYTES, key=key)
            .digest()
            for one in inputs
        ]  # fmt: skip
        return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)


def id_texts(ids: Ids) -> list[str]:
    """Return ids as 32 hexadecimal digits each."""
    text = ids.astype(">u8").tobytes().hex()
    return [text[start : start + 2 * ID_BYTES] for start in range(0, len(text), 2 * ID_BYTES)]


def ids_of_texts(text: bytes) -> Ids:
    """Return the ids whose hexadecimal digits stand one after the other in `text`."""
    return np.frombuffer(bytes.fromhex(text.decode("ascii")), ">u8").astype(np.uint64).reshape(-1, 2)


class IdSet:
    """A set of ids in sorted arrays: 16 bytes for each, and as much again for a moment while it grows.

    A few arrays of growing length are kept, and joined when the last ones are of like length, so that adding costs
    little however many there are (as in a log-structured merge tree: O'Neil et al., Acta Informatica 33, 1996).
    """

    def __init__(self) -> None:
        self._runs: list[Ids] = []

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def add(self, ids: Ids) -> NDArray[np.bool_]:
        """Add ids and return which of them are new; of equal ones the first."""
        order = np.lexsort((ids[:, 1], ids[:, 0]))
        ordered = ids[order]
        new = np.ones(len(ids), bool)
        new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        for run in self._runs:
            new &= ~_contains(run, ordered)
        self._runs.append(ordered[new])
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            joined = np.concatenate((self._runs.pop(-2), self._runs.pop()))
            # Of two sorted halves, a stable sort is a merge. Which of equal first halves comes first is of no matter.
            self._runs.append(joined[np.argsort(joined[:, 0], kind="stable")])
        mask = np.zeros(len(ids), bool)
        mask[order[new]] = True
        return mask


def _contains(run: Ids, ordered: Ids) -> NDArray[np.bool_]:
    """Return which of `ordered` are in `run`; both are sorted by the first half."""
    highs = run[:, 0]
    places = np.searchsorted(highs, ordered[:, 0])
    found = np.zeros(len(ordered), bool)
    left = np.flatnonzero(places < len(run))
    while len(left):  # again only where first halves are equal and second ones are not
        left = left[highs[places[left]] == ordered[left, 0]]
        equal = run[places[left], 1] == ordered[left, 1]
        found[left[equal]] = True
        left = left[~equal]
        places[left] += 1
        left = left[places[left] < len(run)]
    return found
