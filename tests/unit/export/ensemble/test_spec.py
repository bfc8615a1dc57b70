"""What an ensemble's YAML file and its meta-model may say, and the sentence for everything else."""

from __future__ import annotations

import copy
import hashlib
import os
import re
from pathlib import Path

import joblib
import numpy as np
import pytest
import yaml
from checkout import ROOT
from safetensors.numpy import save_file
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deepfake_export.checkpoint.file import pin_checkpoint
from deepfake_export.ensemble.meta_model import load_meta_model
from deepfake_export.ensemble.spec import EnsembleSpec, MetaModel, read_spec
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
    assert read_spec("ensemble.yaml") == ensemble.spec
    # What a server publishes is read back by a client, which knows nothing of members.
    assert ModelSpec.from_parameters(ensemble.spec.to_parameters()) == ensemble.spec


def test_the_hash_is_that_of_the_description_and_sees_every_change(data):
    ensemble = read(data)
    pinned = pin_checkpoint("ensemble.yaml", ensemble.spec)
    assert pinned.checkpoint_sha256 == hashlib.sha256(ensemble.identity().encode()).hexdigest()
    assert hashlib.sha256(b"a.pt").hexdigest() in ensemble.identity()
    seen = {pinned.checkpoint_sha256}
    data["members"][1]["weight"] = 2.0
    seen.add(read(data).identity_sha256())
    data["members"][1]["mean"] = [0.5, 0.5, 0.5]
    seen.add(read(data).identity_sha256())
    data["meta_model"] = {"coef": [1, 1], "intercept": 0}
    seen.add(read(data).identity_sha256())
    Path("b.pt").write_bytes(b"other weights")
    seen.add(read(data).identity_sha256())
    assert len(seen) == 5
    with pytest.raises(CheckpointError, match="is not the checkpoint of this spec"):
        pin_checkpoint("ensemble.yaml", pinned)


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
        (["colour"], 1, "field 'colour' is unknown; allowed: name, architecture, members"),
        (["members"], [], r"field 'members' is \[\]; allowed: a list of at least two members"),
        (["members", 1], "b.pt", r"field 'members\[1\]' is 'b.pt'; allowed: a mapping with name, checkpoint"),
        (["members", 1, "wieght"], 1, r"field 'members\[1\].wieght' is unknown; allowed: .*weight"),
        (["members", 1, "checkpoint"], None, r"field 'members\[1\].checkpoint' is None; allowed: the path"),
        (["members", 1, "weight"], -1, r"field 'members\[1\].weight' is -1; allowed: a number from 0"),
        (["members", 1, "architecture"], "timn:x", r"members\[1\]: field 'architecture' is 'timn:x'"),
        (["members", 1, "architecture"], "ensemble", r"field 'members\[1\].architecture' is 'ensemble'"),
        (["members", 1, "input_width_px"], 32, r"members\[1\].input_width_px' is 32 at a height of 64 px.*aspect"),
        (["members", 1, "input"], "sound", r"field 'members\[1\].input' is 'sound'; allowed: pixels or log_spectrum"),
        (["members", 1, "spectrum"], {}, r"members\[1\].spectrum' is {}; allowed: nothing, unless"),
        (["members", 1, "name"], "a", r"field 'members\[1\].name' is 'a' a second time"),
        (["members", 1, "spec"], "b.yaml", r"field 'members\[1\].architecture' is given, and so is a spec file"),
        (["members", 1, "threshold"], 0.4, r"field 'members\[1\].threshold' is unknown"),
        (["meta_model"], 3, "field 'meta_model' is 3; allowed: the path of a file, or a mapping"),
        (["meta_model"], {}, "field 'meta_model' needs either a 'file'"),
        (["meta_model"], {"file": "m", "features": "score"}, "meta_model.features' is 'score'; allowed: probability"),
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
    data["meta_model"] = "meta.joblib"
    Path("b.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"'meta_model': meta.joblib: there is no such"):
        read(data).identity()


# --- meta-model -----------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(3)
    features = random.uniform(0, 1, (200, 3))
    labels = (features @ [2.0, 1.0, -0.5] + random.normal(0, 0.3, 200) > 1.2).astype(int)
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(features, labels), features


def probabilities(weights, features):
    coef, intercept = weights.folded()
    return 1 / (1 + np.exp(-(features @ coef + intercept)))


@pytest.mark.parametrize("form", ["pipeline", "mapping", "two files", "yaml", "json", "safetensors"])
@pytest.mark.parametrize("fake_index", [0, 1])
def test_every_form_of_a_meta_model_gives_its_probabilities(trained, form, fake_index):
    pipeline, features = trained
    scaler, model = pipeline[0], pipeline[1]
    meta = MetaModel(file=Path("m.joblib"), fake_index=fake_index)
    numbers = {"mean": scaler.mean_, "scale": scaler.scale_, "coef": model.coef_[0], "intercept": model.intercept_}
    if form == "pipeline":
        joblib.dump(pipeline, "m.joblib")
    elif form == "mapping":
        joblib.dump({"scaler": scaler, "model": model, "auc": 0.9}, "m.joblib", compress=3)
    elif form == "two files":
        joblib.dump(model, "m.joblib")
        joblib.dump(scaler, "s.joblib")
        meta = MetaModel(file=Path("m.joblib"), scaler=Path("s.joblib"), fake_index=fake_index)
    else:
        meta = MetaModel(file=Path(f"m.{form}"), fake_index=fake_index)
        if form == "safetensors":
            save_file(numbers, meta.file)
        else:
            meta.file.write_text(yaml.safe_dump({key: value.tolist() for key, value in numbers.items()}))
    weights = load_meta_model(meta, 3, trust_pickle=form in ("pipeline", "mapping", "two files"))
    expected = pipeline.predict_proba(features)[:, fake_index]
    np.testing.assert_allclose(probabilities(weights, features), expected, atol=1e-12)


class Mkdir:
    """Unpickling this runs a command."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("name", ["meta.joblib", "meta.pkl", "meta"])
def test_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    joblib.dump(Mkdir(), name)
    with pytest.raises(CheckpointError, match=r"is refused, because it is a pickle.*--trust-pickle"):
        load_meta_model(MetaModel(file=Path(name)), 3)
    assert not Path("executed").exists()
    # A pickle that calls itself something else is not run either.
    for suffix in (".yaml", ".json", ".safetensors"):
        Path(name).rename(f"disguised{suffix}")
        with pytest.raises((SpecError, CheckpointError), match="disguised"):
            load_meta_model(MetaModel(file=Path(f"disguised{suffix}")), 3, trust_pickle=True)
        Path(f"disguised{suffix}").rename(name)
    assert not Path("executed").exists()
    # The trap works: whoever trusts it runs it.
    with pytest.raises(CheckpointError, match="NoneType"):
        load_meta_model(MetaModel(file=Path(name)), 3, trust_pickle=True)
    assert Path("executed").exists()


def test_what_is_no_logistic_regression_is_refused(trained):
    pipeline, features = trained
    labels = pipeline.predict(features)
    three_classes = LogisticRegression().fit(features, np.arange(200) % 3)
    for found, message in (
        (make_pipeline(PCA(2), LogisticRegression()).fit(features, labels), "holds a PCA, and a meta-model is"),
        (StandardScaler().fit(features), "found 0 LogisticRegression"),
        (LogisticRegression(), "is not trained"),
        (three_classes, "tells 3 classes apart"),
        ({"scores": [1, 2]}, "found 0 LogisticRegression"),
    ):
        joblib.dump(found, "m.joblib")
        with pytest.raises(CheckpointError, match=message):
            load_meta_model(MetaModel(file=Path("m.joblib")), 3, trust_pickle=True)
    Path("m.joblib").write_bytes(b"not a pickle")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_meta_model(MetaModel(file=Path("m.joblib")), 3, trust_pickle=True)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"coef": [1, 2]}, "'intercept' is missing"),
        ({"coef": [1, 2], "intercept": 0}, r"'coef' holds 2 number\(s\); allowed: 3, one per member"),
        ({"coef": [1, 2, float("nan")], "intercept": 0}, "allowed: finite numbers"),
        ({"coef": [1, 2, 3], "intercept": 0, "scale": [1, 0, 1]}, "field 'scale' is .*allowed: numbers above 0"),
        ({"coef": ["x", 2, 3], "intercept": 0}, r"field 'coef' is .*allowed: 3 number\(s\)"),
    ],
)
def test_wrong_numbers_are_named(weights, message):
    with pytest.raises(SpecError, match=message):
        load_meta_model(MetaModel(weights=weights), 3)


def test_the_pages_way_to_write_a_meta_model_without_a_pickle_works(trained):
    pipeline, features = trained
    page = (ROOT / "docs/model-spec.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    namespace: dict = {}
    exec(block, namespace)
    namespace["save_meta_model"](pipeline, "m.yaml")
    weights = load_meta_model(MetaModel(file=Path("m.yaml")), 3)
    np.testing.assert_allclose(probabilities(weights, features), pipeline.predict_proba(features)[:, 1], atol=1e-12)
