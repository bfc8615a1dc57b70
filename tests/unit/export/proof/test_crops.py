"""Crops of the proof: the same ones everywhere, and those of a directory as they are."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from deepfake_export.proof.crops import generate_crops, read_crops
from deepfake_export.proof.running import batches_of
from deepfake_preprocess.errors import OptionError

SIZE_WH = (24, 16)


def test_generated_crops_are_the_same_everywhere_and_differ_from_each_other():
    crops = generate_crops(4, SIZE_WH)
    assert crops.shape == (4, 16, 24, 3)
    assert crops.dtype == np.uint8
    assert (crops == generate_crops(4, SIZE_WH)).all()
    assert all((a != b).mean() > 0.5 for a, b in itertools.combinations(crops, 2))
    assert [len(batch) for batch in batches_of(crops, 3)] == [3, 1]


def test_crops_are_read_as_rgb_in_the_order_of_their_names(tmp_path):
    red, blue = np.zeros((40, 40, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    cv2.imwrite(str(tmp_path / "a.png"), red[..., ::-1])
    cv2.imwrite(str(tmp_path / "b.bmp"), blue[..., ::-1])
    (tmp_path / "notes.txt").write_text("no image")
    crops = read_crops(tmp_path, SIZE_WH, limit=5).crops
    assert crops.shape == (2, 16, 24, 3)
    assert (crops[0] == (255, 0, 0)).all()
    assert (crops[1] == (0, 0, 255)).all()
    assert len(read_crops(tmp_path, SIZE_WH, limit=1)) == 1


def test_unusable_crops(tmp_path):
    with pytest.raises(OptionError, match="no such directory"):
        read_crops(tmp_path / "absent", SIZE_WH, limit=1)
    with pytest.raises(OptionError, match="holds no images"):
        read_crops(tmp_path, SIZE_WH, limit=1)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(OptionError, match="cannot be decoded"):
        read_crops(tmp_path, SIZE_WH, limit=1)
