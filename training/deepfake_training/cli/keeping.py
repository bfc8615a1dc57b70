"""What `deepfake evaluate` and `calibrate` keep of a run that may take hours, so that another one goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.markup import escape

from deepfake_client.result.journal import Journal
from deepfake_preprocess.errors import ServerError

ResultsOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Keep each clip's result there (JSON lines), and take from there what it has already."
    ),
]


@contextmanager
def kept(results: Path | None, settings: Mapping[str, Any], console: Console) -> Iterator[Journal | None]:
    """Open the file of results, if one is named; where a run ends early, say how another one goes on."""
    try:
        with nullcontext() if results is None else Journal(results, settings) as journal:
            yield journal
    except (KeyboardInterrupt, ServerError):
        how = "with --results FILE, a run goes on where the one before ended"
        if results is not None:
            how = f"what was scored is in {escape(str(results))}; the same command goes on from there"
        console.print(how, style="yellow")
        raise
