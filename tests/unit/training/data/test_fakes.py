"""Fakes made of real photographs: what changes, what does not, and that the same numbers give the same picture."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from drawn_faces import BOX, LANDMARKS, draw_face

from deepfake_preprocess.faces.detector import Face
from deepfake_training.data.fakes.appearance import AppearanceModel
from deepfake_training.data.fakes.blend import METHODS, blend
from deepfake_training.data.fakes.look import match_colors, paint
from deepfake_training.data.fakes.mesh import (
    REGIONS,
    Portrait,
    draw_region,
    fit_affine,
    fit_mesh,
    landmarks_of,
    mean_mesh,
    misfit,
    warp,
)
from deepfake_training.data.fakes.recipes import KINDS, Kind, Tools, make_fake
from deepfake_training.data.fakes.shape import ShapeModel, animate
from deepfake_training.data.fakes.upsampler import Upsampler

FACE = Face(np.array(BOX, np.float32), 1.0, np.array(LANDMARKS, np.float32))
ASTRONAUT_LANDMARKS = ((204, 114), (242, 110), (227, 139), (212, 156), (246, 152))


def portrait(seed: int = 0) -> Portrait:
    return Portrait(draw_face(np.random.default_rng(seed)), fit_mesh(FACE))


def astronaut() -> Portrait:
    # Where the five landmarks are in the photograph, read off it.
    landmarks = np.array(ASTRONAUT_LANDMARKS, np.float32) - (140, 40)
    face = Face(np.array([40, 20, 120, 150], np.float32), 1.0, landmarks)
    return Portrait(np.ascontiguousarray(skimage.data.astronaut()[40:220, 140:320]), fit_mesh(face))


def drawn_by(number: int) -> AppearanceModel:
    return AppearanceModel(portrait(seed) for seed in range(number))


def shapes() -> ShapeModel:
    """Faces that differ in how far their mouths are open, and a little in everything else."""
    rng = np.random.default_rng(7)
    near = np.exp(-((np.linalg.norm(mean_mesh() - mean_mesh()[13], axis=1, keepdims=True) / 18) ** 2))
    opened = near * np.sign(mean_mesh()[:, 1:] - mean_mesh()[13, 1])
    return ShapeModel(
        np.asarray(mean_mesh() + rng.normal(0, 0.1, (468, 2)) + rng.normal() * 4 * opened * (0, 1), dtype=np.float32)
        for _ in range(30)
    )


def test_a_face_is_drawn_from_the_first_components_of_many() -> None:
    faces, size_hw = drawn_by(40), (72, 72)
    assert len(faces) == 39
    known, inside = portrait(3), draw_region(portrait(3).mesh, "inner", size_hw) > 0.5
    apart = [
        np.abs(faces.redraw(known, known.mesh, size_hw, count).astype(int) - known.picture)[inside].mean()
        for count in (1, 12, 39)
    ]
    assert apart[0] > apart[1] > apart[2]
    assert apart[2] < 3  # all components of a face that is one of them: what is left is the way there and back
    _, covered = warp(known.picture, known.mesh, known.mesh, size_hw)
    redrawn = faces.redraw(known, known.mesh, size_hw, 1)
    assert 0.1 < covered.mean() < 0.9
    assert np.abs(redrawn.astype(int) - known.picture)[covered < 0.5].max() <= 1


def test_a_face_is_drawn_between_two() -> None:
    faces, size_hw = drawn_by(40), (72, 72)
    first, second = portrait(3), portrait(4)
    inside = draw_region(first.mesh, "inner", size_hw) > 0.5
    alone = [faces.redraw(each, first.mesh, size_hw, 39)[inside].astype(int) for each in (first, second)]
    between = faces.redraw(first, first.mesh, size_hw, 39, towards=second)[inside]
    assert np.abs(between - (alone[0] + alone[1]) / 2).mean() < 2


def test_one_face_is_too_few_to_draw_others() -> None:
    with pytest.raises(ValueError, match="at least two"):
        drawn_by(1)


@pytest.mark.parametrize("kind", ["swap", "mouth", "remade"])
def test_a_drawn_fake_differs_from_one_that_is_moved(kind: Kind) -> None:
    real, donor, faces = astronaut(), portrait(1), drawn_by(40)
    for seed in range(4):
        moved, drawn, again = (
            make_fake(kind, real, np.random.default_rng(seed), donor=donor, tools=Tools(appearance))
            for appearance in (None, faces, faces)
        )
        assert np.array_equal(drawn, again)
        assert not np.array_equal(drawn, moved)
        assert np.abs(drawn[-8:, -8:].astype(int) - real.picture[-8:, -8:]).max() <= 1


@pytest.mark.parametrize("kind", ["swap", "mouth", "remade"])
def test_what_is_remade_may_be_enlarged_by_a_network(kind: Kind) -> None:
    real, donor, upsampler = astronaut(), portrait(1), Upsampler().eval()
    changed = []
    for seed in range(8):
        plain, enlarged = (
            make_fake(kind, real, np.random.default_rng(seed), donor=donor, tools=Tools(upsampler=given))
            for given in (None, upsampler)
        )
        assert np.abs(enlarged[-8:, -8:].astype(int) - real.picture[-8:, -8:]).max() <= 1
        changed.append(not np.array_equal(plain, enlarged))
    assert any(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fake_changes_the_face_and_follows_its_random_numbers(kind: Kind) -> None:
    real, donor = astronaut(), portrait(1)
    tools = Tools(shape=shapes())
    fakes = [make_fake(kind, real, np.random.default_rng(seed), donor=donor, tools=tools) for seed in range(6)]
    assert np.array_equal(fakes[3], make_fake(kind, real, np.random.default_rng(3), donor=donor, tools=tools))
    assert all(fake.shape == real.picture.shape and fake.dtype == np.uint8 for fake in fakes)
    assert len({fake.tobytes() for fake in fakes}) == 6
    inside = draw_region(real.mesh, "lower", real.picture.shape[:2]) > 0.5
    changes = [np.abs(fake.astype(int) - real.picture)[inside].mean() for fake in fakes]
    assert min(changes) > 0.2


@pytest.mark.parametrize("kind", ["swap", "mouth", "remade"])
def test_the_surroundings_are_those_of_the_real_picture(kind: Kind) -> None:
    real = astronaut()
    for seed in range(6):
        fake = make_fake(kind, real, np.random.default_rng(seed), donor=portrait(1))
        assert np.abs(fake[-8:, -8:].astype(int) - real.picture[-8:, -8:]).max() <= 1


def test_a_swap_needs_another_person() -> None:
    with pytest.raises(ValueError, match="hand one in as `donor`"):
        make_fake("swap", portrait(), np.random.default_rng(0))


def test_a_still_is_animated_by_other_expressions() -> None:
    with pytest.raises(ValueError, match="hand a shape model in"):
        make_fake("animated", portrait(), np.random.default_rng(0))


def test_other_expressions_are_those_of_the_set() -> None:
    mesh = astronaut().mesh
    mouth, upper = [61, 291, 13, 14], [10, 9, 33, 263]
    changed = []
    for seed in range(20):
        other = shapes().other(mesh, np.random.default_rng(seed))
        assert other.shape == mesh.shape
        assert misfit(mesh, other) < 0.1
        matrix = fit_affine(other, mesh)
        changed.append(np.linalg.norm(other @ matrix[:, :2].T + matrix[:, 2] - mesh, axis=1))
    # The set's faces differ in their mouths alone.
    mean = np.mean(changed, axis=0)
    assert mean[mouth].mean() > 4 * mean[upper].mean()


def test_what_is_painted_is_flat_and_keeps_its_edges() -> None:
    picture, mesh = astronaut()
    grainy = np.clip(picture + np.random.default_rng(0).normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
    inside = draw_region(mesh, "whole", picture.shape[:2]) > 0.5
    edges = inside & (_slope(picture) > 25)
    for seed in range(12):
        painted = paint(grainy, np.random.default_rng(seed))
        assert painted.shape == picture.shape
        before, after = (_slope(each)[edges].mean() / np.median(_slope(each)[inside]) for each in (grainy, painted))
        assert after > before


def _slope(picture: np.ndarray) -> np.ndarray:
    gray = picture.astype(float).mean(axis=2)
    return np.abs(np.diff(gray, axis=1, prepend=gray[:, :1]))


def test_one_mesh_is_too_few_for_expressions() -> None:
    with pytest.raises(ValueError, match="at least two"):
        ShapeModel([mean_mesh()])


def test_a_still_moves_with_its_face_and_its_far_surroundings_stay() -> None:
    real = astronaut()
    shift = np.array([6, 3], np.float32)
    moved = animate(real.picture, real.mesh, real.mesh + shift)
    inside = draw_region(real.mesh + shift, "inner", real.picture.shape[:2]) > 0.5
    back = np.roll(real.picture, (3, 6), axis=(0, 1)).astype(int)
    assert np.abs(moved - back)[inside].mean() < 1.5
    assert np.abs(real.picture - back)[inside].mean() > 6
    assert np.abs(moved[-8:, -8:].astype(int) - real.picture[-8:, -8:]).max() <= 8


def test_the_mean_mesh_is_laid_over_the_landmarks() -> None:
    assert landmarks_of(fit_mesh(FACE)) == pytest.approx(np.array(LANDMARKS), abs=3)
    size = draw_region(fit_mesh(FACE), "whole", (72, 72)).sum()
    assert all(0.02 < draw_region(fit_mesh(FACE), region, (72, 72)).sum() / size <= 1 for region in REGIONS)
    with pytest.raises(ValueError, match="a face with landmarks"):
        fit_mesh(Face(FACE.box_xyxy, 1.0, None))


def test_faces_fit_that_differ_by_place_and_size_and_not_those_in_profile() -> None:
    mesh = mean_mesh()
    assert misfit(mesh * 2 + 5, mesh) == pytest.approx(0, abs=1e-5)
    turned = mesh * np.array([0.5, 1], np.float32)
    assert misfit(turned, mesh) > 0.09
    assert misfit(mesh * np.array([-1, 1], np.float32), mesh) == float("inf")


def test_a_face_is_moved_point_by_point() -> None:
    real = astronaut()
    shift = np.array([7, 4], np.float32)
    moved, covered = warp(real.picture, real.mesh, real.mesh + shift, real.picture.shape[:2])
    inside = covered > 0.5
    inside[:20] = inside[:, :20] = False
    back = np.roll(real.picture, (4, 7), axis=(0, 1))
    assert inside.sum() > 3000
    assert np.abs(moved.astype(int) - back)[inside].mean() < 1


def test_another_face_gets_the_targets_colors() -> None:
    real, donor = portrait(0), portrait(1)
    hull = draw_region(real.mesh, "inner", (72, 72))
    for seed in range(4):
        matched = match_colors(donor.picture, real.picture, hull, np.random.default_rng(seed))
        before, after = (
            np.abs(each[hull > 0.5].mean(axis=0) - real.picture[hull > 0.5].mean(axis=0)).sum()
            for each in (donor.picture, matched)
        )
        assert after < before / 2


@pytest.mark.parametrize("method", METHODS)
def test_each_way_of_blending_keeps_off_the_border_and_fills_the_middle(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepfake_training.data.fakes.blend.METHODS", [method] * 3)
    target, inner = np.full((96, 96, 3), 60, np.uint8), np.full((96, 96, 3), 160, np.uint8)
    inner[44:52, 44:52] = 220
    mask = np.zeros((96, 96), np.float32)
    mask[32:64, 32:64] = 1
    blended = blend(target, inner, mask, 40.0, np.random.default_rng(0))
    assert (blended[:4] == 60).all()
    contrast = int(blended[48, 48, 0]) - int(blended[38, 38, 0])
    assert contrast > 25
