"""`deepfake watch`: the rolling verdict on a camera, a stream or a growing file, on the screen or as JSON lines."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import console as rich_console
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from deepfake_client.cli.exit_codes import EXIT_INCONCLUSIVE
from deepfake_client.cli.groups import (
    ANALYSIS_PANEL,
    AggregationOption,
    MinFacePxOption,
    MinFaceShareOption,
    ServerOptions,
    ThresholdOption,
)
from deepfake_client.cli.option_names import with_options
from deepfake_client.cli.render import headline, track_table
from deepfake_client.cli.terminal import json_text
from deepfake_client.options import WatchOptions
from deepfake_client.result.verdict import Label, Verdict
from deepfake_preprocess.cli.grouping import Group, with_groups
from deepfake_preprocess.support.text import visible

_DEFAULTS = WatchOptions()


def _options(
    window: Annotated[float, typer.Option(help="Length of the window, in seconds.")] = _DEFAULTS.window_s,
    step: Annotated[float, typer.Option(help="Seconds from one verdict to the next.")] = _DEFAULTS.step_s,
    fps: Annotated[float, typer.Option(help="Frames to look at per second.")] = _DEFAULTS.fps,
    min_change: Annotated[
        float, typer.Option(help="Minimum change of score that triggers a new verdict (0 = every verdict).")
    ] = _DEFAULTS.min_change,
    on_slow: Annotated[
        str | None,
        typer.Option(
            metavar="drop|wait",
            help="When the server is slower than the source.",
            show_default="drop for cameras and live streams",
        ),
    ] = None,
    max_latency: Annotated[
        float, typer.Option(help="With drop: how old a frame may get, in seconds.")
    ] = _DEFAULTS.max_latency_s,
    idle: Annotated[
        float, typer.Option(help="A file ends when it has not grown for this many seconds.")
    ] = _DEFAULTS.idle_s,
    reconnects: Annotated[
        int, typer.Option(help="How often in a row a stream that broke off is opened again.")
    ] = _DEFAULTS.reconnects,
    source_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Trust these certificates (PEM) of a source at https or rtsps.",
            show_default="those that this machine trusts",
        ),
    ] = None,
    source_proxy: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Read a source at http or https through this HTTP proxy.",
            show_default="that of the environment",
        ),
    ] = None,
    aggregation: AggregationOption = _DEFAULTS.aggregation,
    threshold: ThresholdOption = None,
    min_face_px: MinFacePxOption = _DEFAULTS.min_face_px,
    min_face_share: MinFaceShareOption = _DEFAULTS.min_face_share,
) -> WatchOptions:
    slow: Any = on_slow  # what is not allowed is refused by `WatchOptions`, in the words of its field
    return WatchOptions(
        window_s=window,
        step_s=step,
        fps=fps,
        min_change=min_change,
        on_slow=slow,
        max_latency_s=max_latency,
        aggregation=aggregation,
        threshold=threshold,
        min_face_px=min_face_px,
        min_face_share=min_face_share,
        idle_s=idle,
        reconnects=reconnects,
        source_ca=source_ca,
        source_proxy=source_proxy,
    )


@with_groups
def watch(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Address (http, https, rtsp), camera (/dev/video0) or file.")
    ],
    options: Annotated[WatchOptions, Group(_options, ANALYSIS_PANEL)],
    server: ServerOptions,
    as_jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print each verdict as one line of JSON, as it comes.")
    ] = False,
) -> None:
    """Watch a live source and report the verdict on its last seconds whenever it changes.

    Ends with the source, or with Ctrl-C.

    [bold]Examples[/]

      deepfake watch rtsp://camera/stream
      deepfake watch /dev/video0 --window 5
      deepfake watch recording.ts --jsonl

    [bold]Exit codes[/]  0 the last verdict was REAL or FAKE · 3 it was inconclusive, or there was none · 2 input or
    usage error · 4 server unreachable
    """
    screen = Console(stderr=as_jsonl)
    display: AbstractContextManager[Any] = nullcontext()  # verdicts are lines
    if screen.is_terminal and not as_jsonl:
        waiting = Text("waiting for the first verdict", style="dim")
        display = Live(waiting, console=screen, auto_refresh=False)
    last: Verdict | None = None
    shown = 0
    with server.client(screen.status) as client:
        verdicts = client.watch(source, options=options)
        try:
            with display as live:
                for verdict in verdicts:
                    last, shown = verdict, shown + 1
                    if as_jsonl:
                        print(json_text(verdict.to_dict()), flush=True)
                    elif live is not None:
                        picture = rich_console.Group(track_table(verdict), headline(verdict), _note(verdict))
                        live.update(picture, refresh=True)
                    else:
                        screen.print(_line(verdict), soft_wrap=True)
        except KeyboardInterrupt:
            screen.print("interrupted", style="yellow")
        finally:
            if last is not None:
                _print_end(screen, last, shown)
    if last is None or last.label is Label.INCONCLUSIVE:
        raise typer.Exit(EXIT_INCONCLUSIVE)


def _line(verdict: Verdict) -> Text:
    line = Text(f"{_time(verdict):>9} ")
    line.append_text(headline(verdict))
    if verdict.deciding_track is not None and len(verdict.tracks) > 1:
        line.append(f"  face {verdict.deciding_track + 1} of {len(verdict.tracks)}")
    return line


def _note(verdict: Verdict) -> Text:
    parts = [_time(verdict), f"{len(verdict.frames)} frames", f"{verdict.frames_dropped} dropped since the start"]
    return Text(" · ".join(part for part in (*parts, visible(with_options(verdict.detail))) if part), style="dim")


def _time(verdict: Verdict) -> str:
    if not verdict.frames:
        return ""
    minutes, seconds = divmod(verdict.frames[-1].pts_seconds, 60)
    return f"{int(minutes)}:{seconds:04.1f}"


def _print_end(screen: Console, last: Verdict, shown: int) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_row("watched", Text(f"{_time(last)} of {visible(last.source)}"))
    table.add_row("verdicts", f"{shown}, the last one {last.label.value}")
    table.add_row("dropped", f"{last.frames_dropped} frames")
    table.add_row("model", f"{visible(last.model.name)} version {last.model.version}")
    screen.print(table)
