"""`deepfake bench decode`: what sampling frames of a clip costs, against PyAV decoding the whole clip."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from deepfake_bench.cli.options import ClipsArgument, OutputOption, find_clips, print_table
from deepfake_bench.machine.results import write_results
from deepfake_bench.pipeline.decode import ffmpeg_versions, measure_clip, measure_memory

COLUMNS = (
    ("clip", "{clip}"),
    ("plain: wall", "{plain[wall_s]:.3f} s"),
    ("sampled", "{sampled[wall_s]:.3f} s"),
    ("ratio", "{wall_ratio:.2f}"),
    ("plain: CPU", "{plain[cpu_s]:.3f} s"),
    ("sampled", "{sampled[cpu_s]:.3f} s"),
    ("ratio", "{cpu_ratio:.2f}"),
)


def decode(
    clips: ClipsArgument,
    num_frames: Annotated[int, typer.Option(help="Frames sampled of each clip.", min=1)] = 32,
    repeats: Annotated[int, typer.Option(help="Runs of each way, in turn.", min=1)] = 7,
    memory: Annotated[
        bool, typer.Option("--memory", help="Also measure the peak memory of a ten-second and a one-hour clip.")
    ] = False,
    output: OutputOption = None,
) -> None:
    """Measure what sampling frames of a clip costs, against PyAV decoding the whole clip.

    The sampled frames are first checked to be those of the plain decode, pixel by pixel. With --memory, sampling a
    ten-second and a one-hour clip is measured in processes of their own: the peak must not grow.

    [bold]Examples[/]

      deepfake bench decode clip.mp4
      deepfake bench decode clips/ --num-frames 64 --memory
    """
    measured = [measure_clip(clip, num_frames=num_frames, repeats=repeats) for clip in find_clips(clips)]
    results: dict[str, Any] = {"ffmpeg": ffmpeg_versions(), "clips": measured}
    if memory:
        results["memory"] = measure_memory(num_frames=num_frames)
    print_table(measured, COLUMNS)
    if memory:
        typer.echo(f"peak memory, MB: {results['memory']}")
    typer.echo(f"written to {write_results('decode', results, output)}")
