from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import cv2
import media
import numpy as np
import pytest
from drawn_faces import BOX, LANDMARKS, QUICK, TINY, draw_face, make_faces

from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.faces.detector import Face
from deepfake_training.data.augment import Augmentation, compress_h264, compress_jpeg
from deepfake_training.data.dataset import FaceDataset, Mixture
from deepfake_training.data.fakes.mesh import NUM_POINTS, Portrait, fit_mesh
from deepfake_training.data.fakes.recipes import color_distance
from deepfake_training.data.labels import FAKE
from deepfake_training.data.packed_faces import PackedFaces
from deepfake_training.data.packing import FaceFolders, pack_faces
from deepfake_training.data.selection import suitable

FACE = Face(np.array(BOX, np.float32), 1.0, np.array(LANDMARKS, np.float32))
NOTHING = Augmentation(untouched=1, flip=0)


def dataset(faces: PackedFaces, mixture: Mixture, augmentation: Augmentation = NOTHING) -> FaceDataset:
    return FaceDataset(
        faces, np.arange(len(faces)), spec=TINY, mixture=mixture, augmentation=augmentation, jitter=True, seed=5
    )


@pytest.mark.parametrize("compress", [lambda p: compress_jpeg(p, 30), lambda p: compress_h264(p, 35)])
def test_compression_keeps_shape_and_content(compress: object) -> None:
    picture = cv2.resize(draw_face(np.random.default_rng(0)), (71, 65))  # odd sides
    worse = compress(picture)  # type: ignore[operator]
    assert worse.shape == picture.shape
    error = np.abs(worse.astype(int) - picture).mean()
    assert 0.3 < error < 12


def test_a_pair_differs_by_the_blend_alone() -> None:
    faces = make_faces()
    heavy = Augmentation(untouched=0, color=1, resize=1, blur=1, noise=1, jpeg=1, h264=0, flip=0.5)
    data = dataset(faces, Mixture(made=1.0, swap=0.0), heavy)
    for place in range(0, 12, 2):
        (real, zero), (fake, one) = data[place], data[place + 1]
        assert (float(zero), float(one)) == (0.0, 1.0)
        assert data.draws[place].face == data.draws[place + 1].face
        # The same crop, mirrored or not: the surroundings agree far better than with another picture.
        other = data[(place + 2) % 12][0]
        assert (real.int() - fake.int()).abs().float().mean() < (real.int() - other.int()).abs().float().mean()


def test_a_distant_face_keeps_its_place_and_loses_its_detail() -> None:
    picture = cv2.resize(draw_face(np.random.default_rng(0)), (480, 480))
    noisy = np.clip(picture + np.random.default_rng(1).normal(0, 20, picture.shape), 0, 255).astype(np.uint8)
    box = np.array([100, 100, 380, 380], np.float32)
    landmarks = np.array([[180, 200], [300, 200], [240, 260], [190, 310], [290, 310]], np.float32)
    mesh = fit_mesh(Face(box, 1.0, landmarks))
    plain = Augmentation(portrait=0, color=0, contrast=0, smooth=0, blur=0, noise=0, sharpen=0, jpeg=0)
    far = plain.apply(noisy, mesh, np.random.default_rng(2), distant=True)
    assert far.shape == noisy.shape
    assert np.abs(far.astype(int) - picture).mean() < 12
    fine = [cv2.Laplacian(cv2.cvtColor(each, cv2.COLOR_RGB2GRAY), cv2.CV_64F).std() for each in (noisy, far)]
    assert fine[1] < 0.2 * fine[0]


@pytest.mark.parametrize("balance", ["sampler", "none"])
def test_distant_faces_are_small_in_pairs_and_mostly_real_where_that_is_asked(balance: str) -> None:
    mixture = Mixture(made=1, distant=0.5, distant_real=0.6, balance=balance)  # type: ignore[arg-type]
    draws = dataset(make_faces(real=200), mixture).draws
    near, far = ([draw for draw in draws if draw.distant is distant] for distant in (False, True))
    assert 0.35 < len(far) / len(draws) < 0.65
    assert sum(draw.made for draw in near) == len(near) / 2
    # Of ten pairs, four keep their fake; the others have two real faces, or one where nothing is balanced.
    expected = 0.2 if balance == "sampler" else 0.4 / 1.4
    assert abs(sum(draw.made for draw in far) / len(far) - expected) < 0.08
    for real, fake in itertools.pairwise(draws):
        if fake.made:
            assert (real.face, real.distant, real.seed) == (fake.face, fake.distant, fake.seed)


def test_every_crop_can_be_made_again_and_epochs_differ() -> None:
    data = dataset(make_faces(), Mixture(), Augmentation())
    first = [data[place][0] for place in range(6)]
    data.set_epoch(1)
    second = [data[place][0] for place in range(6)]
    data.set_epoch(0)
    assert all((crop == data[place][0]).all() for place, crop in enumerate(first))
    assert not all((a == b).all() for a, b in zip(first, second, strict=True))


def test_a_face_that_fills_its_picture_is_cut_closer_instead_of_mirrored() -> None:
    faces = make_faces(2)
    tight = dataclasses.replace(faces, boxes_xyxy=np.tile(np.array([0, 0, 72, 72], np.float32), (2, 1)))
    data = FaceDataset(
        tight, np.arange(2), spec=TINY, mixture=Mixture(made=1), augmentation=NOTHING, jitter=False, seed=5
    )
    whole = cv2.resize(tight.picture_rgb(data.draws[0].face), TINY.input_size_wh, interpolation=cv2.INTER_AREA)
    assert np.abs(data[0][0].numpy().astype(int) - whole).mean() < 1


def test_faces_that_look_aside_are_rolled_or_cut_off_are_not_learned_from() -> None:
    faces = make_faces(4, 1)
    landmarks, boxes = faces.landmarks_xy.copy(), faces.boxes_xyxy.copy()
    meshes = np.full((5, NUM_POINTS, 2), np.nan, dtype=np.float16)
    meshes[1] = faces.mesh(1)
    meshes[1, 1, 0] += 14  # the tip of the nose is under an eye
    landmarks[2] = [(36, 26), (50, 40), (36, 47), (22, 52), (34, 64)]
    boxes[[3, 4]] = (-30, 8, 60, 98)
    changed = dataclasses.replace(faces, landmarks_xy=landmarks, boxes_xyxy=boxes, meshes_xy=meshes)
    assert suitable(changed).tolist() == [True, False, False, False, True]  # the last one is a given fake


def test_donors_are_told_apart_by_the_color_of_their_skin() -> None:
    faces = make_faces(1)
    portrait = Portrait(faces.picture_rgb(0), faces.mesh(0))
    darker = Portrait((portrait.picture * 0.7).astype(np.uint8), portrait.mesh)
    darkest = Portrait((portrait.picture * 0.4).astype(np.uint8), portrait.mesh)
    assert (
        0 == color_distance(portrait, portrait) < color_distance(darker, portrait) < color_distance(darkest, portrait)
    )


def test_the_sampler_balances_classes_whatever_the_set_holds() -> None:
    data = dataset(make_faces(real=20, fake=4), Mixture(made=0.5))
    labels = [float(data[place][1]) for place in range(len(data))]
    assert sum(labels) == len(labels) / 2
    labels_of = [0] * 20 + [FAKE] * 4
    kinds = {(draw.made, labels_of[draw.face]) for draw in data.draws}
    assert kinds == {(False, 0), (True, 0), (False, FAKE)}


def test_the_loss_balances_where_the_sampler_does_not() -> None:
    data = dataset(make_faces(real=20, fake=5), Mixture(made=0.0, balance="loss"))
    assert len(data) == 25
    assert data.positive_weight == 4.0
    assert dataset(make_faces(real=20, fake=5), Mixture(made=0.0, balance="none")).positive_weight == 1.0


def test_what_cannot_be_learned_from_is_refused() -> None:
    with pytest.raises(OptionError, match="there is no real face"):
        dataset(make_faces(real=0, fake=4), Mixture())
    with pytest.raises(OptionError, match=r"there is no fake; .*self-blending"):
        dataset(make_faces(), Mixture(made=0.0))
    with pytest.raises(OptionError, match="field 'swap' is 2; allowed: a number from 0 to 1"):
        Mixture(swap=2)
    with pytest.raises(OptionError, match=r"shares of the made fakes and add up to 1\.2; lower them"):
        Mixture(swap=0.6, mouth=0.3, remade=0.3)


def test_a_pack_is_read_back_as_it_was_even_where_landmarks_lie_transposed(tmp_path: Path) -> None:
    faces = make_faces(4)
    transposed = np.ascontiguousarray(faces.landmarks_xy.transpose(0, 2, 1)).transpose(0, 2, 1)
    meshes = np.full((4, NUM_POINTS, 2), np.nan, dtype=np.float16)
    meshes[1] = fit_mesh(faces.face(1)) + 1
    path = tmp_path / "faces.safetensors"
    dataclasses.replace(faces, landmarks_xy=transposed, meshes_xy=meshes).save(path)
    again = PackedFaces.load(path)
    assert np.array_equal(again.landmarks_xy, faces.landmarks_xy)
    assert np.array_equal(again.mesh(0), fit_mesh(faces.face(0)))
    assert again.mesh(1) == pytest.approx(fit_mesh(faces.face(1)) + 1, abs=0.05)


def test_a_split_that_leaves_no_real_face_is_refused() -> None:
    faces = make_faces(4, 40, group_size=4)  # all reals are one group
    config = dataclasses.replace(QUICK, validation_share=0.05)
    with pytest.raises(OptionError, match="no real face is left to"):
        config.split(faces)


def test_training_and_validation_share_no_group() -> None:
    faces = make_faces(40)
    train, validation = dataclasses.replace(QUICK, validation_crops=1000).split(faces)
    sides = [{faces.groups[draw.face] for draw in part.draws} for part in (train, validation)]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_packed_faces_come_back_from_their_file(tmp_path: Path) -> None:
    faces = make_faces(3, 2)
    faces.save(tmp_path / "faces.safetensors")
    again = PackedFaces.load(tmp_path / "faces.safetensors")
    assert (again.groups, again.sources) == (faces.groups, faces.sources)
    assert all(np.array_equal(again.picture_rgb(index), faces.picture_rgb(index)) for index in range(5))
    with pytest.raises(OptionError, match="no such file of packed faces"):
        PackedFaces.load(tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "faces.safetensors").read_bytes()[:500])
    with pytest.raises(OptionError, match="is damaged"):
        PackedFaces.load(tmp_path / "cut.safetensors")


def test_faces_are_found_and_what_is_unusable_is_listed(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    astronaut = media.astronaut()
    bgr = astronaut[..., ::-1]
    cv2.imwrite(str(real / "portrait.png"), bgr)
    cv2.imwrite(str(real / "tight.png"), bgr[60:190, 160:290])  # a crop already, the face up to its edges
    cv2.imwrite(str(real / "wall.png"), np.full((120, 120, 3), 90, np.uint8))
    (real / "broken.jpg").write_bytes(b"\xff\xd8\xff" + b"junk" * 20)
    media.write_video(real / "clip.mp4", [astronaut] * 6)
    faces = pack_faces(FaceFolders(real=(str(real),), frames_per_video=2))
    assert sorted(faces.sources) == ["real/clip.mp4"] * 2 + ["real/portrait.png", "real/tight.png"]
    assert faces.notes == (
        "1 of 5 files are damaged and were left out (real/broken.jpg)",
        "no face was found in 1 of 5 files (real/wall.png)",
    )
    for index in range(len(faces)):
        picture, face = faces.picture_rgb(index), faces.face(index)
        assert face.landmarks_xy is not None
        # Both eyes and the mouth lie inside the kept picture.
        assert (face.landmarks_xy >= 0).all()
        assert (face.landmarks_xy < [picture.shape[1], picture.shape[0]]).all()


def test_folders_without_a_face_are_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "wall.png"), np.full((120, 120, 3), 90, np.uint8))
    with pytest.raises(OptionError, match="no face was found in any of 1 files"):
        pack_faces(FaceFolders(real=(str(tmp_path),)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match="holds no videos and no images"):
        pack_faces(FaceFolders(real=(str(tmp_path / "empty"),)))
