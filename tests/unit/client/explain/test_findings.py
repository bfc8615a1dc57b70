"""From a verdict to its pictures, without a server: which faces, which crops, what is compared, what is drawn."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from explain_nets import OTHER_SHA, SIDE_PX, spec_of, tiny_explainer, tiny_network
from media import make_clip

from deepfake_client import AnalyzeOptions, DeepfakeClient, Sampling
from deepfake_client.cli import groups
from deepfake_client.cli import main as cli
from deepfake_client.explain import sheet as explain_sheet
from deepfake_client.explain.evidence import suspicious_faces
from deepfake_client.explain.findings import ExplainedFace, open_explainer, overlays_png
from deepfake_client.explain.overlay import overlay_heatmap
from deepfake_client.explain.service import ServiceExplainer
from deepfake_client.explain.sheet import contact_sheet
from deepfake_client.explain.types import ExplainOptions
from deepfake_client.result.verdict import Label, Reason
from deepfake_client.transport.testing import FakeTransport
from deepfake_explain import CheckpointExplainer
from deepfake_preprocess.contract.spec import Crop
from deepfake_preprocess.errors import (
    ExplainDisagreementError,
    MediaNotFoundError,
    MissingExtraError,
    NoFaceError,
    OptionError,
    ServerUnavailableError,
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("media") / "two.mp4", size_wh=(640, 320), faces=2, duration_s=1.0)


@pytest.fixture(scope="module")
def explainer():
    return CheckpointExplainer(tiny_network(), spec_of(crop=Crop(0.3, "eyes")))


def client_of(explainer, **options):
    return DeepfakeClient(FakeTransport(explainer.score, spec=explainer.spec, **options))


@pytest.fixture(scope="module")
def verdict(clip, explainer):
    with client_of(explainer) as client:
        return client.analyze(clip, options=AnalyzeOptions(sampling=Sampling(num_frames=5)))


@pytest.fixture(scope="module")
def faces(clip, explainer, verdict) -> tuple[ExplainedFace, ...]:
    with client_of(explainer) as client:
        # Layer-CAM has heat for every network; Grad-CAM may find nothing that speaks for fake.
        return client.explain(verdict, clip, top=2, explainer=explainer, options=ExplainOptions("layer-cam"))


def test_the_most_suspicious_faces_are_explained_with_the_crops_that_were_scored(verdict, faces, explainer):
    assert [face.pick for face in faces] == list(suspicious_faces(verdict, per_track=2))
    assert len(faces) == 2 * len(verdict.tracks) == 4
    for face in faces:
        assert face.explanation.served_probability == pytest.approx(face.pick.face.fake_probability, abs=1e-6)
        (alone,) = explainer.explain(face.crop[None], ExplainOptions("layer-cam"))
        np.testing.assert_allclose(face.explanation.heatmap, alone.heatmap, atol=1e-4)
        # Landmarks come along from the verdict, so the parts of the face have names.
        assert sum(face.explanation.part_shares.values()) == pytest.approx(1)


def test_heatmaps_go_back_to_where_the_face_is(faces):
    for face in faces:
        heat = face.heatmap_in_frame()
        assert heat.shape == (face.frame_wh[1], face.frame_wh[0]) == (320, 640)
        left, top, right, bottom = face.pick.face.box_xyxy
        rows, columns = np.nonzero(heat)
        side = max(right - left, bottom - top)
        assert abs(columns.mean() - (left + right) / 2) < side
        assert columns.min() >= left - side
        assert rows.max() <= bottom + side
        assert face.overlay_in_frame().shape == face.preview.shape


def test_the_source_is_that_of_the_verdict_where_none_is_given(clip, verdict, explainer):
    with client_of(explainer) as client:
        found = client.explain(verdict, top=1, explainer=explainer)
        assert {face.pick.face.track for face in found} == {0, 1}
        gone = dataclasses.replace(verdict, source="gone.mp4")
        with pytest.raises(MediaNotFoundError, match=r"gone\.mp4"):
            client.explain(gone, explainer=explainer)


def test_nothing_is_explained_that_is_not_served(clip, verdict, explainer):
    with (
        DeepfakeClient(FakeTransport(lambda faces: explainer.score(faces) + 0.01, spec=explainer.spec)) as it,
        pytest.raises(ExplainDisagreementError, match="but the server gave"),
    ):
        it.explain(verdict, clip, explainer=explainer)
    fp16 = FakeTransport(lambda faces: explainer.score(faces) + 0.01, spec=explainer.spec, precision="fp16")
    with DeepfakeClient(fp16) as it:
        assert it.explain(verdict, clip, explainer=explainer)
    other = dataclasses.replace(explainer.spec, checkpoint_sha256=OTHER_SHA)
    with DeepfakeClient(FakeTransport(explainer.score, spec=other)) as client:
        with pytest.raises(ExplainDisagreementError, match="analyze the file again"):
            client.explain(verdict, clip, explainer=explainer)
        again = client.analyze(clip, options=AnalyzeOptions(sampling=Sampling(num_frames=5)))
        with pytest.raises(ExplainDisagreementError, match="is loaded here"):
            client.explain(again, clip, explainer=explainer)


def test_a_verdict_without_faces_and_a_top_of_nothing(clip, verdict, explainer):
    empty = dataclasses.replace(
        verdict, frames=(), tracks=(), label=Label.INCONCLUSIVE, reason=Reason.NO_FACE, fake_probability=None,
        interval=None, detail="no face was found in 5 frames",
    )  # fmt: skip
    with client_of(explainer) as client:
        with pytest.raises(NoFaceError, match=r"nothing to explain \(no face was found in 5 frames\)"):
            client.explain(empty, clip, explainer=explainer)
        with pytest.raises(OptionError, match="`top` is 0"):
            client.explain(verdict, clip, top=0, explainer=explainer)


def test_the_areas_of_a_contact_sheet_have_names_that_can_be_read(verdict, faces):
    sheet = contact_sheet(verdict, faces)
    found = []
    for region in (region for face in faces for region in face.explanation.regions[:3] if region.part):
        text, look = f"{region.part} {region.share:.0%}", (cv2.FONT_HERSHEY_SIMPLEX, 0.38)
        (width, height), _ = cv2.getTextSize(text, *look, 1)
        label = np.full((height, width, 3), explain_sheet.INK, np.uint8)
        cv2.putText(label, text, (0, height), *look, explain_sheet.PAPER, 1, cv2.LINE_AA)
        found.append(cv2.matchTemplate(sheet, label, cv2.TM_SQDIFF_NORMED).min() < 1e-3)
    assert any(found), "drawn once, on a plain ground"


def test_a_contact_sheet_shows_frame_crop_heatmap_and_numbers(verdict, faces):
    sheet = contact_sheet(verdict, faces)
    assert sheet.dtype == np.uint8
    # Each tile is found again where it belongs, at the size it is drawn.
    crop = cv2.resize(faces[0].crop, (240, 240), interpolation=cv2.INTER_CUBIC)
    scores = cv2.matchTemplate(sheet, crop, cv2.TM_SQDIFF_NORMED)
    assert scores.min() < 1e-3
    assert sheet.shape[0] > 4 * 240
    one = contact_sheet(verdict, faces[:1])
    assert one.shape[0] < sheet.shape[0]
    with pytest.raises(OptionError, match="at least one face"):
        contact_sheet(verdict, [])
    with pytest.raises(OptionError, match="must have one size"):
        overlay_heatmap(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.float32))


def test_the_words_of_a_contact_sheet_are_those_of_its_pictures(faces):
    for face in faces:
        words = explain_sheet.heat_in_words(face.explanation)
        for region in face.explanation.regions[: explain_sheet.SHOWN_REGIONS]:
            assert region.part is None or f"{region.part} {region.share:.0%}" in words


def test_a_contact_sheet_has_room_for_the_models_caution(verdict, faces):
    wordy = dataclasses.replace(verdict, model=dataclasses.replace(verdict.model, caution="not for courts, " * 20))
    assert contact_sheet(wordy, faces).shape[0] > contact_sheet(verdict, faces).shape[0]


def test_overlays_are_given_as_png_for_a_report(faces):
    found = overlays_png(faces)
    assert sorted(found) == sorted((face.pick.frame.index, face.pick.face.track) for face in faces)
    for face in faces:
        data = found[face.pick.frame.index, face.pick.face.track]
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(picture, face.explanation.overlay)


def test_who_explains():
    assert isinstance(open_explainer(), ServiceExplainer)
    assert open_explainer(service="http://elsewhere:1234").url == "http://elsewhere:1234"
    with pytest.raises(OptionError, match="`service` and `checkpoint` exclude each other"):
        open_explainer(service="http://x", checkpoint="y.pt")


def test_without_the_extra_the_pip_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepfake_explain.explainer", None)
    with pytest.raises(MissingExtraError, match=r"run: pip install .*\[explain\]"):
        open_explainer(checkpoint="detector.safetensors")


def test_the_client_and_its_command_need_no_pytorch():
    code = "import sys, deepfake_client, deepfake_client.cli.explain; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.fixture
def command(monkeypatch, explainer):
    """Run `deepfake explain` with a server and an explainer in this process; return its exit code."""
    monkeypatch.setattr(
        groups,
        "DeepfakeClient",
        lambda url, **_: DeepfakeClient(FakeTransport(explainer.score, spec=explainer.spec)),
    )
    monkeypatch.setattr(
        groups,
        "open_explainer",
        lambda *, service, checkpoint, spec, device: open_explainer(service=service) if service else explainer,
    )

    def run(*arguments):
        try:
            cli.main(["explain", *(str(argument) for argument in arguments)])
        except SystemExit as stopped:
            return stopped.code or 0
        return 0

    return run


def test_the_command_writes_pictures_and_data(command, clip, tmp_path, capsys):
    assert command(clip, "--output-dir", tmp_path / "out", "--num-frames", 4, "--top", 1, "--json") == 0
    data = json.loads((tmp_path / "out/explanation.json").read_text())
    assert json.loads(capsys.readouterr().out) == data
    assert len(data["faces"]) == 2
    for face in data["faces"]:
        assert face["served_probability"] == pytest.approx(face["fake_probability"], abs=1e-6)
        assert face["crop"].startswith(f"face{face['track'] + 1}_"), "people count from 1"
        crop, overlay = (cv2.imread(str(tmp_path / "out" / face[kind])) for kind in ("crop", "crop_overlay"))
        assert crop.shape == overlay.shape == (SIDE_PX, SIDE_PX, 3)
        assert cv2.imread(str(tmp_path / "out" / face["frame_overlay"])).shape == (320, 640, 3)
    assert cv2.imread(str(tmp_path / "out" / data["contact_sheet"])) is not None


def test_the_command_takes_a_verdict_instead_of_analyzing(command, clip, verdict, tmp_path, capsys):
    known = tmp_path / "verdict.json"
    known.write_text(json.dumps(verdict.to_dict()))
    assert command(clip, "-o", tmp_path / "out", "--verdict", known, "--top", 2) == 0
    assert "Wrote 4 faces, contact_sheet.png and explanation.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--verdict", "none.json"], "none.json: there is no such file"),
        (["--verdict", "list.json"], "list.json is not a verdict of `deepfake analyze PATH --json`"),
        (["--verdict", "error.json"], "error.json holds an error and no verdict: gone"),
        (["--method", "cam"], "--method is 'cam'; allowed: grad-cam"),
        (["--layer", "bn2"], "--layer is 'bn2'; allowed: 4, 3, 2, 1, 0"),
        (["--output-dir", "list.json"], "list.json cannot be made (File exists)"),
    ],
)
def test_the_command_answers_bad_input_in_one_sentence(
    command, clip, tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "error.json").write_text(
        json.dumps({"source": "x", "error": {"type": "MediaNotFoundError", "message": "gone"}})
    )
    assert command(clip, "--output-dir", "out", "--num-frames", 2, *arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_the_command_says_so_when_the_service_is_down(command, clip, tmp_path, capsys):
    code = command(clip, "-o", tmp_path, "--num-frames", 2, "--service", "http://127.0.0.1:9")
    assert code == ServerUnavailableError.exit_code
    assert "no explain service answers at http://127.0.0.1:9; start one with" in capsys.readouterr().err


def test_an_explanation_prints_shortly():
    (found,) = tiny_explainer().explain(np.zeros((1, SIDE_PX, SIDE_PX, 3), np.uint8))
    assert repr(found) == f"Explanation(grad-cam on 4, 48x48 px, {found.fake_probability:.4f})"
