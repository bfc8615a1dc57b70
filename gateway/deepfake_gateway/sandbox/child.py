"""What runs inside a sandbox: one line of JSON is a task, and lines of JSON are its progress and its result.

Started by `process.Sandbox` through `entry`, which has left the network. It loads the libraries and the face detector
before it takes further rights away from itself, so a task that comes later waits for none of it. A medium comes as an
open file, and scores come from the parent: the process needs neither files nor network.
"""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, BinaryIO, Final

from deepfake_client.analysis.pipeline import Progress
from deepfake_client.client import DeepfakeClient
from deepfake_client.options import AnalyzeOptions
from deepfake_client.result.verdict import Verdict
from deepfake_client.sources.inputs import open_source
from deepfake_client.transport.request_id import REQUEST_ID
from deepfake_gateway.logs import set_up_logs
from deepfake_gateway.sandbox.bounds import check_frames, check_media
from deepfake_gateway.sandbox.isolation import drop_user
from deepfake_gateway.sandbox.limits import Limits, bound_cpu, drop_rights
from deepfake_gateway.sandbox.relay import RelayTransport
from deepfake_gateway.sandbox.watching import watch
from deepfake_preprocess.errors import DeepfakeError, MediaLimitError, ModelReplacedError
from deepfake_preprocess.faces.mtcnn import MtcnnDetector
from deepfake_preprocess.media.sampling import Sampling
from deepfake_preprocess.support.limits import end_with_parent

PROGRESS_EVERY_S: Final = 0.5

Say = Callable[[dict[str, Any]], None]


def main(setup: dict[str, Any], network_problem: str | None) -> None:
    """Do tasks until standard input ends; `network_problem` is why the network could not be left."""
    set_up_logs(*setup["logs"])
    limits = Limits(**setup["limits"])
    relay, files = (socket.socket(fileno=setup[name]) for name in ("relay_fd", "files_fd"))
    # What a library prints must not come between the lines.
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(line: dict[str, Any]) -> None:
        lines.write(json.dumps(line) + "\n")
        lines.flush()

    with DeepfakeClient(RelayTransport(relay), model=setup["model"], detector=MtcnnDetector()) as client:
        drop_rights(limits)
        problems = [network_problem, drop_user()]
        end_with_parent()  # again: the kernel forgot it with the user
        say({"ready": True, "problems": problems})
        for line in sys.stdin:
            bound_cpu(limits.cpu_s)
            task = json.loads(line)
            REQUEST_ID.set(task["request_id"])
            if task["kind"] == "watch":
                say(answer_of(partial(watch, client, task, limits, say), task["name"]))
                continue
            _, descriptors, _, _ = socket.recv_fds(files, 1, 1)
            with _Medium(descriptors[0], task["name"]) as medium:
                say(result_of(client, medium, task, limits, say))


class _Medium(io.FileIO):
    """An open file under the name that its sender gave it."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor, "rb")
        self.name = name


def result_of(
    client: DeepfakeClient, medium: BinaryIO, task: dict[str, Any], limits: Limits, say: Say
) -> dict[str, Any]:
    """Do a task: its result, or why there is none, as one line for the parent."""
    return answer_of(partial(_TASKS[task["kind"]], client, medium, task, limits, say), task["name"])


def answer_of(do: Callable[[], dict[str, Any]], name: str) -> dict[str, Any]:
    """Return what a task with an input of that name returns, or why it fails, as one line for the parent."""
    try:
        try:
            return do()
        except ModelReplacedError:
            return do()  # all of it by the model that is served now
    except DeepfakeError as exc:
        return {"error": type(exc).__name__, "detail": str(exc)}
    except MemoryError:
        detail = f"{name} needs more memory than is allowed; send it scaled down"
        return {"error": MediaLimitError.__name__, "detail": detail}


def _analyze(
    client: DeepfakeClient, medium: BinaryIO, task: dict[str, Any], limits: Limits, say: Say
) -> dict[str, Any]:
    options, said_at = options_of(task["options"]), 0.0

    def report(progress: Progress) -> None:
        nonlocal said_at
        check_frames(task["name"], progress.frames_done, limits)
        if time.monotonic() - said_at >= PROGRESS_EVERY_S:
            said_at = time.monotonic()
            say({"progress": _progress(progress)})

    with open_source(medium, name=task["name"]) as media:
        check_media(media, options.sampling, limits)
        verdict = client.analyze(media, options=options, on_progress=report)
    return {"verdict": replace(verdict, source=task["name"]).to_dict()}


def _report(
    client: DeepfakeClient, medium: BinaryIO, task: dict[str, Any], limits: Limits, say: Say
) -> dict[str, Any]:
    from deepfake_client.report import FileFacts, ReportContext, page_of, take_pictures

    verdict = Verdict.from_dict(task["verdict"])
    spec = client.model().spec
    with open_source(medium, name=task["name"]) as media:
        pictures = take_pictures(verdict, media, spec)
    analyzed_at, kept_until = (datetime.fromtimestamp(task[name], UTC) for name in ("analyzed_at", "kept_until"))
    file = FileFacts(task["size_bytes"], task["sha256"])
    context = ReportContext(spec, options_of(task["options"]), file, analyzed_at, kept_until)
    if task["format"] == "pdf":
        from deepfake_client.report.pdf import pdf_of

        report = pdf_of(verdict, context, pictures)
    else:
        report = page_of(verdict, context, pictures).encode()
    return {"report": base64.b64encode(report).decode("ascii")}


def _crops(
    client: DeepfakeClient, medium: BinaryIO, task: dict[str, Any], limits: Limits, say: Say
) -> dict[str, Any]:
    """Cut out the faces that a report shows, as the model saw them."""
    from deepfake_client.explain.evidence import MAX_SHOWN, SHOWN_PER_TRACK, gather

    verdict = Verdict.from_dict(task["verdict"])
    with open_source(medium, name=task["name"]) as media:
        found = gather(media, verdict, client.model().spec, per_track=SHOWN_PER_TRACK, at_most=MAX_SHOWN)
    return {
        "crops": [
            {
                "name": f"{item.pick.face.track}-{item.pick.frame.index}",
                "shape": item.crop.shape,
                "rgb": base64.b64encode(item.crop.tobytes()).decode("ascii"),
                "landmarks_xy": None if item.landmarks_xy is None else item.landmarks_xy.tolist(),
            }
            for item in found
        ]
    }


_TASKS: Final = {"analyze": _analyze, "report": _report, "crops": _crops}


def options_of(data: dict[str, Any]) -> AnalyzeOptions:
    """Return the options that were stored as JSON."""
    sampling = dict(data["sampling"])
    if sampling["at_seconds"] is not None:
        sampling["at_seconds"] = tuple(sampling["at_seconds"])
    return AnalyzeOptions(**{**data, "sampling": Sampling(**sampling)})


def _progress(progress: Progress) -> dict[str, Any]:
    return {
        "frames_done": progress.frames_done,
        "frames_expected": progress.frames_expected,
        "faces_scored": progress.faces_scored,
        "label": progress.label,
        "fake_probability": progress.fake_probability,
    }
