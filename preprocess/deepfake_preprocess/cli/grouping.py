"""How commands share options: a parameter that is a `Group` stands for the options of that group.

A group is a function or a dataclass: its parameters are the options, or groups again, and what it returns is the one
object that a command gets::

    @with_groups
    def models(connection: Annotated[Connection, Group(connect_options, "Server")]) -> None: ...
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

import typer


@dataclass(frozen=True, slots=True)
class Group:
    """Marks a command's parameter as a group of options, the parameters of `build`, under a heading in its help."""

    build: Callable[..., Any]
    panel: str

    def options(self) -> list[inspect.Parameter]:
        """Return the options as parameters of a command."""
        return [
            parameter.replace(
                annotation=_under(self.panel, parameter.annotation), kind=inspect.Parameter.KEYWORD_ONLY
            )
            for parameter in inspect.signature(self.build, eval_str=True).parameters.values()
        ]


def with_groups(command: Callable[..., Any]) -> Callable[..., Any]:
    """Replace each parameter of a command that is a group by the options of that group."""
    signature = inspect.signature(command, eval_str=True)
    groups = {name: group for name, parameter in signature.parameters.items() if (group := _group_of(parameter))}
    options = {name: group.options() for name, group in groups.items()}

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        built = {
            name: group.build(**{option.name: given.pop(option.name) for option in options[name]})
            for name, group in groups.items()
        }
        return command(**given, **built)

    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in signature.parameters.items()
        if name not in groups
    ]
    parameters = [*own, *(option for found in options.values() for option in found)]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _group_of(parameter: inspect.Parameter) -> Group | None:
    marks = get_args(parameter.annotation)[1:] if get_origin(parameter.annotation) is Annotated else ()
    return next((mark for mark in marks if isinstance(mark, Group)), None)


def _under(panel: str, annotation: Any) -> Any:
    """Return the annotation of an option with `panel` as its heading, unless it has one."""
    if annotation is typer.Context:
        return annotation
    kind, option = get_args(annotation)
    option = copy.copy(option)
    option.rich_help_panel = option.rich_help_panel or panel
    return Annotated[kind, option]
