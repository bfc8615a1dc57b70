"""`Outcome`: what became of one of several inputs, a verdict or an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from deepfake_client.result.verdict import Reason, Verdict
from deepfake_preprocess import errors
from deepfake_preprocess.errors import DeepfakeError, InputError
from deepfake_preprocess.support.json_data import JsonData

_SERVER_REASONS = (Reason.SERVER_UNAVAILABLE, Reason.SERVER_ERROR)


@dataclass(frozen=True, slots=True)
class Error(JsonData):
    """Why there is no verdict."""

    type: str
    """Class of the error, from `deepfake_preprocess.errors`."""
    message: str
    """One sentence: what was received and what to do."""


@dataclass(frozen=True, slots=True)
class Failure(JsonData):
    """An input that could not be analyzed, among several that were asked for."""

    source: str
    """What was to be analyzed (path or name)."""
    error: Error
    """Why there is no verdict."""


@dataclass(frozen=True, slots=True)
class Input(JsonData):
    """Only in the files that keep results: what must be unchanged for a resumed run to use the result."""

    size_bytes: int
    """Size of the file."""
    modified_ns: int
    """Time of its last change, in nanoseconds since 1970."""
    settings: Mapping[str, Any]
    """Options of the analysis that decide its result."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one input: a verdict or an error, exactly one of them.

    Attributes:
        source: what was analyzed (path or name).
        verdict: the verdict, which may be INCONCLUSIVE.
        error: why there is none.
    """

    source: str
    verdict: Verdict | None = None
    error: DeepfakeError | None = None

    def __post_init__(self) -> None:
        if (self.verdict is None) == (self.error is None):
            raise ValueError("an outcome holds either a verdict or an error")

    @property
    def server_failed(self) -> bool:
        """Whether the server kept this input from its verdict."""
        if self.verdict is not None:
            return self.verdict.reason in _SERVER_REASONS
        return not isinstance(self.error, InputError)

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict's JSON data, or source and error."""
        if self.verdict is not None:
            return self.verdict.to_dict()
        return Failure(self.source, Error(type(self.error).__name__, str(self.error))).to_dict()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the outcome that `to_dict` described; the `Input` of a file of results is passed over.

        Raises:
            OptionError: `data` is no such description.
        """
        where = "this is not the result of an analysis"
        facts = {name: value for name, value in data.items() if name != "input"}
        if "error" in facts:
            failure = Failure.from_dict(facts, where=where)
            kind = getattr(errors, failure.error.type, None)
            if not (isinstance(kind, type) and issubclass(kind, DeepfakeError)):
                kind = DeepfakeError
            return cls(failure.source, error=kind(failure.error.message))
        verdict = Verdict.from_dict(facts, where=where)
        return cls(verdict.source, verdict=verdict)
