"""What goes between a scan and its processes: how they are set up, what they are given, what they answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from deepfake_client.options import AnalyzeOptions
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.table import outcome_row
from deepfake_client.result.verdict import Reason
from deepfake_client.transport.connection import Connection
from deepfake_preprocess.errors import (
    DeepfakeError,
    InferenceError,
    InputError,
    OptionError,
    ServerUnavailableError,
)

LEAST_MEMORY_BYTES: Final = 2**29
"""Threads, their stacks and the frames of an ordinary clip take some 300 MiB of address space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLimits:
    """What one input may use.

    Attributes:
        memory_bytes: address space, beyond what the process has before any input is opened.
        seconds: wall-clock time; while it waits for cores that others have, only what it computes.

    Raises:
        OptionError: a value is too small.
    """

    memory_bytes: int = 4 * 2**30
    seconds: float = 600.0

    def __post_init__(self) -> None:
        if self.memory_bytes < LEAST_MEMORY_BYTES:
            raise OptionError("`memory_bytes` is too small; allowed: from 0.5 GiB, which an ordinary clip may need")
        if not self.seconds > 0:
            raise OptionError(f"`seconds` is {self.seconds}; allowed: a number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a process analyzes: sent to it once, pickled.

    Attributes:
        connection: the servers.
        model: name of the model; None for the only one.
        options: how inputs are analyzed.
        limits: what each input may use.
        concurrency: inputs under way at once.
        faces: whether tracks are wanted as data.
    """

    connection: Connection
    model: str | None
    options: AnalyzeOptions
    limits: InputLimits = InputLimits()
    concurrency: int = 2
    faces: bool = False


@dataclass(frozen=True, slots=True)
class ProcessAnswer:
    """What became of one input, ready to be stored.

    Attributes:
        cells: what `outcome_row` returned.
        json: one line of JSON.
        faces: the tracks, where they were asked for.
        server: name of the server's error that kept the input from its verdict; empty where none did.
        starved: whether memory ran out, which may have been for the sake of a neighbor.
    """

    cells: Mapping[str, Any]
    json: str
    faces: Sequence[Mapping[str, Any]] | None = None
    server: str = ""
    starved: bool = False

    @classmethod
    def of(cls, outcome: Outcome, text: str, *, faces: bool = False, starved: bool = False) -> Self:
        """Return the answer for an outcome, whose JSON is `text`."""
        server = ""
        tracks = None
        if outcome.verdict is not None:
            if outcome.server_failed:
                away = outcome.verdict.reason is Reason.SERVER_UNAVAILABLE
                server = (ServerUnavailableError if away else InferenceError).__name__
            tracks = [track.to_dict() for track in outcome.verdict.tracks] if faces else None
        elif isinstance(outcome.error, DeepfakeError) and not isinstance(outcome.error, InputError):
            server = type(outcome.error).__name__
        return cls(outcome_row(outcome), text, tracks, server, starved)

    @property
    def why(self) -> str:
        """What the error, or a verdict without an answer, says."""
        return str(self.cells.get("error") or self.cells.get("detail") or "no reason given")
