"""What a calibration set gives: crops as in service, the file of each, labels, and sentences for what is missing."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from media import make_clip, picture

from deepfake_export.proof.crops import generate_crops
from deepfake_export.proof.faces import FRAMES_PER_VIDEO, MIN_CROPS, hash_media, read_faces
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError

SPEC = ModelSpec(name="tiny", architecture="timm:none", input_width_px=64, input_height_px=64)


def write_crops(directory, count, *, start=0):
    directory.mkdir(parents=True, exist_ok=True)
    crops = generate_crops(count, SPEC.input_size_wh, seed=start)
    for index, crop in enumerate(crops):
        cv2.imwrite(str(directory / f"{index:03}.png"), cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))
    return crops


def test_images_of_the_input_size_are_crops_as_they_are(tmp_path):
    crops = write_crops(tmp_path, MIN_CROPS)
    faces = read_faces(tmp_path, SPEC)
    np.testing.assert_array_equal(faces.crops, crops)
    assert faces.sources == tuple(f"{index:03}.png" for index in range(MIN_CROPS))
    assert faces.videos == frozenset()
    assert faces.labels is None
    assert "500 are recommended" in faces.notes[0]


def test_faces_are_cut_out_of_videos_and_larger_images(tmp_path):
    (tmp_path / "clips").mkdir()
    make_clip(tmp_path / "clips/one.mp4", duration_s=1.0)
    cv2.imwrite(str(tmp_path / "photo.png"), cv2.cvtColor(picture(320, 240), cv2.COLOR_RGB2BGR))
    (tmp_path / "notes.txt").write_text("no media")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    faces = read_faces(tmp_path, SPEC)
    assert faces.crops.shape == (FRAMES_PER_VIDEO + 1, 64, 64, 3)
    assert faces.sources.count("clips/one.mp4") == FRAMES_PER_VIDEO
    assert faces.videos == {"clips/one.mp4"}
    assert any("broken.jpg" in note for note in faces.notes)


def test_no_faces_and_too_few_are_refused(tmp_path):
    with pytest.raises(OptionError, match="no such directory"):
        read_faces(tmp_path / "none", SPEC)
    with pytest.raises(OptionError, match="no videos and no images"):
        read_faces(tmp_path, SPEC)
    cv2.imwrite(str(tmp_path / "sky.png"), np.full((240, 320, 3), 200, np.uint8))
    with pytest.raises(OptionError, match=r"no face was found in any of 1 files; .* 64x64 px"):
        read_faces(tmp_path, SPEC)
    write_crops(tmp_path, MIN_CROPS - 1)
    with pytest.raises(OptionError, match=r"only 15 face crops .* at least 16 are needed and 500 recommended"):
        read_faces(tmp_path, SPEC)


def test_a_large_set_is_taken_evenly(tmp_path, monkeypatch):
    write_crops(tmp_path, 40)
    monkeypatch.setattr("deepfake_export.proof.faces.MAX_CROPS", 20)
    faces = read_faces(tmp_path, SPEC)
    assert faces.sources == tuple(f"{index:03}.png" for index in range(0, 40, 2))


def test_labels_come_from_folders_or_from_a_csv(tmp_path):
    write_crops(tmp_path / "real", 8)
    write_crops(tmp_path / "fake/a", 8, start=1)
    labels = read_faces(tmp_path, SPEC).labels
    assert labels is not None
    assert labels.tolist() == [1] * 8 + [0] * 8

    table = tmp_path / "labels.csv"
    rows = [f"real/{index:03}.png,fake" for index in range(8)] + [f"fake/a/{index:03}.png,0" for index in range(8)]
    table.write_text("\n".join(["path,label", *rows]))
    labels = read_faces(tmp_path, SPEC, labels=table).labels
    assert labels is not None
    assert labels.tolist() == [0] * 8 + [1] * 8

    table.write_text("real/000.png,maybe\n")
    with pytest.raises(OptionError, match=r"entry 1 is 'real/000\.png,maybe'"):
        read_faces(tmp_path, SPEC, labels=table)
    table.write_text("gone.png,real\n")
    with pytest.raises(OptionError, match=r"'gone\.png', which is not in"):
        read_faces(tmp_path, SPEC, labels=table)


def test_the_hash_changes_with_content_and_name(tmp_path):
    write_crops(tmp_path, 2)
    before = hash_media(tmp_path)
    (tmp_path / "notes.txt").write_text("not media")
    assert hash_media(tmp_path) == before
    (tmp_path / "001.png").rename(tmp_path / "002.png")
    assert hash_media(tmp_path) != before
