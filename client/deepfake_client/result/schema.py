"""Makes ``docs/verdict.schema.json``, the JSON Schema of results, from the dataclasses of `verdict` and `outcome`.

What types cannot say (which fields go together) is here. Run
``python -m deepfake_client.result.schema > docs/verdict.schema.json`` after a change of those classes.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from deepfake_client.result.outcome import Failure, Input
from deepfake_client.result.verdict import Label, Verdict


class _WithoutTitles(GenerateJsonSchema):
    """Pydantic's titles of fields only repeat their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def result_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of results: verdicts, and inputs that could not be analyzed."""
    kinds: TypeAdapter[Any] = TypeAdapter(Verdict | Failure | Input)
    definitions = kinds.json_schema(mode="serialization", schema_generator=_WithoutTitles)["$defs"]
    definitions["Verdict"] |= _consistency_of_verdicts()
    for name in ("Verdict", "Failure"):
        definitions[name]["properties"]["input"] = {"$ref": "#/$defs/Input"}
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": "Result of deepfake analyze",
        "description": "What `deepfake analyze` prints as JSON: one result for one input, an array for several. Of "
        "JSON lines, each is one result. `Verdict.to_dict` and `Outcome.to_dict` return one, too.",
        "anyOf": [{"$ref": "#/$defs/Result"}, {"type": "array", "items": {"$ref": "#/$defs/Result"}}],
        "$defs": {"Result": {"oneOf": [{"$ref": "#/$defs/Verdict"}, {"$ref": "#/$defs/Failure"}]}, **definitions},
    }


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


if __name__ == "__main__":
    print(json.dumps(result_schema(), indent=2, ensure_ascii=False))
