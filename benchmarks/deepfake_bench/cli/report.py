"""Pictures (`deepfake bench plots`) and tables of figures (`deepfake bench readme`) of results files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepfake_bench.cli.options import read_names
from deepfake_bench.machine.results import RESULTS_DIR
from deepfake_bench.report.figures import all_figures, headlines, replaced
from deepfake_bench.report.plots import FORMATS, PLOTS, write_plots
from deepfake_preprocess.errors import OptionError


def plots(
    results: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Results files; all of the project by default.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help=" or ".join(FORMATS))] = "svg",
) -> None:
    """Draw results files, each next to its file: latency against throughput, stages, batches, settings tried."""
    (form,) = read_names("--format", form, FORMATS)[:1]
    written = []
    for path in results or sorted(RESULTS_DIR.glob("*.json")):
        if not path.is_file():
            raise OptionError(f"{path} is not a file; give results of `deepfake bench {', '.join(PLOTS)}`")
        written += write_plots(path, form=form)
    if not written:
        raise OptionError(f"there is nothing to draw; results of `deepfake bench {', '.join(PLOTS)}` are drawn")
    for target in written:
        typer.echo(target)


def readme(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail when a page is not current.")] = False,
) -> None:
    """Write the tables of figures in README.md and docs/performance.md from the results files."""
    tables = {
        Path("README.md"): headlines(RESULTS_DIR),
        Path("docs/performance.md"): all_figures(RESULTS_DIR, link=f"../{RESULTS_DIR.as_posix()}"),
    }
    for path, table in tables.items():
        if not path.is_file():
            raise OptionError(f"there is no {path} here; run this in the folder of the project's source")
        text = path.read_text(encoding="utf-8")
        current = replaced(text, table)
        if not check:
            path.write_text(current, encoding="utf-8")
        elif current != text:
            typer.echo(f"{path}'s figures are not those of {RESULTS_DIR}; run: deepfake bench readme")
            raise typer.Exit(1)
