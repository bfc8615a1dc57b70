"""Verdicts for people: tables on a terminal. JSON is `Verdict.to_dict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepfake_client.cli.option_names import with_options
from deepfake_client.result.verdict import Interval, Label, ModelIdentity, Verdict
from deepfake_client.result.words import REASON_WORDS, concern_words, side_words
from deepfake_preprocess.support.text import visible

LABEL_STYLE = {Label.REAL: "bold green", Label.FAKE: "bold red", Label.INCONCLUSIVE: "bold yellow"}
_BAR_CELLS = 20


def print_verdict(console: Console, verdict: Verdict, *, training_data: Mapping[ModelIdentity, str]) -> None:
    """Print one verdict in full: headline, tracks, score of every frame, timing, and what the scores are worth."""
    if any(frame.faces for frame in verdict.frames):
        console.print(_frame_table(verdict))
        console.print(track_table(verdict))
    console.print(headline(verdict))
    if verdict.detail:
        console.print(Text(visible(with_options(verdict.detail))))
    timing = verdict.timing_s
    stages = f"decode {timing.decode:.2f}, detect {timing.detect:.2f}, infer {timing.infer:.2f}"
    rows = [("time", f"total {timing.total:.2f} s (overlapping: {stages})")]
    rows += [("note", note) for note in verdict.notes()]
    console.print(_facts([*rows, *_model_rows(verdict.model, training_data)]))


def print_summary(
    console: Console, verdicts: Sequence[Verdict], *, training_data: Mapping[ModelIdentity, str]
) -> None:
    """Print one line for each of several verdicts, and the models they are of."""
    table = Table(box=None, header_style="bold")
    for name in ("verdict", "probability", "faces", "frames", "time", "source"):
        table.add_column(name, justify="left" if name in ("verdict", "source") else "right", overflow="fold")
    for verdict in verdicts:
        label = Text(verdict.label.value, style=LABEL_STYLE[verdict.label])
        if verdict.reason is not None:
            label.append(f" {REASON_WORDS[verdict.reason]}", style="dim not bold")
        table.add_row(
            label,
            "-" if verdict.fake_probability is None else f"{verdict.fake_probability:.4f}",
            str(len(verdict.tracks)),
            str(len(verdict.frames)),
            f"{verdict.timing_s.total:.2f} s",
            Text(visible(verdict.source)),
        )
    console.print(table)
    models = dict.fromkeys(verdict.model for verdict in verdicts)
    console.print(_facts([row for model in models for row in _model_rows(model, training_data)]))


def headline(verdict: Verdict) -> Text:
    """Return label, score or reason, and source in one line."""
    line = Text()
    line.append(f" {verdict.label.value} ", style=f"{LABEL_STYLE[verdict.label]} reverse")
    if verdict.fake_probability is not None:
        interval = "" if verdict.interval is None else f"95%: {_range(verdict.interval)}, "
        line.append(f"  fake probability {verdict.fake_probability:.4f}  ({interval}threshold {verdict.threshold:g})")
        if len(verdict.tracks) > 1:
            line.append(f"  face {(verdict.deciding_track or 0) + 1}")
    elif verdict.reason is not None:
        line.append(f"  {REASON_WORDS[verdict.reason]}")
    line.append(f"   {visible(verdict.source)}", style="dim")
    return line


def _frame_table(verdict: Verdict) -> Table:
    table = Table(box=None, header_style="bold")
    for name in ("frame", "time", "face", "fake", ""):
        table.add_column(name, justify="right" if name else "left")
    for frame in verdict.frames:
        time = f"{frame.pts_seconds:.2f} s"
        if not frame.faces:
            table.add_row(str(frame.index), time, "-", "", Text("no face", style="dim"))
        for face in sorted(frame.faces, key=lambda item: item.track):
            score = face.fake_probability
            bar = Text("not scored", style="dim") if score is None else _bar(score, verdict.threshold)
            if face.weight < 1:
                bar.append(f"  weight {face.weight:.2f}: {concern_words(face.concerns)}", style="dim")
            table.add_row(str(frame.index), time, str(face.track + 1), "" if score is None else f"{score:.4f}", bar)
    return table


def _bar(score: float, threshold: float) -> Text:
    filled = round(score * _BAR_CELLS)
    return Text("█" * filled + "░" * (_BAR_CELLS - filled), style="red" if score >= threshold else "green")


def track_table(verdict: Verdict) -> Table:
    """Return a table with one row for each face that was followed."""
    table = Table(box=None, header_style="bold")
    for name in ("face", "verdict", "fake", "95%", "frames", "of them", "from", "to"):
        table.add_column(name, justify="left" if name == "verdict" else "right")
    for track in verdict.tracks:
        table.add_row(
            str(track.track + 1),
            Text(track.label.value, style=LABEL_STYLE[track.label])
            if track.takes_part
            else Text("background" if track.counted else "left out", style="dim"),
            f"{track.fake_probability:.4f}",
            _range(track.interval),
            str(track.num_frames),
            side_words(track, verdict.threshold),
            f"{track.first_pts_seconds:.2f} s",
            f"{track.last_pts_seconds:.2f} s",
        )
    return table


def _range(interval: Interval) -> str:
    return f"{interval.low:.2f} to {interval.high:.2f}"


def _model_rows(model: ModelIdentity, training_data: Mapping[ModelIdentity, str]) -> list[tuple[str, str]]:
    sha = f", checkpoint {model.checkpoint_sha256[:12]}" if model.checkpoint_sha256 else ""
    rows = [("model", f"{model.name} version {model.version}{sha}")]
    known = (("trained on", training_data.get(model)), ("caution", model.caution))
    return rows + [(name, text) for name, text in known if text]


def _facts(rows: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(name, Text(visible(value), style="yellow" if name in ("caution", "note") else ""))
    return table
