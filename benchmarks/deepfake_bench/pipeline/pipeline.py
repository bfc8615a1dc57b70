"""`deepfake bench pipeline`: clip to verdict on a warm embedded Triton, against its parts and the usual pipeline.

Ours runs with uniform and with fast sampling. The floors are PyAV decoding the clip, the detector on the sampled
frames, and ONNX Runtime in-process on the crops (`pipeline.lower_bounds`). The usual pipeline is what the field's
projects do with a clip: OpenCV seeks to each frame, facenet-pytorch's MTCNN finds the faces, eager PyTorch scores the
crops. All run in turn in every round, so that a noisy machine disturbs them alike; ratios are medians over rounds.
All but the fast one look at the same frames.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from deepfake_bench.load.counters import Counters
from deepfake_bench.load.observed import ObservingTransport
from deepfake_bench.machine.environment import environment, write_results
from deepfake_bench.machine.tables import table_console
from deepfake_bench.pipeline.clips import find_clips
from deepfake_bench.pipeline.facenet import Peer, load_peer
from deepfake_bench.pipeline.lower_bounds import decode_alone, detector_alone, onnxruntime_alone
from deepfake_bench.pipeline.scaling import measure_scaling, parse_counts
from deepfake_bench.server.reference import PROBABILITY_TOLERANCE
from deepfake_bench.server.serving import Server, embedded_server
from deepfake_client import AnalyzeOptions, DeepfakeClient, Reason, Sampling, Verdict, connect
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, RepositoryOption
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import DeepfakeError, OptionError
from deepfake_preprocess.faces.crop import crop_face
from deepfake_preprocess.faces.detector import Face
from deepfake_preprocess.faces.mtcnn import MtcnnDetector
from deepfake_preprocess.media.frame import ArrayFrame
from deepfake_serve._cores import CROPS_PER_THREAD

PACKAGES = (
    "av",
    "numpy",
    "onnxruntime",
    "opencv-python-headless",
    "tritonclient",
    "torch",
    "timm",
    "facenet-pytorch",
)
FLOORS = ("decode_alone", "detector_alone", "onnxruntime_alone")
COUNTED_WITHIN_S = 1.0
"""Triton counts a request just after it has answered it."""


def usual_pipeline(
    clip: Path, indices: Sequence[int], spec: ModelSpec, checkpoint: Path, peer: Peer
) -> Callable[[], list[float]]:
    """Return the usual pipeline as a function: it scores the frames `indices` of `clip`, one after another.

    Networks are loaded here, outside of what is timed.
    """
    import cv2
    import torch

    from deepfake_export import load_network

    network = load_network(checkpoint, spec).network
    mean, std = torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)

    def run() -> list[float]:
        scores = []
        capture = cv2.VideoCapture(str(clip))
        for index in indices:
            capture.set(cv2.CAP_PROP_POS_FRAMES, index)
            found, image = capture.read()
            if not found:
                continue
            image_rgb = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)
            frame = ArrayFrame.from_rgb(image_rgb)
            for box, confidence in zip(*peer(image_rgb), strict=True):
                crop = crop_face(frame, Face(box, float(confidence)), spec)
                pixels = (torch.from_numpy(crop).permute(2, 0, 1).float() / 255 - mean) / std
                with torch.no_grad():
                    scores.append(float(torch.sigmoid(network(pixels[None]))[0, 0]))
        capture.release()
        return scores

    return run


class Bench:
    """Analyses on one server, each with its split.

    Args:
        server: embedded, with nobody else on it.
        num_frames: sampled of each clip.
    """

    def __init__(self, server: Server, num_frames: int) -> None:
        self.server = server
        self.detector = MtcnnDetector()
        self.sampling = Sampling(num_frames=num_frames)
        self.fast = Sampling(num_frames=num_frames, mode="fast")
        self.observed = ObservingTransport(connect(server.grpc_url))
        self.client = DeepfakeClient(self.observed, model=server.model, detector=self.detector)

    def analyze(self, clip: Path, sampling: Sampling) -> tuple[Verdict, dict[str, float]]:
        """Analyze a clip and return its verdict and its `split`."""
        self.observed.exchanges.clear()
        before = self.server.counters()
        started = time.perf_counter()
        verdict = self.client.analyze(clip, options=AnalyzeOptions(sampling=sampling))
        total_s = time.perf_counter() - started
        if verdict.reason in (Reason.SERVER_ERROR, Reason.SERVER_UNAVAILABLE):
            raise DeepfakeError(f"{clip.name}: {verdict.detail}; nothing was measured")
        deadline = time.monotonic() + COUNTED_WITHIN_S
        after = self.server.counters()
        while after.requests - before.requests < len(self.observed.exchanges) and time.monotonic() < deadline:
            after = self.server.counters()
        exchange_s = sum(item.answered_s - item.sent_s for item in self.observed.exchanges)
        return verdict, split(verdict, total_s, exchange_s, before, after)

    def crops(self, clip: Path) -> Any:
        """Return the crops of the last analysis, uint8 ``[N, H, W, 3]``, its answers checked; None without a face.

        Raises:
            DeepfakeError: the server's scores are not those of the model file.
        """
        exchanges = self.observed.exchanges
        if not exchanges:
            return None
        crops = np.concatenate([item.crops for item in exchanges])
        answers = np.concatenate([item.probabilities for item in exchanges])
        largest = float(np.abs(self.floor(crops)() - answers).max())
        if not largest <= PROBABILITY_TOLERANCE:
            raise DeepfakeError(
                f"{clip.name}: the served probabilities differ from the file's by {largest:g}; nothing was measured"
            )
        return crops

    def floor(self, crops: Any) -> Callable[[], Any]:
        """Return ONNX Runtime alone on `crops`, as the server has it."""
        server = self.server
        assert server.reference is not None
        batch = CROPS_PER_THREAD * server.arrangement["threads"]
        return onnxruntime_alone(server.reference, crops, server.arrangement, batch=batch)


def split(verdict: Verdict, total_s: float, exchange_s: float, before: Counters, after: Counters) -> dict[str, float]:
    """Return where the time of one analysis went, in seconds of wall clock in which each stage was at work.

    Stages overlap, so that their sum may exceed the total. The time in which requests were under way is shared out to
    wire, queue and compute in proportion to what they took of each request.

    Args:
        verdict: of the analysis.
        total_s: from the call to the verdict, opening the clip included.
        exchange_s: its requests' time from sending to the answer, summed.
        before: the server's totals before the analysis.
        after: and after it.
    """
    stages = verdict.timing_s.to_dict()
    under_way_s = stages.pop("infer")
    del stages["total"]
    aggregate_s = stages.pop("aggregate")
    queue_s = (after.queue_ns - before.queue_ns) / 1e9
    names = ("compute_input_ns", "compute_infer_ns", "compute_output_ns")
    compute_s = sum(getattr(after, name) - getattr(before, name) for name in names) / 1e9
    wire_s = max(0.0, exchange_s - queue_s - compute_s)
    whole_s = (wire_s + queue_s + compute_s) or 1.0
    shares = {"wire": wire_s, "queue": queue_s, "compute": compute_s}
    return {
        **stages,
        **{name: round(under_way_s * part / whole_s, 4) for name, part in shares.items()},
        "aggregate": aggregate_s,
        "total": round(total_s, 4),
    }


def measure(
    clip: Path, bench: Bench, *, rounds: int, checkpoint: Path | None, peer: Peer | None, console: Console
) -> dict[str, Any]:
    """Time one clip in all ways, `rounds` times in turn, and return plain JSON data (seconds of wall clock)."""
    fast_verdict, _ = bench.analyze(clip, bench.fast)
    verdict, _ = bench.analyze(clip, bench.sampling)  # warms up, and says which frames are taken
    crops = bench.crops(clip)
    indices = [frame.index for frame in verdict.frames]
    splits: list[dict[str, float]] = []
    ways: dict[str, Callable[[], object]] = {
        "decode_alone": lambda: decode_alone(clip),
        "detector_alone": detector_alone(clip, bench.sampling, bench.detector),
        **({} if crops is None else {"onnxruntime_alone": bench.floor(crops)}),
        "ours": lambda: splits.append(bench.analyze(clip, bench.sampling)[1]),
        "ours_fast": lambda: bench.client.analyze(clip, options=AnalyzeOptions(sampling=bench.fast)),
    }
    peer_scores: list[float] | None = None
    if checkpoint is not None and peer is not None:
        usual = usual_pipeline(clip, indices, bench.client.model().spec, checkpoint, peer)
        peer_scores = usual()
        ways["usual"] = usual
    seconds = in_turn(ways, rounds, clip.name, console)
    seconds["ours"] = [item["total"] for item in splits]  # the server's counters are read outside of it
    data: dict[str, Any] = {
        "clip": clip.name,
        "frames": len(indices),
        "faces_ours": sum(len(frame.faces) for frame in verdict.frames),
        "mean_score_ours": _mean_score(verdict),
        "seconds": seconds,
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        **{f"ours_over_{name}": _ratio(seconds["ours"], seconds[name]) for name in FLOORS if name in seconds},
        "stages_s": {name: round(statistics.median(item[name] for item in splits), 4) for name in splits[0]},
        "faces_fast": sum(len(frame.faces) for frame in fast_verdict.frames),
        "mean_score_fast": _mean_score(fast_verdict),
        "fast_over_decode_alone": _ratio(seconds["ours_fast"], seconds["decode_alone"]),
    }
    if peer_scores is not None:
        data["faces_usual"] = len(peer_scores)
        data["mean_score_usual"] = statistics.fmean(peer_scores) if peer_scores else None
        data["ours_over_usual"] = _ratio(seconds["ours"], seconds["usual"])
    return data


def measure_set(
    clips: Sequence[Path], bench: Bench, measured: Sequence[dict[str, Any]], rounds: int
) -> dict[str, Any]:
    """Analyze all clips in one run, `rounds` times; return videos per second, and those of the usual pipeline."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        for outcome in bench.client.analyze_many(clips, options=AnalyzeOptions(sampling=bench.sampling)):
            if outcome.error is not None:
                raise outcome.error
        seconds.append(time.perf_counter() - started)
    data: dict[str, Any] = {
        "clips": len(clips),
        "seconds": seconds,
        "videos_per_s": round(len(clips) / statistics.median(seconds), 4),
    }
    if all("usual" in item["median_seconds"] for item in measured):
        usual = len(clips) / sum(item["median_seconds"]["usual"] for item in measured)
        data["usual_videos_per_s"] = round(usual, 4)
        data["ours_over_usual"] = round(data["videos_per_s"] / usual, 2)
    return data


def in_turn(
    ways: dict[str, Callable[[], object]], rounds: int, what: str, console: Console
) -> dict[str, list[float]]:
    """Return the seconds that each way took in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            console.print(f"[dim]{what}: round {number + 1} of {rounds}, {name}[/]", highlight=False)
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def pipeline(
    clips: Annotated[list[str], typer.Argument(metavar="CLIP...", help="Videos, folders or patterns.")],
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    model: Annotated[str | None, typer.Option(help="Model to measure; may be left out where there is one.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint of the served model: measures the usual pipeline too.")
    ] = None,
    peer_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder that facenet-pytorch is installed in.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames sampled of each clip.", min=1)] = 32,
    rounds: Annotated[int, typer.Option(help="How often all ways take turns.", min=1)] = 5,
    repeat_clips: Annotated[
        str, typer.Option(metavar="N,N,...", help="Also analyze so many copies in one run, such as 1,10,100.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option(help="Results file; by default benchmarks/results/MACHINE-pipeline.json.")
    ] = None,
) -> None:
    """Measure whole analyses, clip to verdict: videos per second, and where the time goes.

    Beside ours run, in turn, its floors: PyAV decoding the clip, the detector on the same frames, ONNX Runtime
    in-process on the same crops. With --checkpoint also the usual pipeline (OpenCV seeks, facenet-pytorch finds,
    eager PyTorch scores), whose detector is no dependency and runs from a folder of its own:
    pip install --no-deps --target DIR facenet-pytorch==2.6.0 requests tqdm urllib3 idna certifi charset-normalizer

    --repeat-clips 1,10,100 says whether cost grows linearly: time per clip, and the memory of a run of so many.

    [bold]Examples[/]

      deepfake bench pipeline clips/ --repository model_repository
      deepfake bench pipeline clip.mp4 --checkpoint detector.safetensors --peer-path DIR
      deepfake bench pipeline clip.mp4 --rounds 1 --repeat-clips 1,10,100
    """
    counts = parse_counts(repeat_clips) if repeat_clips else []
    paths = find_clips(clips)
    peer = None
    if checkpoint is not None:
        if not checkpoint.is_file():
            raise OptionError(f"--checkpoint {checkpoint}: there is no such file")
        peer = load_peer(peer_path)
    elif peer_path is not None:
        raise OptionError("--peer-path is for the usual pipeline, which needs --checkpoint, too")
    console = Console(stderr=True)
    data: dict[str, Any] = {"benchmark": "pipeline", "environment": environment(PACKAGES)}
    done: list[dict[str, Any]] = []
    with embedded_server(repository, model=model) as server:
        data |= {
            "model": server.model,
            "precision": server.identity["precision"],
            **server.arrangement,
            "frames_per_clip": frames,
            "rounds": rounds,
            "clips": done,
        }
        if checkpoint is None:
            data["usual"] = "not measured: --checkpoint was not given"
        bench = Bench(server, frames)
        try:
            done.extend(
                measure(clip, bench, rounds=rounds, checkpoint=checkpoint, peer=peer, console=console)
                for clip in paths
            )
            data["set"] = measure_set(paths, bench, done, rounds)
            if counts:
                data["repeated"] = measure_scaling(
                    server, paths, counts, num_frames=frames, announce=lambda text: console.print(f"[dim]{text}[/]")
                )
        finally:  # what was measured is kept, whatever ended the rest
            bench.client.close()
            if done:
                console.print(f"written to {write_results('pipeline', data, path=output)}", highlight=False)
    screen = table_console()
    for table in _tables(data):
        screen.print(table)
    line = f"{data['set']['videos_per_s']:.2f} videos/s over {len(paths)} clip{'s' * (len(paths) > 1)}"
    if "ours_over_usual" in data["set"]:
        line += f", {data['set']['ours_over_usual']:.1f} times the usual pipeline's"
    typer.echo(line)


def _ratio(ours: list[float], other: list[float]) -> float:
    """Median of the ratios of neighbouring measurements: what disturbs both cancels out."""
    return statistics.median(a / b for a, b in zip(ours, other, strict=True))


def _mean_score(verdict: Verdict) -> float | None:
    scores = [
        face.fake_probability for frame in verdict.frames for face in frame.faces if face.fake_probability is not None
    ]
    return statistics.fmean(scores) if scores else None


def _tables(data: dict[str, Any]) -> list[Table]:
    times = Table("clip", title="Seconds, and ours as a multiple", box=None, header_style="bold")
    columns = ("decode alone", "detector alone", "ONNX Runtime alone", "ours", "fast", "usual", "faces")
    for column in columns:
        times.add_column(column, justify="right")
    stages = Table("clip", title="Where the time of one analysis goes, ms", box=None, header_style="bold")
    for stage in data["clips"][0]["stages_s"]:
        stages.add_column(stage, justify="right")
    for clip in data["clips"]:
        medians = clip["median_seconds"]
        floors = (
            f"{medians[name]:.2f} ({clip[f'ours_over_{name}']:.2f}x)" if name in medians else "no face"
            for name in FLOORS
        )
        usual = f"{medians['usual']:.2f} ({clip['ours_over_usual']:.2f}x)" if "usual" in medians else "not measured"
        times.add_row(
            clip["clip"],
            *floors,
            f"{medians['ours']:.2f}",
            f"{medians['ours_fast']:.2f}",
            usual,
            f"{clip['faces_ours']} / {clip['faces_fast']} / {clip.get('faces_usual', '-')}",
        )
        stages.add_row(clip["clip"], *(f"{1_000 * value:.0f}" for value in clip["stages_s"].values()))
    if "repeated" not in data:
        return [times, stages]
    repeated = Table(title="Copies of the clips in one run", box=None, header_style="bold")
    for column in (
        "clips",
        "s per clip",
        "ratio",
        "CPU s per clip",
        "ratio",
        "peak MB",
        "growth in the run, MB",
        "in its 2nd half",
    ):
        repeated.add_column(column, justify="right")
    for item in data["repeated"]:
        repeated.add_row(
            str(item["clips"]),
            f"{item['s_per_clip']:.3f}",
            f"{item['time_ratio']:.2f}",
            f"{item['cpu_s_per_clip']:.3f}",
            f"{item['cpu_ratio']:.2f}",
            f"{item['peak_mb']:.0f}",
            f"{item['growth_mb']:+.1f}",
            f"{item['late_growth_mb']:+.1f}",
        )
    return [times, stages, repeated]
