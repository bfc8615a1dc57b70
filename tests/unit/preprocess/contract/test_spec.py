"""The model contract: what it accepts, what it refuses and how, and its three written forms."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_preprocess.contract.spec import Crop, Head, ModelSpec
from deepfake_preprocess.errors import SpecError

SPEC = ModelSpec(
    name="swap_b4",
    architecture="timm:efficientnet_b4",
    version=3,
    head=Head("softmax", 0),
    input_height_px=380,
    input_width_px=320,
    color_order="BGR",
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.3),
    crop=Crop(margin=0.15, align="eyes"),
    threshold=0.37,
    temperature=1.7,
    checkpoint_sha256="0123456789abcdef" * 4,
    training_data='DFDC part 0–9, "full"; é',
    caution="Not for courts.",
)


def test_parameters_carry_every_field() -> None:
    assert ModelSpec.from_parameters(SPEC.to_parameters() | {"foreign": "x"}) == SPEC


def test_yaml_carries_every_field(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.to_yaml(), encoding="utf-8")
    assert ModelSpec.from_yaml(path) == SPEC


@given(
    margin=st.floats(0, 2),
    threshold=st.floats(1e-6, 1 - 1e-6),
    mean=st.tuples(*[st.floats(-1, 1)] * 3),
    text=st.text(max_size=40),
)
def test_numbers_and_text_survive_the_way_through_the_server(
    margin: float, threshold: float, mean: tuple[float, float, float], text: str
) -> None:
    spec = ModelSpec(
        name="m", architecture="torchscript", crop=Crop(margin), threshold=threshold, mean=mean, training_data=text
    )
    assert ModelSpec.from_parameters(spec.to_parameters()) == spec


def test_a_temperature_is_published_only_by_models_that_were_calibrated() -> None:
    assert SPEC.to_parameters()["deepfake.temperature"] == "1.7"
    assert "deepfake.temperature" not in ModelSpec("m", "torchscript").to_parameters()


@pytest.mark.parametrize(
    ("change", "field", "allowed"),
    [
        ({"name": "a b"}, "name", "letters"),
        ({"temperature": 0}, "temperature", "0.01 to 100"),
        ({"architecture": "resnet50"}, "architecture", "timm:NAME"),
        ({"architecture": "torchscript:x"}, "architecture", "torchscript"),
        ({"architecture": "python:pkg"}, "architecture", "python:package.module:factory"),
        ({"version": 0}, "version", "from 1"),
        ({"version": True}, "version", "whole number"),
        ({"input_height_px": 8}, "input_height_px", "from 16 to 1024"),
        ({"input_width_px": 224.0}, "input_width_px", "whole number"),
        ({"color_order": "rgb"}, "color_order", "'RGB', 'BGR'"),
        ({"mean": [0.5]}, "mean", "a list of 3 numbers"),
        ({"std": [0.2, 0, 0.2]}, "std[1]", "from 1e-06"),
        ({"head": {"kind": "tanh"}}, "head.kind", "'sigmoid', 'softmax'"),
        ({"head": {"fake_index": 2}}, "head.fake_index", "0, 1"),
        ({"head": {"classes": 2}}, "head.classes", "kind, fake_index"),
        ({"head": "sigmoid"}, "head", "a mapping"),
        ({"crop": {"margin": -0.1}}, "crop.margin", "from 0 to 2"),
        ({"crop": {"align": "nose"}}, "crop.align", "'none', 'eyes'"),
        ({"threshold": 1.0}, "threshold", "strictly between 0 and 1"),
        ({"threshold": float("nan")}, "threshold", "strictly between 0 and 1"),
        ({"checkpoint_sha256": "abc"}, "checkpoint_sha256", "64"),
        ({"training_data": 5}, "training_data", "text"),
        ({"treshold": 0.5}, "treshold", "threshold"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_what_is_allowed(
    change: dict[str, object], field: str, allowed: str
) -> None:
    data = {"name": "m", "architecture": "timm:efficientnet_b0"} | change
    with pytest.raises(SpecError) as caught:
        ModelSpec.from_dict(data, where="m.yaml")
    message = str(caught.value)
    assert message.startswith("m.yaml: field ")
    assert f"'{field}'" in message
    assert allowed in message


@pytest.mark.parametrize("missing", ["name", "architecture"])
def test_a_missing_field_is_named(missing: str) -> None:
    data = {"name": "m", "architecture": "timm:efficientnet_b0"}
    del data[missing]
    with pytest.raises(SpecError, match=f"field '{missing}' is missing"):
        ModelSpec.from_dict(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"- 1\n- 2\n", "must be a YAML mapping"), (b"a: [", "not valid YAML"), (b"\xff\xfe\x00", "cannot be read")],
)
def test_a_file_that_is_no_spec_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=message):
        ModelSpec.from_yaml(path)


def test_a_missing_spec_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml: there is no such spec file"):
        ModelSpec.from_yaml(tmp_path / "none.yaml")


def test_another_contract_version_is_refused() -> None:
    parameters = SPEC.to_parameters() | {"deepfake.contract_version": "99"}
    with pytest.raises(SpecError, match="contract_version' is '99'"):
        ModelSpec.from_parameters(parameters)
    with pytest.raises(SpecError, match="contract_version' is None"):
        ModelSpec.from_parameters({"threshold": "0.5"})


def test_a_parameter_that_is_no_value_is_refused() -> None:
    with pytest.raises(SpecError, match="field 'threshold' is 'half'"):
        ModelSpec.from_parameters(SPEC.to_parameters() | {"deepfake.threshold": "half"})
