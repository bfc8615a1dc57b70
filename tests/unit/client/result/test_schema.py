"""The published JSON Schema says what results look like, and results can be read back."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jsonschema
import pytest
from checkout import ROOT
from verdicts import inconclusive, verdict

from deepfake_client.result.outcome import Outcome
from deepfake_client.result.schema import result_schema
from deepfake_client.result.verdict import Label, Reason, Verdict
from deepfake_preprocess.errors import MediaNotFoundError, ServerBusyError

SCHEMA_PATH = ROOT / "docs" / "verdict.schema.json"
SCHEMA = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

IMAGE = dataclasses.replace(verdict(score=0.2, num_frames=2), frames=verdict().frames[:1], corrupt_packets=0)
VERDICTS = [verdict(), verdict(score=0.1), IMAGE, *(inconclusive(reason=reason) for reason in Reason)]


def as_json(data: Any) -> Any:
    return json.loads(json.dumps(data, allow_nan=False))


def test_the_published_schema_is_that_of_the_code() -> None:
    assert result_schema() == SCHEMA, "run: python -m deepfake_client.result.schema > docs/verdict.schema.json"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("item", VERDICTS, ids=lambda item: str(item.reason or item.label))
def test_every_kind_of_verdict_validates_and_is_read_back(item: Verdict) -> None:
    data = as_json(item.to_dict())
    VALIDATOR.validate(data)
    VALIDATOR.validate([data, data])
    assert Verdict.from_dict(data).to_dict() == item.to_dict()
    assert set(data) == set(SCHEMA["$defs"]["Verdict"]["required"])


@pytest.mark.parametrize("error", [MediaNotFoundError("there is no file 'x'"), ServerBusyError("its queue is full")])
def test_an_error_validates_and_is_read_back(error: MediaNotFoundError | ServerBusyError) -> None:
    data = as_json(Outcome("x", error=error).to_dict())
    VALIDATOR.validate(data)
    back = Outcome.from_dict(data)
    assert (back.source, type(back.error), str(back.error)) == ("x", type(error), str(error))


@pytest.mark.parametrize(
    "change",
    [
        {"label": "MAYBE"},
        {"label": "INCONCLUSIVE"},
        {"fake_probability": 1.5},
        {"fake_probability": None},
        {"reason": "no_face"},
        {"threshold": 0},
        {"source": None},
        {"surprise": 1},
        {"frames": [{"index": 0}]},
        {"model": {"name": "m", "version": 1, "checkpoint_sha256": "abc"}},
    ],
    ids=str,
)
def test_anything_else_is_refused(change: dict[str, Any]) -> None:
    data = as_json(verdict().to_dict())
    assert not VALIDATOR.is_valid(data | change)
    for name in data:
        assert not VALIDATOR.is_valid({key: value for key, value in data.items() if key != name})


def test_every_field_has_a_description_or_a_type_of_that_name() -> None:
    for name, definition in SCHEMA["$defs"].items():
        if name != "Result":
            assert definition["description"], name
    for field, described in SCHEMA["$defs"]["Verdict"]["properties"].items():
        assert "description" in described or "$ref" in described, field
    values = {item["const"]: item["description"] for item in SCHEMA["$defs"]["Reason"]["oneOf"]}
    assert set(values) == set(Reason)
    assert {item["const"] for item in SCHEMA["$defs"]["Label"]["oneOf"]} == set(Label)


@pytest.mark.parametrize("data", [{}, {"source": "x"}, {"source": "x", "error": {}}, {"error": 3}, {"source": 1}])
def test_what_is_no_result_is_refused_when_read(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not the result of an analysis"):
        Outcome.from_dict(data)
