"""Many inputs, some at once: what became of each, whoever analyzes them."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable
from typing import Any, Final, TypeAlias

from deepfake_client.analysis.pipeline import OnProgress, Progress
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.verdict import Verdict
from deepfake_client.sources.concurrency import each_finished, each_over, is_async
from deepfake_client.sources.inputs import each_source
from deepfake_preprocess.errors import ClientUseError, DeepfakeError, InputError, OptionError

DEFAULT_CONCURRENCY: Final = 2
"""Inputs that `analyze_many` works on at once."""

Analyze: TypeAlias = Callable[[Any, str, OnProgress | None], Coroutine[Any, Any, Verdict]]
"""Analyzes a source under a name."""


def each_outcome(
    analyze: Analyze,
    sources: str | os.PathLike[str] | Iterable[Any] | AsyncIterable[Any],
    *,
    concurrency: int,
    ordered: bool,
    on_progress: Callable[[str, Progress], None] | None,
) -> AsyncGenerator[Outcome, None]:
    """Yield what became of each of `sources` as it is finished; see `AsyncDeepfakeClient.analyze_many`.

    Raises:
        OptionError: `concurrency` is below 1; raised by this call.
    """
    if concurrency < 1:
        raise OptionError(f"`concurrency` must be at least 1, got {concurrency}")

    async def outcome(item: tuple[str, Any]) -> Outcome:
        name, source = item
        if isinstance(source, InputError):
            return Outcome(name, error=source)
        report = None if on_progress is None else (lambda progress: on_progress(name, progress))
        try:
            return Outcome(name, verdict=await analyze(source, name, report))
        except ClientUseError:
            raise
        except DeepfakeError as exc:
            return Outcome(name, error=exc)

    def each(some: str | os.PathLike[str] | Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[Outcome, None]:
        return each_finished(outcome, each_source(some), concurrency=concurrency, ordered=ordered)

    return each_over(sources, each) if is_async(sources) else each(sources)
