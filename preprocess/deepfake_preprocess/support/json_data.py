"""`JsonData`: the JSON form of a dataclass, written, read back and checked by the annotations of its fields.

An annotation says what a field may hold (`Bounds`, `Matching`) and how it is written (`Rounded`). Pydantic does the
work. It is imported with the first use, because importing it takes a fifth of the time that the client takes.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import threading
from collections.abc import Iterable, Mapping
from enum import Enum, StrEnum
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from annotated_types import Interval

from deepfake_preprocess.errors import DeepfakeError, OptionError

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
    from pydantic_core import CoreSchema, ErrorDetails

Bounds = Interval
"""Annotates a number that must not be below `ge` or above `le`, and must be above `gt` and below `lt`."""

_WORDS = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    bool: ("true or false", "true or false"),
    type(None): ("null", "null"),
}
"""Kinds of values, one and several."""
_BOUNDS = {"ge": "from", "gt": "above", "le": "to", "lt": "and below"}
"""`Bounds` in words that follow each other."""
_FOREIGN_TYPES: Any = {"arbitrary_types_allowed": True}
"""Arrays, which are held by what also has a JSON form."""
_parsing = threading.RLock()
_CORE_TYPES = ("int", "float", "bool", "str")
_PARTS = ("schema", "items_schema", "values_schema", "fields", "choices")
"""Keys of a Pydantic core schema that hold further ones."""
_FIRST_REPORTED = ("unexpected_keyword_argument", "invalid_key", "missing")
"""A misspelled name is the cause of a missing one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rounded:
    """Annotates a number that is written with at most that many decimals."""

    decimals: int

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        written = core_schema.plain_serializer_function_ser_schema(lambda value: round(value, self.decimals))
        return {**handler(source), "serialization": written}


@dataclasses.dataclass(frozen=True, slots=True)
class Matching:
    """Annotates text that must match a pattern, which `allowed` says in words."""

    pattern: str
    allowed: str

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.str_schema(pattern=self.pattern)


class ExplainedEnum(StrEnum):
    """An enumeration whose members are written as ``NAME = "value", "What it means."``; a schema shows both."""

    def __new__(cls, value: str, meaning: str) -> Self:  # noqa: D102
        member = str.__new__(cls, value)
        member._value_ = value
        member.__doc__ = meaning
        return member

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        values = [{"const": member.value, "description": member.__doc__} for member in cls]
        return {"description": inspect.getdoc(cls), "oneOf": values}


class JsonData:
    """Base of a dataclass with a JSON form, whose names are those of the fields.

    Tuples are lists there, nested dataclasses objects, enumerations their values; a field with the metadata
    ``{"exclude": True}`` is left out. Reading takes no other names and converts no scalars: "1" is not a number.
    Attribute docstrings become the descriptions of a schema.

    Attributes:
        json_error: what is raised for data that does not fit.
        json_properties: properties that are written after the fields.
    """

    __slots__ = ()
    __pydantic_config__: ClassVar[dict[str, Any]] = {
        **_FOREIGN_TYPES,
        "extra": "forbid",
        "use_attribute_docstrings": True,
        "json_schema_serialization_defaults_required": True,
    }
    json_error: ClassVar[type[DeepfakeError]] = OptionError
    json_properties: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        schema: Any = _exact(handler(source))
        for name in cls.json_properties:
            computed = core_schema.computed_field(name, core_schema.any_schema())
            schema["schema"].setdefault("computed_fields", []).append(computed)
        exact: CoreSchema = schema
        return exact

    def to_dict(self, *, exclude: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return plain JSON data, without the fields that `exclude` maps to True (as Pydantic's ``exclude``)."""
        kind: Any = type(self)
        data: dict[str, Any] = _adapter(kind).dump_python(self, mode="json", exclude=exclude)
        return data

    @classmethod
    def from_dict(cls, data: object, *, where: str = "") -> Self:
        """Return what `to_dict` described; `where` it came from is for messages.

        Where a field is unknown, missing or wrong, the `json_error` names it.
        """
        from pydantic import ValidationError

        kind: Any = cls
        try:
            read: Self = _adapter(kind).validate_python(data)
        except ValidationError as exc:
            raise cls.json_error(f"{where}: {_sentence(kind, exc.errors())}".removeprefix(": ")) from None
        return read

    def check_fields(self) -> None:
        """Check each field against its annotation; for the `__post_init__` of what a person may write."""
        from pydantic import ValidationError

        kind: Any = type(self)
        for name, adapter in _field_adapters(kind).items():
            try:
                adapter.validate_python(getattr(self, name), strict=True)
            except ValidationError as exc:
                found = [{**error, "loc": (name, *error["loc"])} for error in exc.errors()]
                raise self.json_error(_sentence(kind, found)) from None  # type: ignore[arg-type]


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    # Docstrings of fields are parsed, which Python 3.11 cannot do in two threads at once.
    with _parsing:
        return TypeAdapter(kind, config=None if dataclasses.is_dataclass(kind) else _FOREIGN_TYPES)


@cache
def _field_adapters(kind: Any) -> dict[str, TypeAdapter[Any]]:
    return {name: _adapter(_hints(kind)[name]) for name in _names(kind)}


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _exact(schema: Any) -> Any:
    """Return a core schema that converts lists into tuples and integers into floats, and no other values.

    Numbers without bounds are written as null where they are not finite, which JSON cannot express.
    """
    from pydantic_core import core_schema

    if isinstance(schema, list):
        return [_exact(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    exact = {key: _exact(value) if key in _PARTS else value for key, value in schema.items()}
    if schema["type"] == "float" and not schema.keys() & {*_BOUNDS, "serialization"}:
        exact["serialization"] = core_schema.plain_serializer_function_ser_schema(_finite)
    return {**exact, "strict": True} if schema["type"] in _CORE_TYPES else exact


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _sentence(kind: type, errors: Iterable[ErrorDetails]) -> str:
    """Return what was received and what is allowed, for the error that is most likely the cause."""
    error = min(errors, key=lambda item: (*_FIRST_REPORTED, item["type"]).index(item["type"]))
    loc = error["loc"]
    if error["type"] == "missing" and isinstance(loc[-1], int):
        loc = loc[:-1]  # the list is too short
    field = f"field '{_path(loc)}'" if loc else "the data"
    if error["type"] in ("unexpected_keyword_argument", "invalid_key"):
        return f"{field} is unknown; allowed: {', '.join(_names(_plain(_hint_at(kind, loc[:-1]))))}"
    if error["type"] == "missing" and loc is error["loc"]:
        return f"{field} is missing; it has no default"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    hint = _hint_at(kind, loc)
    allowed = error["msg"].removeprefix("Input should be ") if hint is None else _allowed(hint)
    return f"{field} is {error['input']!r}; allowed: {allowed}"


def _path(loc: Iterable[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def _hint_at(hint: Any, loc: Iterable[int | str]) -> Any:
    """Return the annotation of what lies at a place in the data; None where it has none of its own."""
    for part in loc:
        kind = _plain(hint)
        items = get_args(kind)
        if dataclasses.is_dataclass(kind) and part in _names(kind):
            hint = _hints(kind)[str(part)]  # type: ignore[arg-type]
        elif _is_mapping(kind) and items:
            hint = items[1]
        elif isinstance(part, int) and items:
            hint = items[part if items[1:] != (...,) and part < len(items) else 0]
        else:
            return None
    return hint


def _plain(hint: Any) -> Any:
    """Return an annotation without its notes and without None."""
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    kinds = [item for item in get_args(kind) if item is not type(None)]
    return _plain(kinds[0]) if get_origin(kind) in (Union, UnionType) and len(kinds) == 1 else kind


def _is_mapping(kind: Any) -> bool:
    kind = get_origin(kind) or kind
    return isinstance(kind, type) and issubclass(kind, Mapping)


def _names(kind: Any) -> list[str]:
    return [item.name for item in dataclasses.fields(kind)]


def _allowed(hint: Any, *, several: bool = False) -> str:
    """Say in words what an annotation allows."""
    kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    for note in notes:
        if isinstance(note, Matching):
            return note.allowed
    origin, items = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(map(repr, items))
    if origin in (Union, UnionType):
        return " or ".join(_allowed(item, several=several) for item in items)
    if origin is tuple:
        count = "" if items[1:] == (...,) else f"{len(items)} "
        return f"a list of {count}{_allowed(items[0], several=True)}"
    if dataclasses.is_dataclass(kind):
        return f"a mapping with {', '.join(_names(kind))}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(repr(item.value) for item in kind)
    if _is_mapping(kind):
        return "a mapping"
    bounds = "".join(_bounds_in_words(note) for note in notes if isinstance(note, Bounds))
    return _WORDS.get(kind, (str(kind), str(kind)))[several] + bounds


def _bounds_in_words(bounds: Bounds) -> str:
    """Return what is left, as words to follow "a number"."""
    if bounds.gt is not None and bounds.lt is not None:
        return f" strictly between {bounds.gt} and {bounds.lt}"
    given = dataclasses.asdict(bounds)
    return "".join(f" {words} {given[name]}" for name, words in _BOUNDS.items() if given[name] is not None)
