"""`Room`: how much may wait, of all callers together, and whether a key may have any more analyzed today."""

from __future__ import annotations

import time

from deepfake_gateway.intake.problems import Problem
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.analysis import UNFINISHED
from deepfake_gateway.store.batches import Batches
from deepfake_gateway.store.explanations import Explanations
from deepfake_gateway.store.keys import Key
from deepfake_gateway.store.records import Store
from deepfake_gateway.store.usage import Quotas


class Room:
    """What is asked before anything is taken in; each refusal is a Problem 429."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store, self._batches = store, Batches(store.engine)
        self._explanations = Explanations(store.engine)
        self._quotas = Quotas(store.engine, settings.seconds_per_day)
        self._max_queued = settings.max_queued

    def check_quota(self, key: Key | None) -> None:
        """Raise Problem where a key has used its seconds of video for the day up."""
        allowed = None if key is None else self._quotas.used_up(key.id)
        if allowed is not None:
            left_s = str(86_400 - int(time.time()) % 86_400)
            raise Problem(
                429, f"this key's {allowed:g} seconds of video for today are used up; send more after midnight (UTC)",
                {"Retry-After": left_s}, reason="seconds_per_day",
            )  # fmt: skip

    def check_analyses(self, num_files: int) -> None:
        """Raise Problem where so many may not wait beside those that do, or that are yet to be fetched."""
        counts = self._store.count_by("status")
        waiting = sum(counts.get((status.value,), 0) for status in UNFINISHED) + self._batches.awaited()
        if waiting + num_files > self._max_queued:
            raise self._full("analyses")

    def check_explanations(self) -> None:
        """Raise Problem where no more explanations may wait."""
        if self._explanations.unfinished() >= self._max_queued:
            raise self._full("explanations")

    def _full(self, what: str) -> Problem:
        detail = f"{self._max_queued} {what} are waiting, as many as may; try again later"
        return Problem(429, detail, {"Retry-After": "10"}, reason="max_queued")
