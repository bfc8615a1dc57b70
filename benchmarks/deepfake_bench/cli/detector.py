"""`deepfake bench detector`: our face detector against facenet-pytorch's MTCNN, on the same frames."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from deepfake_bench.cli.options import (
    ClipsArgument,
    OutputOption,
    PeerPathOption,
    find_clips,
    load_facenet,
    print_table,
)
from deepfake_bench.machine.results import write_results
from deepfake_bench.pipeline.detector import LONE_IOU, MATCH_IOU, compare
from deepfake_preprocess.faces.mtcnn import MtcnnDetector
from deepfake_preprocess.support.extras import require_extra

COLUMNS = (
    ("clip", "{clip} {size_wh[0]}x{size_wh[1]}"),
    ("frames", "{frames}"),
    ("peer's faces", "{peer_faces}"),
    ("found", "{matched} ({matched_share:.1%})"),
    ("following", "{matched_following} ({detections_following} detections)"),
    ("mean IoU", "{mean_iou}"),
    ("only ours", "{boxes_only_ours}"),
    ("only peer", "{boxes_only_peer}"),
    ("ours", "{median_ms[ours]:.1f} ms"),
    ("peer", "{median_ms[peer]:.1f} ms"),
    ("ratio", "{ratio:.1f}x"),
)


def detector(
    clips: ClipsArgument,
    peer_path: PeerPathOption = None,
    peer_threads: Annotated[
        int | None, typer.Option(help="Threads of the peer; torch's own choice by default.", min=1)
    ] = None,
    num_frames: Annotated[int, typer.Option(help="Frames of each clip.", min=1)] = 24,
    min_face_px: Annotated[float, typer.Option(help="Smallest face counted, in a 1080p frame.", min=1)] = 60.0,
    output_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the boxes that only one of both has, as pictures.")
    ] = None,
    output: OutputOption = None,
) -> None:
    """Compare our face detector with facenet-pytorch's MTCNN: faces found, and time per frame.

    The peer pins old versions of torch and numpy, so it is not a dependency; it runs from a folder of its own:
    pip install --no-deps --target DIR facenet-pytorch==2.6.0 requests tqdm urllib3 idna certifi charset-normalizer

    [bold]Examples[/]

      deepfake bench detector clips/ --peer-path DIR
      deepfake bench detector clip.mp4 --peer-path DIR --output-dir boxes/
    """
    paths = find_clips(clips)
    peer = load_facenet(peer_path, threads=peer_threads)
    ours = MtcnnDetector()
    load_average = round(os.getloadavg()[0], 2)
    rows = [
        compare(clip, ours, peer, num_frames=num_frames, min_face_px=min_face_px, pictures_dir=output_dir)
        for clip in paths
    ]
    print_table(rows, COLUMNS, title="Face detectors on the same frames")
    results = {
        "settings": {
            "min_face_px_at_1080p": min_face_px,
            "match_iou": MATCH_IOU,
            "lone_iou": LONE_IOU,
            # Two threads of the peer that wait for a core of their own spin: on a busy machine its times say nothing.
            "load_average_before": load_average,
            "threads": {"ours": 1, "peer": require_extra("torch", extra="export").get_num_threads()},
        },
        "clips": rows,
    }
    typer.echo(f"written to {write_results('detector', results, output)}")
