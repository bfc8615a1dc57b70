"""Options that commands of several packages have, each declared once.

They are in the lowest package because client, export and serve do not import each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, TypeAlias

import typer

DEFAULT_REPOSITORY: Final = Path("models")
"""Also that of the Makefile and of docker-compose.yml: what one of them made, the others serve."""

RepositoryOption: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--repository",
        "-r",
        metavar="DIR",
        envvar="DEEPFAKE_REPOSITORY",
        help="Model repository, as `deepfake export` writes it.",
    ),
]

JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
