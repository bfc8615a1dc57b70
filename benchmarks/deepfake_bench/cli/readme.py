"""`deepfake bench readme`: the tables of figures in README.md and docs/performance.md, from the results files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepfake_bench.machine.results import RESULTS_DIR
from deepfake_bench.report.figures import all_figures, headlines, replaced


def readme(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail when a page is not current.")] = False,
) -> None:
    """Write the tables of figures in README.md and docs/performance.md from the results files."""
    tables = {
        Path("README.md"): headlines(RESULTS_DIR),
        Path("docs/performance.md"): all_figures(RESULTS_DIR, link=f"../{RESULTS_DIR.as_posix()}"),
    }
    for path, table in tables.items():
        text = path.read_text(encoding="utf-8")
        current = replaced(text, table)
        if not check:
            path.write_text(current, encoding="utf-8")
        elif current != text:
            typer.echo(f"{path}'s figures are not those of {RESULTS_DIR}; run: deepfake bench readme")
            raise typer.Exit(1)
