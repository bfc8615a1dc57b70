"""What a scan has so far, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deepfake_client.cli.render import LABEL_STYLE
from deepfake_client.result.verdict import Label
from deepfake_preprocess.cli.console import results_console
from deepfake_preprocess.support.text import visible
from deepfake_scan.plan import Cluster
from deepfake_scan.results.upkeep import compact, count
from deepfake_scan.run import read_facts
from deepfake_scan.storage import Storage
from deepfake_scan.tally import Tally, duration


def print_status(storage: Storage) -> None:
    """Print how many inputs have a result, and which."""
    screen, counts, facts = results_console(), count(storage), read_facts(storage)
    inputs = facts.get("inputs")
    of = f" of {inputs:,}" if inputs else ""
    screen.print(escape(f"{visible(storage.address)}: {counts.rows:,}{of} inputs in {counts.parts:,} parts"))
    if facts:
        model = facts["model"]
        screen.print(escape(f"last run {facts['state']} at {facts['changed_at']}, model {model['name']} version "
                            f"{model['version']}, of {', '.join(map(visible, facts['sources']))}"))  # fmt: skip
    screen.print(_table(counts.labels, counts.failures))


def compact_results(storage: Storage) -> None:
    """Join small parts and print how many there were."""
    before, after = compact(storage)
    results_console().print(f"{before:,} parts are now {after:,}")


def print_summary(screen: Console, tally: Tally, output: str) -> None:
    """Print what a run has done."""
    seconds = tally.done / tally.per_second if tally.done else 0.0
    known = f", {tally.skipped:,} had results before" if tally.skipped else ""
    screen.print(escape(f"{tally.done:,} inputs in {duration(seconds)} ({tally.per_second:.2f}/s){known}: "
                        f"{visible(output)}"))  # fmt: skip
    if tally.done:
        screen.print(_table(tally.labels, tally.failures))


def print_plan(clusters: Sequence[Cluster]) -> None:
    """Print what so many clips a day need."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for heading in ("clips a day", "cores that open clips", "crops/s", "servers", "results a day"):
        table.add_column(heading, justify="right")
    for one in clusters:
        servers = f"{one.servers:,}" if one.servers is not None else f"{one.server_cores:,} CPU cores"
        counts = (one.clips_per_day, one.scan_cores, one.crops_per_s)
        table.add_row(*(f"{count:,}" for count in counts), servers, f"{one.results_gb:,.0f} GB")
    screen = results_console()
    screen.print(table)
    screen.print("for clips of 1080p, 10 s, 32 frames, one face; docs/scale.md has the formula", style="dim")


def _table(labels: Mapping[str, int], failures: Mapping[str, int]) -> Table:
    table = Table.grid(padding=(0, 2))
    for label in Label:
        table.add_row(f"  [{LABEL_STYLE[label]}]{label.value}[/]", f"{labels.get(label.value, 0):,}")
    for name, number in sorted(failures.items()):
        table.add_row(f"  [red]{escape(visible(name))}[/]", f"{number:,}")
    return table
