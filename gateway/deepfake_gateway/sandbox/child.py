"""What runs inside a sandbox: one line of JSON is a task, and lines of JSON are its progress and its result.

Started by `process.Sandbox` as ``python -m deepfake_gateway.sandbox.child``, with its bounds and the server's address
as one argument. It loads the libraries and the face detector before it takes rights away from itself, so a task that
comes later waits for none of it.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from deepfake_client.analysis.pipeline import Progress
from deepfake_client.client import DeepfakeClient
from deepfake_client.options import AnalyzeOptions
from deepfake_client.result.verdict import Verdict
from deepfake_client.transport.connection import Connection
from deepfake_gateway.sandbox.limits import Limits, bound_cpu, drop_rights
from deepfake_preprocess.errors import DeepfakeError, MediaOpenError
from deepfake_preprocess.faces.mtcnn import MtcnnDetector
from deepfake_preprocess.media.sampling import Sampling
from deepfake_preprocess.support.limits import end_with_parent

PROGRESS_EVERY_S: Final = 0.25

Say = Callable[[dict[str, Any]], None]


def main() -> None:
    """Do tasks until standard input ends."""
    end_with_parent()
    setup = json.loads(sys.argv[1])
    limits = Limits(**setup["limits"])
    # What a library prints must not come between the lines.
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(line: dict[str, Any]) -> None:
        lines.write(json.dumps(line) + "\n")
        lines.flush()

    with DeepfakeClient(Connection(url=setup["url"]), model=setup["model"], detector=MtcnnDetector()) as client:
        drop_rights(limits)
        say({"ready": True})
        for line in sys.stdin:
            bound_cpu(limits.cpu_s)
            say(result_of(client, json.loads(line), say))


def result_of(client: DeepfakeClient, task: dict[str, Any], say: Say) -> dict[str, Any]:
    """Do a task: its result, or why there is none, as one line for the parent."""
    try:
        return _TASKS[task["kind"]](client, task, say)
    except DeepfakeError as exc:
        # The path is the gateway's own; people know the name of what they uploaded.
        return {"error": type(exc).__name__, "detail": str(exc).replace(task["path"], task["name"])}
    except MemoryError:
        return {"error": MediaOpenError.__name__, "detail": f"{task['name']} needs more memory than is allowed"}


def _analyze(client: DeepfakeClient, task: dict[str, Any], say: Say) -> dict[str, Any]:
    said_at = 0.0

    def report(progress: Progress) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= PROGRESS_EVERY_S:
            said_at = time.monotonic()
            say({"progress": _progress(progress)})

    verdict = client.analyze(task["path"], options=options_of(task["options"]), on_progress=report)
    return {"verdict": replace(verdict, source=task["name"]).to_dict()}


def _report(client: DeepfakeClient, task: dict[str, Any], say: Say) -> dict[str, Any]:
    from deepfake_client.report.page import ReportContext, write_page
    from deepfake_client.report.pictures import pictures_of_source

    verdict = Verdict.from_dict(task["verdict"])
    spec = client.model().spec
    pictures = pictures_of_source(replace(verdict, source=task["path"]), spec)
    with tempfile.TemporaryDirectory() as folder:
        context = ReportContext(spec, options_of(task["options"]))
        return {"report": write_page(verdict, Path(folder), context, pictures=pictures).read_text(encoding="utf-8")}


def _crops(client: DeepfakeClient, task: dict[str, Any], say: Say) -> dict[str, Any]:
    """Cut out the faces that a report shows, as the model saw them."""
    from deepfake_client.explain.evidence import MAX_SHOWN, SHOWN_PER_TRACK, gather
    from deepfake_client.sources.inputs import open_source

    verdict = Verdict.from_dict(task["verdict"])
    with open_source(task["path"], name=task["name"]) as media:
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


if __name__ == "__main__":
    main()
