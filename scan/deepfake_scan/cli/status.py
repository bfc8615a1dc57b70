"""What a scan has so far, as tables for people or as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deepfake_client.cli.render import LABEL_STYLE
from deepfake_client.result.verdict import Label
from deepfake_preprocess.cli.console import results_console
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.text import visible
from deepfake_scan.plan import Cluster
from deepfake_scan.results.upkeep import Counts, compact, count
from deepfake_scan.run import read_facts
from deepfake_scan.storage import Storage
from deepfake_scan.tally import ScanTally, duration


def print_status(storage: Storage, *, as_json: bool) -> None:
    """Print how many inputs have a result, and which; OptionError where there are neither results nor a scan."""
    counts, facts = count(storage), read_facts(storage)
    _refuse_nothing(storage, counts, facts)
    if as_json:
        known = {key: facts[key] for key in ("state", "changed_at", "inputs", "sources", "model") if key in facts}
        results = {"results": counts.rows, "parts": counts.parts, **_numbers(counts.labels, counts.failures)}
        _print_json({"output": storage.address, **results, "last_run": known or None})
        return
    screen, inputs = results_console(), facts.get("inputs")
    # The results may be of several runs, of other sources.
    of = f" of {inputs:,}" if inputs and inputs >= counts.rows else ""
    screen.print(escape(f"{visible(storage.address)}: {counts.rows:,}{of} inputs in {_parts(counts.parts)}"))
    if facts:
        model = facts["model"]
        # A run that was killed is "running" for good.
        state = "not over, begun" if facts["state"] == "running" else facts["state"]
        screen.print(escape(f"last run {state} at {facts['changed_at']}, model {model['name']} version "
                            f"{model['version']}, of {', '.join(map(visible, facts['sources']))}"))  # fmt: skip
    screen.print(_table(counts.labels, counts.failures))


def compact_results(storage: Storage, *, as_json: bool) -> None:
    """Join small parts and print how many there were; OptionError where there are neither results nor a scan."""
    _refuse_nothing(storage, count(storage), read_facts(storage))
    before, after = compact(storage)
    if as_json:
        _print_json({"output": storage.address, "parts_before": before, "parts": after})
    else:
        results_console().print(f"{_parts(before)} before, {after:,} now")


def print_summary(screen: Console, tally: ScanTally, output: str, state: str, *, as_json: bool) -> None:
    """Print what a run has done; JSON goes to standard output."""
    seconds = tally.done / tally.per_second if tally.done else 0.0
    if as_json:
        done = {"done": tally.done, "skipped": tally.skipped, "seconds": round(seconds, 3), "parts": tally.parts}
        numbers = _numbers(tally.labels, tally.failures)
        _print_json({"output": output, "state": state, **done, **numbers, "process_deaths": tally.deaths})
        return
    known = f", {tally.skipped:,} had results before" if tally.skipped else ""
    screen.print(escape(f"{tally.done:,} inputs in {duration(seconds)} ({tally.per_second:.2f}/s){known}: "
                        f"{visible(output)}"))  # fmt: skip
    if tally.done:
        screen.print(_table(tally.labels, tally.failures))


def print_plan(clusters: Sequence[Cluster], *, as_json: bool) -> None:
    """Print what so many clips a day need."""
    if as_json:
        _print_json([asdict(one) for one in clusters])
        return
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


def _refuse_nothing(storage: Storage, counts: Counts, facts: Mapping[str, object]) -> None:
    if not counts.parts and not facts:
        raise OptionError(
            f"{visible(storage.address)} holds no results of a scan; name as `output` what the scan was given"
        )


def _parts(number: int) -> str:
    return f"{number:,} part{'' if number == 1 else 's'}"


def _numbers(labels: Mapping[str, int], failures: Mapping[str, int]) -> dict[str, dict[str, int]]:
    return {
        "labels": {label.value: labels.get(label.value, 0) for label in Label},
        "failures": dict(sorted(failures.items())),
    }


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))


def _table(labels: Mapping[str, int], failures: Mapping[str, int]) -> Table:
    table = Table.grid(padding=(0, 2))
    for label in Label:
        table.add_row(f"  [{LABEL_STYLE[label]}]{label.value}[/]", f"{labels.get(label.value, 0):,}")
    for name, number in sorted(failures.items()):
        table.add_row(f"  [red]{escape(visible(name))}[/]", f"{number:,}")
    return table
