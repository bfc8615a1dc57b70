"""`deepfake bench pipeline`: whole analyses, clip to verdict, and where their time goes."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from deepfake_bench.cli.options import (
    ClipsArgument,
    ModelOption,
    OutputOption,
    PeerPathOption,
    find_clips,
    load_facenet,
    print_table,
    read_counts,
)
from deepfake_bench.machine.results import Results, write_results
from deepfake_bench.pipeline.analyses import Analyses, Usual
from deepfake_bench.pipeline.scaling import measure_scaling
from deepfake_bench.pipeline.usual import Peer, usual_pipeline
from deepfake_bench.server.serving import embedded_server
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, RepositoryOption
from deepfake_preprocess.errors import OptionError

TIMES = (
    ("clip", "{clip}"),
    ("decode alone", "{median_seconds[decode_alone]:.2f} ({ours_over_decode_alone:.2f}x)"),
    ("detector alone", "{median_seconds[detector_alone]:.2f} ({ours_over_detector_alone:.2f}x)"),
    ("inference alone", "{median_seconds[inference_alone]:.2f} ({ours_over_inference_alone:.2f}x)"),
    ("ours", "{median_seconds[ours]:.2f}"),
    ("fast", "{median_seconds[ours_fast]:.2f}"),
    ("usual", "{median_seconds[usual]:.2f} ({ours_over_usual:.2f}x)"),
    ("faces", "{faces_ours} / {faces_fast} / {faces_usual}"),
)
REPEATED = (
    ("clips", "{clips}"),
    ("s per clip", "{s_per_clip:.3f}"),
    ("ratio", "{time_ratio:.2f}"),
    ("CPU s per clip", "{cpu_s_per_clip:.3f}"),
    ("ratio", "{cpu_ratio:.2f}"),
    ("peak MB", "{peak_mb:.0f}"),
    ("growth in the run, MB", "{growth_mb:+.1f}"),
    ("in its 2nd half", "{late_growth_mb:+.1f}"),
)


def pipeline(
    clips: ClipsArgument,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    model: ModelOption = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint of the served model: measures the usual pipeline too.")
    ] = None,
    peer_path: PeerPathOption = None,
    num_frames: Annotated[int, typer.Option(help="Frames sampled of each clip.", min=1)] = 32,
    rounds: Annotated[int, typer.Option(help="How often all ways take turns.", min=1)] = 5,
    repeat_clips: Annotated[
        str, typer.Option(metavar="N,N,...", help="Also analyze that many copies in one run, such as 1,10,100.")
    ] = "",
    output: OutputOption = None,
) -> None:
    """Measure whole analyses, clip to verdict: videos per second, and where the time goes.

    In turn with ours run its lower bounds: PyAV decoding the clip, the detector on the same frames, the server's
    engine in-process on the same crops. With --checkpoint also the usual pipeline (OpenCV seeks, facenet-pytorch
    finds, eager PyTorch scores), whose detector is not a dependency and runs from a folder of its own:
    pip install --no-deps --target DIR facenet-pytorch==2.6.0 requests tqdm urllib3 idna certifi charset-normalizer

    --repeat-clips 1,10,100 says whether cost grows linearly: time per clip, and the memory of such a run.

    [bold]Examples[/]

      deepfake bench pipeline clips/
      deepfake bench pipeline clip.mp4 --checkpoint detector.safetensors --peer-path DIR
      deepfake bench pipeline clip.mp4 --rounds 1 --repeat-clips 1,10,100
    """
    counts = sorted(set(read_counts("--repeat-clips", repeat_clips)))
    paths = find_clips(clips)
    peer = _peer(checkpoint, peer_path)
    console = Console(stderr=True, highlight=False)

    def announce(text: str) -> None:
        console.print(f"[dim]{text}[/]")

    done: list[dict[str, Any]] = []
    with ExitStack() as stack:
        server = stack.enter_context(embedded_server(repository, model=model))
        analyses = stack.enter_context(Analyses(server, num_frames, announce))
        data: dict[str, Any] = {
            "model": server.model.name,
            "precision": server.model.precision,
            "engine": server.engine,
            **server.arrangement,
            "frames_per_clip": num_frames,
            "rounds": rounds,
            "clips": done,
        }
        usual: Usual | None = None
        if checkpoint is None or peer is None:
            data["usual"] = "not measured: no checkpoint was given"
        else:
            usual = partial(usual_pipeline, spec=server.model.spec, checkpoint=checkpoint, peer=peer)
        try:
            done.extend(analyses.measure(clip, rounds=rounds, usual=usual) for clip in paths)
            data["set"] = analyses.measure_set(paths, done, rounds)
            if counts:
                data["repeated"] = measure_scaling(server, paths, counts, num_frames=num_frames, announce=announce)
        finally:  # what was measured is kept, whatever ended the rest
            if done:
                console.print(f"written to {write_results('pipeline', data, output)}")
    _print(data)
    line = f"{server.form}: {data['set']['videos_per_s']:.2f} videos/s over {len(paths)} clip{'s' * (len(paths) > 1)}"
    if "ours_over_usual" in data["set"]:
        line += f", {data['set']['ours_over_usual']:.1f} times the usual pipeline's"
    typer.echo(line)


def _peer(checkpoint: Path | None, peer_path: Path | None) -> Peer | None:
    if checkpoint is None:
        if peer_path is not None:
            raise OptionError("--peer-path is for the usual pipeline, which needs --checkpoint, too")
        return None
    if not checkpoint.is_file():
        raise OptionError(f"--checkpoint {checkpoint}: there is no such file")
    return load_facenet(peer_path)


def _print(data: Results) -> None:
    print_table(data["clips"], TIMES, title="Seconds, and ours as a multiple")
    stages = [("clip", "{clip}"), *((name, f"{{stages_s[{name}]:.3f}}") for name in data["clips"][0]["stages_s"])]
    print_table(data["clips"], stages, title="Where the time of one analysis goes, in seconds")
    if "repeated" in data:
        print_table(data["repeated"], REPEATED, title="Copies of the clips in one run", left=0)
