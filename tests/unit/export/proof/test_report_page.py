"""The page of a report shows what the other two forms hold, by itself and on a telephone."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from debian import browse

from deepfake_export.proof.comparison import ArtifactProof, Proof, compare
from deepfake_export.proof.crops import CropSet
from deepfake_export.proof.gate import decide
from deepfake_export.proof.parity import measure_parity
from deepfake_export.proof.report import report_data, write_report
from deepfake_export.proof.report_page import to_html
from deepfake_export.proof.speed import Speed
from deepfake_preprocess.contract.spec import ModelSpec

SPEC = ModelSpec(name="tiny", architecture="timm:x", input_height_px=16, input_width_px=16, training_data="None.")
# One gray value a crop: scores from 0.1 to 0.9.
GRAYS = np.linspace(28, 230, 20).astype(np.uint8)
CROPS = CropSet(
    np.broadcast_to(GRAYS[:, None, None, None], (20, 16, 16, 3)).copy(),
    "20 face crops",
    tuple(f"{index}.png" for index in range(20)),
    labels=np.repeat([0, 1], 10),
    sha256="ab" * 32,
    notes=("few <b>crops",),
)


class Page(HTMLParser):
    """Reads a page: its text and tags; fails where a tag is not closed or something comes from outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attributes)
        assert not {"src", "srcset"} & values.keys()
        assert (values.get("href") or "data:").startswith("data:")
        assert not [name for name in values if name.startswith("on")]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def outputs(crops: np.ndarray, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    probability = crops.reshape(len(crops), -1).mean(1, keepdims=True).astype(np.float32) / 255 + np.float32(shift)
    return probability, np.log(probability / (1 - probability))


def artifact(precision: str, shift: float, milliseconds: float | None) -> ArtifactProof:
    parity, probability = measure_parity(
        outputs(CROPS.crops), lambda crops: outputs(crops, shift), CROPS,
        name=precision, precision=precision, threshold=0.5, max_batch_size=4, size_bytes=2_000_000,
    )  # fmt: skip
    proof = compare(
        parity,
        probability,
        outputs(CROPS.crops)[0][:, 0],
        CROPS,
        path=Path("x.onnx"),
        engine="onnxruntime",
        details={},
    )
    if milliseconds is None:
        return proof
    ratio = 4 / milliseconds
    speed = Speed({"1": milliseconds, "4": 2 * milliseconds}, {"1": 9.0, "4": 18.0}, {"1": ratio, "4": ratio})
    return dataclasses.replace(proof, speed=speed)


def data_of(*artifacts: ArtifactProof) -> dict[str, Any]:
    decision = decide([item.entrant() for item in artifacts], "best")
    proof = Proof(artifacts, decision, outputs(CROPS.crops)[0][:, 0])
    return report_data(SPEC, proof, CROPS, None, members={}, command="deepfake export c.pt")


def several() -> dict[str, Any]:
    failed = ArtifactProof("fp16", failure="the <graph> is not valid ONNX")
    return data_of(artifact("fp32", 0, 4.0), failed, artifact("int8", 0.01, 2.0))


def test_the_page_holds_the_choice_every_artifact_and_its_plots(tmp_path: Path) -> None:
    write_report(tmp_path, several())
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.md", "report.html"}
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    for fact in (
        "tiny version 1", "INT8 is served.", "FP32", "FP16 failed", "Rejected: the <graph> is not valid ONNX.",
        "INT8 served", "1.00e-02", "1.50e-01", "Note: few <b>crops.", "INT8, batch 4", "1 ms", "deepfake export c.pt",
        "threshold 0.5", "INT8 less the checkpoint", "0.75", "real", "fake",
    ):  # fmt: skip
        assert fact in page.text, fact
    assert page.tags.count("svg") == 1 + 1 + 2, "speed; FP32 without a difference; INT8"
    assert "No score differs from the checkpoint's in its first six decimals" in page.text
    # 20 crops of each of two precisions; one mark more of each label in the legends.
    assert (text.count('<circle class="real"'), text.count('<path class="fake"')) == (22, 22)
    assert "script" not in page.tags
    assert "//" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_what_was_not_measured_is_not_drawn() -> None:
    page = Page(to_html(data_of(artifact("fp32", 0, None))))
    assert "FP32 is served." in page.text
    assert page.tags.count("svg") == 1
    assert "Milliseconds per crop" not in page.text
    assert "Members" not in page.text


def test_crops_without_labels_and_scores_that_are_not_finite_are_drawn_as_far_as_they_go() -> None:
    data = several()
    data["scores"]["labels"] = None
    data["scores"]["int8"][3] = None
    text = to_html(data)
    assert text.count('<circle class="crop"') == 20 + 19
    assert "Not drawn: 1 crop whose score is not finite." in text


def test_differences_of_one_rounding_step_fill_bars_without_gaps() -> None:
    data = several()
    data["scores"]["int8"] = [score + 1e-6 for score in data["scores"]["checkpoint"]]
    text = to_html(data)
    assert text.count('<rect class="int8" x="173.3" y="0.0"') == 1
    assert ">1.0e-06<" in text


@pytest.mark.debian("chromium")
def test_the_page_fits_a_telephone(tmp_path: Path) -> None:
    """Neither the page nor a table within it is scrolled sideways at 375 px."""
    figures = several()["artifacts"][0]["parity"]
    data = {**several(), "members": {"a_member_with_a_long_name": figures}, "command": "deepfake export " + "w" * 200}
    write_report(tmp_path, data)
    script = """addEventListener("load", () => { const page = frames[0].document; document.body.dataset.width =
      Math.max(...[page.documentElement, ...page.querySelectorAll(".scroll")]
        .map((item) => item.scrollWidth - item.clientWidth)); });"""
    around = tmp_path / "around.html"
    around.write_text(
        f'<!doctype html><body><iframe src="report.html" width="375" height="800"></iframe><script>{script}</script>'
    )
    done = browse(around, tmp_path / "profile", "--allow-file-access-from-files")
    assert re.findall(r'data-width="(.*?)"', done.stdout) == ["0"], done.stdout + done.stderr
