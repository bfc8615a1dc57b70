"""The upsampler: what it does to a picture, its file, and where its weights come from."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from checkout import ROOT
from drawn_faces import draw_face
from safetensors.torch import load_file, save_file

from deepfake_preprocess.errors import CheckpointError
from deepfake_training.data.fakes.look import remake
from deepfake_training.data.fakes.mesh import Picture
from deepfake_training.data.fakes.upsampler import Upsampler


def tile_picture() -> Upsampler:
    """One with weights that only repeat each pixel: the channel of each color is carried to the end."""
    network = Upsampler().requires_grad_(False)
    for weight in network.parameters():
        weight.zero_()
    for color in range(3):
        for layer in (network.first, network.fuse_all[0], network.fuse_all[1], *network.unfold[::2], network.last):
            layer.weight[color, color, layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] = 1
    return network


def test_a_picture_becomes_four_times_as_large() -> None:
    picture = draw_face(np.random.default_rng(0))[:20, :12]
    enlarged = tile_picture().enlarged(np.ascontiguousarray(picture))
    assert np.array_equal(enlarged, picture.repeat(4, axis=0).repeat(4, axis=1))


def test_a_training_in_less_precision_changes_nothing() -> None:
    picture = np.ascontiguousarray(draw_face(np.random.default_rng(2))[:8, :8])
    torch.manual_seed(0)
    network = Upsampler().eval().requires_grad_(False)
    expected = network.enlarged(picture)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(network.enlarged(picture), expected)


def test_weights_are_read_from_a_file(tmp_path: Path) -> None:
    save_file(tile_picture().state_dict(), tmp_path / "upsampler.safetensors")
    picture = draw_face(np.random.default_rng(1))
    loaded = Upsampler.load(tmp_path / "upsampler.safetensors")
    assert np.array_equal(loaded.enlarged(picture), tile_picture().enlarged(picture))
    assert not any(weight.requires_grad for weight in loaded.parameters())


@pytest.mark.parametrize("content", [None, b"text", {"first.weight": torch.zeros(1)}])
def test_a_file_without_its_weights_is_refused(
    tmp_path: Path, content: bytes | dict[str, torch.Tensor] | None
) -> None:
    path = tmp_path / "upsampler.safetensors"
    if isinstance(content, dict):
        save_file(content, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"holds no weights of the upsampler; make the file with scripts/"):
        Upsampler.load(path)


def test_the_package_of_its_weights_becomes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location(
        "make_upsampler_weights", ROOT / "scripts/make_upsampler_weights.py"
    )
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    theirs = {ours: name for name, ours in script.NAMES.items()}
    wanted = Upsampler().state_dict()
    entries, data = [], b""
    for name, value in wanted.items():
        layer, kind = name.rsplit(".", 1)
        block = layer.partition(".")
        layer = theirs.get(layer) or (
            f"F_{int(block[2]) + 1}_1" if block[0] == "grow" else f"LFF_{int(block[2]) + 1}"
        )
        array = (value.permute(2, 3, 1, 0) if kind == "weight" else value).contiguous().numpy()
        entries.append({"name": f"{layer}/{'kernel' if kind == 'weight' else 'bias'}", "shape": array.shape})
        data += array.tobytes()
    files = {
        "model.json": json.dumps({"weightsManifest": [{"paths": ["a.bin", "b.bin"], "weights": entries}]}).encode(),
        "a.bin": data[:1000],
        "b.bin": data[1000:],
    }
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/models/x4/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    written = tmp_path / "upsampler.safetensors"
    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path / "package.tgz"), str(written)])
    script.main()
    read = load_file(written)
    assert read.keys() == wanted.keys()
    assert all(torch.equal(read[name], value) for name, value in wanted.items())


class Counted(Upsampler):
    """Counts the pictures that it enlarges, and their heights."""

    def __init__(self) -> None:
        super().__init__()
        self.heights: list[int] = []

    def enlarged(self, picture: Picture) -> Picture:
        self.heights.append(len(picture))
        return super().enlarged(picture)


def test_half_of_what_is_remade_is_enlarged_by_it_from_little() -> None:
    picture, face_px, counted = draw_face(np.random.default_rng(2)), 100.0, Counted()
    for seed in range(40):
        remade, again = (remake(picture, face_px, np.random.default_rng(seed), counted) for _ in range(2))
        assert np.array_equal(remade, again)
        assert remade.shape == picture.shape
        assert remade.dtype == np.uint8
    assert 2 * 12 < len(counted.heights) < 2 * 28
    assert min(counted.heights) >= 0.31 * len(picture)
    assert max(counted.heights) <= 0.73 * len(picture)
