"""Makes ``docs/verdict.schema.json``, the JSON Schema of results, from the dataclasses of `verdict`.

Names, types and descriptions are those of the classes; what types cannot say (ranges, which fields go together)
is here. Run ``python -m deepfake_client.result.schema > docs/verdict.schema.json`` after a change of `verdict`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from deepfake_client.result.verdict import Label, Verdict
from deepfake_client.result.verdict_json import json_key

DRAFT = "https://json-schema.org/draft/2020-12/schema"

_SHARE = {"minimum": 0, "maximum": 1}
_COUNT = {"minimum": 0}
_RANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("fake_probability", "detection_confidence", "weight", "low", "high", "agreeing_share"), _SHARE),
    **dict.fromkeys(
        ("track", "deciding_track", "index", "longest_run", "corrupt_packets", "frames_saved", "frames_dropped"),
        _COUNT,
    ),
    **dict.fromkeys(("decode_s", "detect_s", "crop_s", "infer_s", "aggregate_s", "total_s"), _COUNT),
    "threshold": {"exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "score_variance": {"minimum": 0, "maximum": 0.25},
    "num_frames": {"minimum": 1},
    "version": {"minimum": 1},
    "checkpoint_sha256": {"pattern": "^[0-9a-f]{64}$"},
}
"""By field name, as it means the same in every class."""
_TYPES = {float: "number", int: "integer", str: "string", bool: "boolean"}


def result_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of results: verdicts, and inputs that could not be analyzed."""
    definitions: dict[str, Any] = {}
    _describe(Verdict, definitions)
    definitions["Verdict"] |= _consistency_of_verdicts()
    definitions["Failure"] = _object(
        "An input that could not be analyzed, among several that were asked for.",
        {
            "source": _described("string", "What was to be analyzed (path or name)."),
            "error": _object(
                "Why there is no verdict.",
                {
                    "type": _described("string", "Class of the error, from `deepfake_preprocess.errors`."),
                    "message": _described("string", "One sentence: what was received and what to do."),
                },
            ),
        },
    )
    definitions["Input"] = _input_schema()
    for name in ("Verdict", "Failure"):
        definitions[name]["properties"]["input"] = {"$ref": "#/$defs/Input"}
    return {
        "$schema": DRAFT,
        "title": "Result of deepfake analyze",
        "description": "What `deepfake analyze --json` prints: one result for one input, an array for several. A "
        "line of `--jsonl` is one result. `Verdict.to_dict` and `Outcome.to_dict` return one, too.",
        "anyOf": [{"$ref": "#/$defs/Result"}, {"type": "array", "items": {"$ref": "#/$defs/Result"}}],
        "$defs": {"Result": {"oneOf": [{"$ref": "#/$defs/Verdict"}, {"$ref": "#/$defs/Failure"}]}, **definitions},
    }


def _describe(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a type; those with a name are put into `definitions` and referred to."""
    if get_origin(kind) in (Union, types.UnionType):
        (inner,) = (item for item in get_args(kind) if item is not type(None))
        return {"anyOf": [_describe(inner, definitions), {"type": "null"}]}
    if get_origin(kind) is tuple:
        items = get_args(kind)
        if items[1:] == (...,):
            return {"type": "array", "items": _describe(items[0], definitions)}
        prefix = [_describe(item, definitions) for item in items]
        return {"type": "array", "prefixItems": prefix, "items": False, "minItems": len(items)}
    if kind in _TYPES:
        return {"type": _TYPES[kind]}
    name = kind.__name__
    if name not in definitions:
        definitions[name] = {}
        definitions[name] = _enum_schema(kind) if issubclass(kind, Enum) else _dataclass_schema(kind, definitions)
    return {"$ref": f"#/$defs/{name}"}


def _dataclass_schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hints, notes = get_type_hints(kind), _attribute_notes(kind)
    properties = {}
    for field in dataclasses.fields(kind):
        schema = _describe(hints[field.name], definitions)
        ranged = schema["anyOf"][0] if "anyOf" in schema else schema
        ranged |= _RANGES.get(field.name, {})
        if field.name in notes:
            schema["description"] = notes[field.name]
        properties[json_key(kind, field.name)] = schema
    return _object(_summary(kind), properties)


def _enum_schema(kind: type[Enum]) -> dict[str, Any]:
    # The sentence below each member is its description; Python keeps it in the source only.
    notes = dict(re.findall(r'^    (\w+) = .*\n    """(.*)"""', inspect.getsource(kind), re.MULTILINE))
    values = [
        {"const": item.value, **({"description": notes[item.name]} if item.name in notes else {})} for item in kind
    ]
    return {"description": _summary(kind), "oneOf": values}


def _summary(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def _attribute_notes(kind: type) -> dict[str, str]:
    """Return the notes of a Google-style ``Attributes:`` section by field."""
    _, _, section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    notes = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: _sentence(text) for name, text in notes}


def _sentence(note: str) -> str:
    """Return a note of a docstring as a sentence about JSON."""
    text = re.sub(r"\bNone\b", "null", " ".join(note.split()))
    return text[0].upper() + text[1:]


def _consistency_of_verdicts() -> dict[str, Any]:
    empty, number = {"type": "null"}, {"type": "number"}
    decided = {"fake_probability": number, "interval": {"type": "object"}, "deciding_track": number, "reason": empty}
    undecided = {
        "fake_probability": empty, "interval": empty, "deciding_track": empty, "reason": {"type": "string"}
    }  # fmt: skip
    return {
        "if": {"properties": {"label": {"const": Label.INCONCLUSIVE.value}}},
        "then": {"properties": undecided},
        "else": {"properties": decided},
    }


def _input_schema() -> dict[str, Any]:
    settings = {"description": "Options of the analysis that decide its result.", "type": "object"}
    return _object(
        "In the files of `--output` and `--report` only: what must be unchanged for `--resume` to use the result.",
        {
            "size_bytes": _described("integer", "Size of the file."),
            "modified_ns": _described("integer", "Time of its last change, in nanoseconds since 1970."),
            "settings": settings,
        },
    )


def _object(description: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": description,
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _described(kind: str, description: str) -> dict[str, Any]:
    return {"type": kind, "description": description}


if __name__ == "__main__":
    print(json.dumps(result_schema(), indent=2, ensure_ascii=False))
