"""What `JsonData` writes, reads back and refuses, and the words it has for what is allowed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter

from deepfake_preprocess.errors import DeepfakeError, OptionError, SpecError
from deepfake_preprocess.support.json_data import Bounds, ExplainedEnum, JsonData, Matching, Rounded


class Mood(ExplainedEnum):
    """How it is."""

    GOOD = "good", "All is well."
    BAD = "bad", "Not all is well."


@dataclass(frozen=True, slots=True)
class Part(JsonData):
    json_properties = ("depth",)

    kind: Literal["flat", "round"] = "flat"
    layers: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        return len(self.layers)


@dataclass(frozen=True, slots=True)
class Source(JsonData):
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Thing(JsonData):
    """A thing."""

    json_error = SpecError

    name: Annotated[str, Matching("^[a-z]+$", "small letters")]
    """What it is called."""
    version: Annotated[int, Bounds(ge=1, le=9)] = 1
    threshold: Annotated[float, Bounds(gt=0, lt=1)] = 0.5
    box: tuple[Annotated[float, Bounds(ge=0), Rounded(2)], Annotated[float, Bounds(ge=0), Rounded(2)]] = (0.0, 1.0)
    part: Part = field(default_factory=Part)
    mood: Mood | None = None
    figures: dict[str, float] = field(default_factory=dict)
    picture: NDArray[np.uint8] | None = field(default=None, metadata={"exclude": True})

    def __post_init__(self) -> None:
        self.check_fields()
        if self.name == "version" and self.version == 2:
            raise SpecError("field 'version' is 2; allowed: 1, because of the name")


FULL = Thing(
    "a", box=(1.239, np.float64(2.005)), part=Part("round", ("x", "y")), mood=Mood.BAD,
    figures={"x": np.float64(0.5)}, picture=np.zeros(3, np.uint8),
)  # fmt: skip
DATA = {
    "name": "a", "version": 1, "threshold": 0.5, "box": [1.24, 2.0],
    "part": {"kind": "round", "layers": ["x", "y"], "depth": 2}, "mood": "bad", "figures": {"x": 0.5},
}  # fmt: skip


def test_the_form_is_plain_and_in_the_order_of_the_fields() -> None:
    assert json.dumps(FULL.to_dict()) == json.dumps(DATA)


def test_what_is_not_finite_is_null() -> None:
    assert Thing("a", figures={"x": float("nan"), "y": float("inf")}).to_dict()["figures"] == {"x": None, "y": None}


def test_what_was_written_is_read_back() -> None:
    back = Thing.from_dict(json.loads(json.dumps(DATA | {"part": {"kind": "round", "layers": ["x", "y"]}})))
    assert back.to_dict() == DATA
    assert back.mood is Mood.BAD
    assert back.part == FULL.part


def test_text_that_is_not_unicode_survives() -> None:
    source = Source("\udc80.mp4")
    assert Source.from_dict(json.loads(json.dumps(source.to_dict()))) == source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "A"}, "field 'name' is 'A'; allowed: small letters"),
        ({"name": "a\n"}, "field 'name' is 'a\\n'; allowed: small letters"),
        ({"version": 10}, "field 'version' is 10; allowed: a whole number from 1 to 9"),
        ({"version": "1"}, "field 'version' is '1'; allowed: a whole number from 1 to 9"),
        ({"version": 1.0}, "field 'version' is 1.0; allowed: a whole number from 1 to 9"),
        ({"version": True}, "field 'version' is True; allowed: a whole number from 1 to 9"),
        ({"threshold": 1}, "field 'threshold' is 1; allowed: a number strictly between 0 and 1"),
        ({"threshold": float("nan")}, "field 'threshold' is nan; allowed: a number strictly between 0 and 1"),
        ({"box": [1]}, "field 'box' is [1]; allowed: a list of 2 numbers from 0"),
        ({"box": [1, -2]}, "field 'box[1]' is -2; allowed: a number from 0"),
        ({"part": "flat"}, "field 'part' is 'flat'; allowed: a mapping with kind, layers"),
        ({"part": {"kind": "x"}}, "field 'part.kind' is 'x'; allowed: 'flat', 'round'"),
        ({"part": {"kin": "flat"}}, "field 'part.kin' is unknown; allowed: kind, layers"),
        ({"part": {"layers": ["a", 1]}}, "field 'part.layers[1]' is 1; allowed: text"),
        ({"mood": "so"}, "field 'mood' is 'so'; allowed: 'good', 'bad' or null"),
        ({"figures": {"x": None}}, "field 'figures.x' is None; allowed: a number"),
        ({"figures": 1}, "field 'figures' is 1; allowed: a mapping"),
        ({"name": "version", "version": 2}, "field 'version' is 2; allowed: 1, because of the name"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named_with_its_value_and_what_is_allowed(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        Thing.from_dict({"name": "a"} | change, where="thing.yaml")
    assert str(caught.value) == f"thing.yaml: {message}"


def test_a_misspelled_name_is_reported_before_what_it_leaves_out() -> None:
    with pytest.raises(SpecError, match=r"^field 'nam' is unknown; allowed: name, version, "):
        Thing.from_dict({"nam": "a"})
    with pytest.raises(SpecError, match=r"^field 'name' is missing; it has no default$"):
        Thing.from_dict({})
    with pytest.raises(OptionError, match=r"^the data is \[1\]; allowed: a mapping with kind, layers$"):
        Part.from_dict([1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 0}, "field 'version' is 0; allowed: a whole number from 1 to 9"),
        ({"part": "flat"}, "field 'part' is 'flat'; allowed: a mapping with kind, layers"),
        ({"box": (1.0, -1.0)}, r"field 'box[1]' is -1.0; allowed: a number from 0"),
    ],
    ids=str,
)
def test_what_a_program_makes_is_checked_by_the_same_annotations(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DeepfakeError) as caught:
        Thing("a", **change)
    assert str(caught.value) == message


def test_the_schema_has_bounds_patterns_and_descriptions_and_no_pictures() -> None:
    schema = TypeAdapter(Thing).json_schema(mode="serialization")
    fields = schema["properties"]
    assert set(fields) == set(schema["required"]) == set(DATA)
    assert fields["name"].items() >= {"pattern": "^[a-z]+$", "description": "What it is called."}.items()
    assert fields["version"].items() >= {"minimum": 1, "maximum": 9}.items()
    assert schema["$defs"]["Mood"] == {
        "description": "How it is.",
        "oneOf": [
            {"const": "good", "description": "All is well."},
            {"const": "bad", "description": "Not all is well."},
        ],
    }


def test_pydantic_is_imported_only_once_it_is_needed() -> None:
    code = "import sys, deepfake_client, deepfake_client.cli.main; assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
