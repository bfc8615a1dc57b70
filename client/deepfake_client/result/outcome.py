"""`Outcome`: what became of one of several inputs, a verdict or an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepfake_client.result.verdict import Reason, Verdict
from deepfake_preprocess.errors import DeepfakeError, InputError

_SERVER_REASONS = (Reason.SERVER_UNAVAILABLE, Reason.SERVER_ERROR)


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
        return {"source": self.source, "error": {"type": type(self.error).__name__, "message": str(self.error)}}
