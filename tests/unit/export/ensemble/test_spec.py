"""What an ensemble's YAML file and its meta-model may say, and the sentence for everything else."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import pytest
import yaml

from deepfake_export.ensemble.spec import EnsembleSpec
from deepfake_export.spec_file import pin_checkpoint
from deepfake_preprocess.contract.spec import Crop, ModelSpec
from deepfake_preprocess.errors import CheckpointError, SpecError

DATA = {
    "name": "both",
    "architecture": "ensemble",
    "members": [
        {"checkpoint": "a.pt", "architecture": "timm:test_efficientnet", "input_height_px": 96, "input_width_px": 96},
        {"checkpoint": "b.pt", "architecture": "timm:test_vit", "input_height_px": 64, "input_width_px": 64},
    ],
}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.pt", "b.pt"):
        Path(name).write_bytes(name.encode())
    return copy.deepcopy(DATA)


def read(data) -> EnsembleSpec:
    Path("ensemble.yaml").write_text(yaml.safe_dump(data))
    return EnsembleSpec.from_yaml("ensemble.yaml")


def test_the_whole_takes_the_size_of_the_largest_member(data):
    ensemble = read(data)
    assert ensemble.spec.input_size_wh == (96, 96)
    assert ensemble.spec.architecture == "ensemble"
    assert [member.spec.name for member in ensemble.members] == ["a", "b"]
    # What a server publishes is read back by a client, which knows nothing of members.
    assert ModelSpec.from_parameters(ensemble.spec.to_parameters()) == ensemble.spec


def test_the_hash_is_that_of_the_description_and_sees_every_change(data):
    ensemble = read(data)
    pinned = pin_checkpoint("ensemble.yaml")
    assert pinned.description == ensemble.identity()
    assert pinned.spec.checkpoint_sha256 == hashlib.sha256(ensemble.identity().encode()).hexdigest()
    assert hashlib.sha256(b"a.pt").hexdigest() in ensemble.identity()
    seen = {ensemble.identity()}
    data["members"][1]["weight"] = 2.0
    seen.add(read(data).identity())
    data["members"][1]["mean"] = [0.5, 0.5, 0.5]
    seen.add(read(data).identity())
    data["meta_model"] = {"coef": [1, 1], "intercept": 0}
    seen.add(read(data).identity())
    Path("b.pt").write_bytes(b"other weights")
    seen.add(read(data).identity())
    assert len(seen) == 5
    with pytest.raises(CheckpointError, match="is not the checkpoint of this spec"):
        pin_checkpoint("ensemble.yaml", pinned.spec)


def test_a_member_may_have_its_spec_in_a_file(data):
    spec = ModelSpec(name="b_of_its_own", architecture="timm:test_vit", crop=Crop(0.1), threshold=0.7)
    Path("b.yaml").write_text(spec.to_yaml())
    data["members"] = [{"checkpoint": "b.pt"}, {"name": "again", "checkpoint": "a.pt", "spec": "b.yaml"}]
    ensemble = read(data)
    assert [member.spec.name for member in ensemble.members] == ["b_of_its_own", "again"]
    # The members' common crop is the whole's; the threshold is not theirs to say.
    assert (ensemble.spec.crop, ensemble.spec.threshold) == (Crop(0.1), 0.5)


def broken(data, path, value):
    target = data
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["color"], 1, "field 'color' is unknown; allowed: name, architecture, members"),
        (["members"], [], r"field 'members' is \[\]; allowed: a list of at least two members"),
        (["members", 1], "b.pt", r"field 'members\[1\]' is 'b.pt'; allowed: a mapping with name, checkpoint"),
        (["members", 1, "wieght"], 1, r"field 'members\[1\].wieght' is unknown; allowed: .*weight"),
        (["members", 1, "checkpoint"], None, r"field 'members\[1\].checkpoint' is None; allowed: the path"),
        (["members", 1, "weight"], -1, r"members\[1\]: field 'weight' is -1; allowed: a number from 0"),
        (["members", 1, "architecture"], "timn:x", r"members\[1\]: field 'architecture' is 'timn:x'"),
        (["members", 1, "architecture"], "ensemble", r"field 'members\[1\].architecture' is 'ensemble'"),
        (["members", 1, "input_width_px"], 32, r"members\[1\].input_width_px' is 32 at a height of 64 px.*aspect"),
        (
            ["members", 1, "input"],
            "sound",
            r"members\[1\]: field 'input' is 'sound'; allowed: 'pixels'",
        ),
        (["members", 1, "spectrum"], {}, r"members\[1\].spectrum' is {}; allowed: nothing, unless"),
        (["members", 1, "name"], "a", r"field 'members\[1\].name' is 'a' a second time"),
        (["members", 1, "spec"], "b.yaml", r"field 'members\[1\].architecture' is given, and so is a spec file"),
        (["members", 1, "threshold"], 0.4, r"field 'members\[1\].threshold' is unknown"),
        (["meta_model"], 3, "field 'meta_model' is 3; allowed: the path of a file, or a mapping"),
        (["meta_model"], {}, "meta_model: field 'coef' is missing"),
        (
            ["meta_model"],
            {"coef": [1, 1], "intercept": 0, "features": "score"},
            "'features' is 'score'; allowed: ",
        ),
        (["threshold"], 2, "field 'threshold' is 2"),
    ],
)
def test_what_is_wrong_is_named_with_its_field(data, path, value, message):
    with pytest.raises(SpecError, match=rf"^ensemble\.yaml: .*{message}"):
        read(broken(data, path, value))


def test_members_with_different_crops_are_refused(data):
    Path("b.yaml").write_text(ModelSpec(name="b", architecture="timm:test_vit", crop=Crop(0.1)).to_yaml())
    data["members"][1] = {"checkpoint": "b.pt"}
    with pytest.raises(SpecError, match=r"'crop' of members\[1\] \(margin 0.1.*differs from that of members\[0\]"):
        read(data)


def test_a_missing_member_is_named(data):
    Path("b.pt").unlink()
    with pytest.raises(CheckpointError, match=r"field 'members\[1\] \('b'\)': b.pt: there is no such checkpoint"):
        read(data).identity()
    data["meta_model"] = "meta.yaml"
    with pytest.raises(SpecError, match=r"meta.yaml: there is no such"):
        read(data)
