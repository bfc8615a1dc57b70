"""`deepfake tune`: how the embedded server should batch and run a model on this machine."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from deepfake_bench.cli.options import ClipsArgument, ModelOption, OutputOption, find_clips, print_table
from deepfake_bench.machine.processes import exiting_on_sigterm
from deepfake_bench.machine.results import write_results
from deepfake_bench.tune.search import described
from deepfake_bench.tune.tuning import Tuning
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, RepositoryOption

COLUMNS = (
    ("engine", "{engine}"),
    ("precision", "{precision}"),
    ("instances x threads", "{instances} x {threads}"),
    ("batch", "{max_batch_size}"),
    ("failed", "{failed:.40}"),
    ("videos/s within the bound", "{videos_per_s:.2f}"),
    ("p99 ms at", "{last[latency][p99_ms]:.0f}"),
    ("videos/s", "{last[videos_per_s]:.2f}"),
    ("batch formed", "{last[server][mean_batch]:.1f}"),
)


def tune(
    clips: ClipsArgument,
    p99: Annotated[
        float, typer.Option(metavar="MS", help="Bound: 99% of the requests must be answered within it.", min=0.1)
    ],
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    model: ModelOption = None,
    minutes: Annotated[float, typer.Option(help="Try no further setting after so long.", min=0.01)] = 10.0,
    num_frames: Annotated[int, typer.Option(help="Frames sampled of each clip.", min=1)] = 32,
    window: Annotated[float, typer.Option(help="Measured seconds of one replay.", min=0.2)] = 5.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Search, and leave the repository as it is.")] = False,
    output: OutputOption = None,
) -> None:
    """Search how the embedded server runs a model fastest here, on real clips.

    The clips are analyzed once, and their requests recorded with their times.
    Each setting (engine and precision, of those that the export proved;
    instances and threads; largest batch) is served by a private Triton. What
    counts is how many videos per second it takes while 99% of the requests are
    answered within the bound. Scores must be those of the model file, and the
    clips' verdicts equal, before anything is timed.

    The winner must win again, in turn with the present setting; then it is
    written into the model's configs/embedded.pbtxt. `deepfake serve` uses it on
    machines with as many cores, and exports keep it.

    [bold]Examples[/]

      deepfake tune clips/ --p99 200
      deepfake tune clip.mp4 --p99 500 --minutes 3 --dry-run
    """
    paths = find_clips(clips)
    screen = Console(stderr=True, highlight=False)
    with exiting_on_sigterm(), screen.status("") as status:
        tuning = Tuning(
            repository,
            model,
            paths,
            num_frames=num_frames,
            p99_ms=p99,
            window_s=window,
            seconds=60 * minutes,
            announce=status.update,
        )
        try:
            tuning.run()
        finally:  # what was measured is kept, whatever ended the rest
            if tuning.tried:
                screen.print(f"written to {write_results('tune', tuning.results(), output)}")
    items = [{**item, "last": item["replays"][-1] if item["replays"] else None} for item in tuning.tried]
    print_table(items, COLUMNS, left=4, bold="better")
    if tuning.objection:
        typer.echo(f"the present setting stays; {tuning.objection}")
    elif tuning.best == tuning.start:
        typer.echo("the present setting stays: no other was better by more than noise")
    elif dry_run:
        typer.echo(f"best: {described(tuning.best)}; nothing was changed (--dry-run)")
    else:
        typer.echo(f"best: {described(tuning.best)}; written to {tuning.write()}; servers take it when they start")
