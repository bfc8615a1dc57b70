"""docs/kserve.md: its Python, JavaScript and curl are run as written, and give the scores of our crop and client."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from checkout import ROOT
from media import picture
from tiny_model import TINY_SPEC, write_tiny_repository

from deepfake_client import DeepfakeClient
from deepfake_preprocess.contract.spec import Crop
from deepfake_preprocess.faces.crop import crop_face
from deepfake_preprocess.faces.detector import Face
from deepfake_preprocess.media.frame import ArrayFrame
from deepfake_serve import EmbeddedTriton

PAGE = (ROOT / "docs/kserve.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SPEC = replace(
    TINY_SPEC, name="deepfake_efficientnet_lite0", input_height_px=160, input_width_px=160, crop=Crop(margin=0.1)
)
SHRUNK = (204, 26, 444, 336)
ENLARGED_AT_THE_EDGE = (560, 20, 650, 100)


def block(language: str, number: int = 0) -> str:
    return [text for kind, text in BLOCKS if kind == language][number]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    repository = write_tiny_repository(tmp_path_factory.mktemp("kserve") / "model_repository", SPEC)
    with EmbeddedTriton(repository) as triton:
        yield triton


@pytest.fixture
def run(served, tmp_path):
    """Run a command in a folder that holds the page's files, a picture, and its raw pixels."""
    rgb = picture(640, 360)
    cv2.imwrite(str(tmp_path / "portrait.png"), rgb[..., ::-1])
    rgb.tofile(tmp_path / "portrait.rgb")
    for name, text in (("score.py", block("python")), ("score.mjs", block("js")), ("curl.sh", block("sh", 1))):
        (tmp_path / name).write_text(text.replace("localhost:8000", served.http_url.removeprefix("http://")))

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
            env=os.environ | {"PYTHONPATH": ""},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def our_score(served, box) -> float:
    crop = crop_face(ArrayFrame.from_rgb(picture(640, 360)), Face(np.array(box, np.float32), 1.0), SPEC)
    with DeepfakeClient(served.grpc_url) as client:
        return float(client.score(crop[None])[0])


@pytest.mark.parametrize("box", [SHRUNK, ENLARGED_AT_THE_EDGE])
def test_python_and_curl_give_our_score(served, run, tmp_path, box):
    expected = our_score(served, box)
    printed, label = run(sys.executable, "score.py", "portrait.png", *map(str, box)).split()
    assert printed == f"{expected:.4f}"
    assert label == ("FAKE" if expected >= SPEC.threshold else "REAL")
    if shutil.which("curl"):
        outputs = {one["name"]: one["data"] for one in json.loads(run("sh", "-eu", "curl.sh"))["outputs"]}
        assert outputs["fake_probability"] == pytest.approx([expected], abs=1e-6)
        assert len(outputs["logit"]) == 1


@pytest.mark.debian("nodejs")
@pytest.mark.parametrize("box", [SHRUNK, ENLARGED_AT_THE_EDGE])
def test_javascript_gives_our_score(served, run, box):
    printed, label = run("node", "score.mjs", "portrait.rgb", "640", "360", *map(str, box)).split()
    # Rounding of single pixels may differ from OpenCV's fixed-point arithmetic by one level.
    assert float(printed) == pytest.approx(our_score(served, box), abs=0.005)
    assert label in {"REAL", "FAKE"}


def test_every_block_is_run():
    assert [kind for kind, _ in BLOCKS] == ["sh", "python", "js", "sh"]
