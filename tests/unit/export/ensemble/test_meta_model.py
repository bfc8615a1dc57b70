"""Meta-models: plain numbers for an ensemble, and the command that converts scikit-learn's pickles to them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import joblib
import numpy as np
import pytest
import yaml
from checkout import ROOT
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deepfake_client.cli.main import main
from deepfake_export.ensemble.meta_model import read_meta_model
from deepfake_export.ensemble.pickled_meta_model import convert_meta_model
from deepfake_preprocess.errors import CheckpointError, OptionError, SpecError


@pytest.fixture
def trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(3)
    features = random.uniform(0, 1, (200, 3))
    labels = (features @ [2.0, 1.0, -0.5] + random.normal(0, 0.3, 200) > 1.2).astype(int)
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(features, labels), features


def probabilities(meta_model, features):
    coef, intercept = meta_model.folded()
    return 1 / (1 + np.exp(-(features @ coef + intercept)))


@pytest.mark.parametrize("form", ["yaml", "json", "inline"])
@pytest.mark.parametrize("fake_index", [0, 1])
def test_every_form_of_a_meta_model_gives_its_probabilities(trained, form, fake_index):
    pipeline, features = trained
    scaler, model = pipeline[0], pipeline[1]
    arrays = {"mean": scaler.mean_, "scale": scaler.scale_, "coef": model.coef_[0], "intercept": model.intercept_[0]}
    numbers = {key: value.tolist() for key, value in arrays.items()}
    Path("m.yaml").write_text(yaml.safe_dump(numbers))
    Path("m.json").write_text(json.dumps(numbers))
    data = numbers if form == "inline" else {"file": f"m.{form}"}
    meta_model = read_meta_model({**data, "fake_index": fake_index}, Path(), 3)
    expected = pipeline.predict_proba(features)[:, fake_index]
    np.testing.assert_allclose(probabilities(meta_model, features), expected, atol=1e-12)


@pytest.mark.parametrize("form", ["pipeline", "mapping", "two files"])
@pytest.mark.parametrize("output", ["m.yaml", "m.json"])
def test_pickles_are_converted(trained, form, output, capsys):
    pipeline, features = trained
    if form == "pipeline":
        joblib.dump(pipeline, "m.joblib")
    elif form == "mapping":
        joblib.dump({"scaler": pipeline[0], "model": pipeline[1], "auc": 0.9}, "m.joblib", compress=3)
    else:
        joblib.dump(pipeline[1], "m.joblib")
        joblib.dump(pipeline[0], "s.joblib")
    pickles = ["m.joblib", *(["s.joblib"] if form == "two files" else [])]
    with pytest.raises(SystemExit) as ended:
        main(["convert-meta-model", *pickles, output])
    assert ended.value.code == 0
    assert f"Wrote {output}: 3 members" in capsys.readouterr().out
    expected = pipeline.predict_proba(features)[:, 1]
    np.testing.assert_allclose(probabilities(read_meta_model(output, Path(), 3), features), expected, atol=1e-12)


def test_a_place_that_cannot_be_written_is_named(trained):
    joblib.dump(trained[0], "m.joblib")
    with pytest.raises(OptionError, match=r"`output` is 'm\.npz'; allowed: a name that ends in \.yaml"):
        convert_meta_model(["m.joblib"], "m.npz")
    with pytest.raises(OptionError, match=r"absent/m\.yaml cannot be written"):
        convert_meta_model(["m.joblib"], "absent/m.yaml")


class Mkdir:
    """Unpickling this runs a command."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("name", ["meta.joblib", "meta.pkl", "meta", "meta.yaml", "meta.json"])
def test_an_ensemble_never_runs_a_pickle(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    joblib.dump(Mkdir(), name)
    # One that calls itself something else is not run either.
    message = "meta.* cannot be read|not valid YAML" if name.endswith((".yaml", ".json")) else "convert-meta-model"
    with pytest.raises(SpecError, match=message):
        read_meta_model(name, Path(), 3)
    assert not Path("executed").exists()
    # The trap works: whoever converts it runs it.
    with pytest.raises(CheckpointError, match="NoneType"):
        convert_meta_model([name], "m.yaml")
    assert Path("executed").exists()


def test_what_is_not_a_logistic_regression_is_refused(trained):
    pipeline, features = trained
    labels = pipeline.predict(features)
    three_classes = LogisticRegression().fit(features, np.arange(200) % 3)
    for found, message in (
        (
            make_pipeline(PCA(2), LogisticRegression()).fit(features, labels),
            "; found PCA, LogisticRegression",
        ),
        (StandardScaler().fit(features), "found StandardScaler"),
        (LogisticRegression(), "is not trained"),
        (three_classes, "distinguishes 3 classes"),
        ({"scores": [1, 2]}, "found neither"),
    ):
        joblib.dump(found, "m.joblib")
        with pytest.raises(CheckpointError, match=message):
            convert_meta_model(["m.joblib"], "m.yaml")
    Path("m.joblib").write_bytes(b"not a pickle")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        convert_meta_model(["m.joblib"], "m.yaml")
    assert not Path("m.yaml").exists()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"coef": [1, 2]}, "'intercept' is missing"),
        ({"coef": [1, 2], "intercept": 0}, r"'coef' holds 2 number\(s\); allowed: 3, one per member"),
        ({"coef": [1, 2, float("nan")], "intercept": 0}, r"'coef\[2\]' is nan; allowed: a number from"),
        ({"coef": [1, 2, 3], "intercept": 0, "scale": [1, 0, 1]}, r"'scale\[1\]' is 0.*; allowed: a number above 0"),
        ({"coef": [1, 2, 3], "intercept": 0, "mean": [1]}, "'mean' is .*allowed: a list of 3 numbers"),
        ({"coef": ["x", 2, 3], "intercept": 0}, r"'coef\[0\]' is 'x'; allowed: a number"),
        ({"coef": [1, 2, 3], "intercept": 0, "bias": 1}, "'bias' is unknown; allowed: coef, intercept, mean"),
    ],
)
def test_wrong_numbers_are_named(tmp_path, numbers, message):
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(numbers))
    with pytest.raises(SpecError, match=f"^meta_model: .*{message}"):
        read_meta_model(numbers, tmp_path, 3)
    with pytest.raises(SpecError, match=f"m.yaml: .*{message}"):
        read_meta_model("m.yaml", tmp_path, 3)


def test_the_pages_way_to_write_a_meta_model_without_a_pickle_works(trained):
    pipeline, features = trained
    page = (ROOT / "docs/model-spec.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    namespace: dict = {}
    exec(block, namespace)
    namespace["save_meta_model"](pipeline, "m.yaml")
    meta_model = read_meta_model("m.yaml", Path(), 3)
    np.testing.assert_allclose(
        probabilities(meta_model, features), pipeline.predict_proba(features)[:, 1], atol=1e-12
    )
