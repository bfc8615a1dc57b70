"""`RunProgress`: what a person sees on the terminal while inputs are analyzed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from deepfake_client.analysis.pipeline import Progress
from deepfake_client.cli.render import LABEL_STYLE
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.verdict import Label
from deepfake_preprocess.support.text import visible

_NAME_CELLS = 36


class RunProgress:
    """A bar of all inputs and one for each input under way; a context manager. Silent where it is not `visible`."""

    def __init__(self, screen: Console, total: int, *, visible: bool) -> None:
        self._bar = ProgressBar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=screen,
            transient=True,
            disable=not visible,
            # Results that are printed meanwhile must stay on standard output.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._inputs = self._bar.add_task("[bold]inputs[/]", total=total, facts="") if total > 1 else None
        self._tasks: dict[str, TaskID] = {}
        self._seen: dict[str, Progress] = {}
        self._labels = dict.fromkeys(Label, 0)
        self._failed = 0
        self._started: float | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    @contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Show that the run waits for something that has no measure."""
        task = self._bar.add_task(what, total=None, facts="")
        try:
            yield
        finally:
            self._bar.remove_task(task)

    def frame_done(self, source: str, progress: Progress) -> None:
        """Show how far an input has come; may be called on any thread."""
        self._started = self._started or time.monotonic()
        if source not in self._tasks:
            self._tasks[source] = self._bar.add_task(_short_name(source), total=None, facts="")
        self._seen[source] = progress
        facts = f"frames · {progress.faces_scored} faces"
        if progress.label is not None and progress.fake_probability is not None:
            style = LABEL_STYLE[progress.label]
            facts += f" · [{style}]{progress.label.value}[/] {progress.fake_probability:.2f} so far"
        if self._inputs is None:
            facts += self._rate()
        done, expected = progress.frames_done, progress.frames_expected
        self._bar.update(self._tasks[source], completed=done, total=expected, facts=facts)
        self._show_inputs(0)

    def input_done(self, outcome: Outcome) -> None:
        """Count a finished input."""
        if (task := self._tasks.pop(outcome.source, None)) is not None:
            self._bar.remove_task(task)
        if outcome.verdict is None:
            self._failed += 1
        else:
            self._labels[outcome.verdict.label] += 1
        self._show_inputs(1)

    def _show_inputs(self, advance: int) -> None:
        if self._inputs is None:
            return
        counts = [f"[{LABEL_STYLE[label]}]{count} {label.value}[/]" for label, count in self._labels.items() if count]
        if self._failed:
            counts.append(f"[red]{self._failed} failed[/]")
        faces = sum(progress.faces_scored for progress in self._seen.values())
        self._bar.update(self._inputs, advance=advance, facts=" · ".join([*counts, f"{faces} faces"]) + self._rate())

    def _rate(self) -> str:
        elapsed = time.monotonic() - (self._started or time.monotonic())
        frames = sum(progress.frames_done for progress in self._seen.values())
        return f" · {frames / elapsed:.1f} frames/s" if elapsed > 1 else ""


def _short_name(source: str) -> str:
    name = visible(Path(source).name or source)
    return escape(name if len(name) <= _NAME_CELLS else f"{name[: _NAME_CELLS - 1]}…")
