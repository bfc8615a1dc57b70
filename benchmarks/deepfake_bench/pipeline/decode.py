"""`deepfake bench decode`: what sampling frames of a clip costs, against PyAV decoding the whole clip.

Both ways are run in turn, so that other load on the machine meets both alike, and the sampled frames are first
checked to be those of the plain decode, pixel by pixel.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import typer
from rich.table import Table

from deepfake_bench.machine.environment import environment, write_results
from deepfake_bench.machine.processes import own_peak_mb
from deepfake_bench.machine.tables import table_console
from deepfake_bench.pipeline.clips import find_clips
from deepfake_preprocess.errors import DeepfakeError
from deepfake_preprocess.media.opening import open_media
from deepfake_preprocess.media.sampling import Sampling


def decode(
    clips: Annotated[list[str], typer.Argument(metavar="CLIP...", help="Videos, folders or patterns.")],
    frames: Annotated[int, typer.Option(help="Frames sampled of each clip.", min=1)] = 32,
    repeats: Annotated[int, typer.Option(help="Runs of each way, in turn.", min=1)] = 7,
    memory: Annotated[bool, typer.Option("--memory", help="Also measure peak memory, as said above.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Results file; by default benchmarks/results/MACHINE-decode.json.")
    ] = None,
) -> None:
    """Measure what sampling frames of a clip costs, against PyAV decoding the whole clip.

    The sampled frames are first checked to be those of the plain decode, pixel by pixel. With --memory the peak
    memory of sampling a ten-second and a one-hour clip is measured too, in processes of their own: it must not grow.

    [bold]Examples[/]

      deepfake bench decode clip.mp4
      deepfake bench decode clips/ --frames 64 --memory
    """
    rows = [measure_clip(clip, num_frames=frames, repeats=repeats) for clip in find_clips(clips)]
    results: dict[str, Any] = {"environment": environment(["av", "numpy"]), "ffmpeg": _ffmpeg(), "clips": rows}
    if memory:
        results["memory"] = measure_memory(num_frames=frames)
    table_console().print(_table(rows))
    if memory:
        typer.echo(f"peak memory, MB: {results['memory']}")
    typer.echo(f"written to {write_results('decode', results, path=output)}")


def measure_clip(clip: Path, *, num_frames: int, repeats: int) -> dict[str, Any]:
    """Return seconds (medians) of decoding `clip` plainly and of sampling `num_frames` frames, and their ratios.

    Raises:
        DeepfakeError: the sampled frames are not those of the plain decode.
    """
    decoded, sampled = verify(clip, num_frames)
    ways: dict[str, Callable[[], None]] = {
        "plain": lambda: _decode_plainly(clip),
        "sampled": lambda: _sample(clip, num_frames),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started, busy = time.perf_counter(), time.process_time()
            way()
            seconds[name].append((time.perf_counter() - started, time.process_time() - busy))
    row: dict[str, Any] = {
        "clip": clip.name,
        "frames_verified": num_frames,
        "pictures_decoded": {"plain": decoded, "sampled": sampled},
        "repeats": repeats,
    }
    for name, pairs in seconds.items():
        wall, cpu = zip(*pairs, strict=True)
        row[name] = {
            "wall_s": round(statistics.median(wall), 4),
            "wall_min_s": round(min(wall), 4),
            "cpu_s": round(statistics.median(cpu), 4),
            "cpu_min_s": round(min(cpu), 4),
        }
    # The median of ratios of neighbouring runs, which saw about the same load.
    for number, kind in enumerate(("wall", "cpu")):
        ratios = [b[number] / a[number] for a, b in zip(seconds["plain"], seconds["sampled"], strict=True)]
        row[f"{kind}_ratio"] = round(statistics.median(ratios), 3)
    return row


def verify(clip: Path, num_frames: int) -> tuple[int, int]:
    """Check that sampled frames equal those of a plain decode; return how many pictures each way decoded.

    Raises:
        DeepfakeError: they differ.
    """
    with open_media(clip) as media:
        frames = {frame.index: frame for frame in media.frames(Sampling(num_frames))}
        sampled = media.stats.frames_decoded
    count = 0
    with av.open(str(clip)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for count, picture in enumerate(container.decode(video=0), start=1):
            frame = frames.pop(count - 1, None)
            # Turned clips are compared as stored.
            if frame is not None and not np.array_equal(
                picture.to_ndarray(format="rgb24"),
                frame.picture.to_ndarray(format="rgb24"),  # type: ignore[attr-defined]
            ):
                raise DeepfakeError(
                    f"{clip.name}: frame {count - 1} differs from the plain decode; nothing was measured"
                )
    if frames:
        raise DeepfakeError(f"{clip.name}: frames {sorted(frames)} are not in the plain decode; nothing was measured")
    return count, sampled


def measure_memory(*, num_frames: int) -> dict[str, float]:
    """Return peak memory in MB of sampling a ten-second and a one-hour clip (320x240, H.264), made on the spot."""
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, length_s in (("10 s", 10), ("1 h", 3600)):
            clip = Path(folder) / f"{length_s}.mp4"
            _write_clip(clip, length_s)
            # A fresh process: the peak of this one would remember what came before.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                peaks[name] = pool.apply(_peak_mb, (clip, num_frames))
    return peaks


def _peak_mb(clip: Path, num_frames: int) -> float:
    _sample(clip, num_frames)
    return own_peak_mb()


def _write_clip(path: Path, length_s: int) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "crf": "30"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        pictures = [
            av.VideoFrame.from_ndarray(np.roll(image, step, axis=1), format="rgb24").reformat(format="yuv420p")
            for step in range(8)
        ]
        for number in range(length_s * 30):
            picture = pictures[number // 30 % 8]
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _decode_plainly(clip: Path) -> None:
    with av.open(str(clip)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for _ in container.decode(video=0):
            pass


def _sample(clip: Path, num_frames: int) -> None:
    with open_media(clip) as media:
        for _ in media.frames(Sampling(num_frames)):
            pass


def _ffmpeg() -> dict[str, str]:
    return {name: ".".join(map(str, version)) for name, version in sorted(av.library_versions.items())}


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("clip", box=None, header_style="bold")
    for column in ("plain: wall", "sampled", "ratio", "plain: CPU", "sampled", "ratio"):
        table.add_column(column, justify="right")
    for row in rows:
        figures = (
            text
            for kind in ("wall", "cpu")
            for text in (
                f"{row['plain'][f'{kind}_s']:.3f} s",
                f"{row['sampled'][f'{kind}_s']:.3f} s",
                f"{row[f'{kind}_ratio']:.2f}",
            )
        )
        table.add_row(row["clip"], *figures)
    return table
