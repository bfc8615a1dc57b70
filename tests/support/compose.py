"""Reads docker-compose.yml as `docker compose` would, as far as the tests need it."""

from __future__ import annotations

import re
from typing import Any

import yaml
from checkout import ROOT

COMPOSE_PATH = ROOT / "docker-compose.yml"
TOKEN = "a-token-of-the-tests"


def interpolate(text: str, variables: dict[str, str]) -> str:
    """Replace ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}``, innermost first."""

    def value(match: re.Match[str]) -> str:
        name, operator, rest = match[1], match[2], match[3]
        if name in variables:
            return variables[name]
        if operator == ":-":
            return rest
        raise KeyError(f"{name}: {rest}")

    previous = None
    while text != previous:
        text, previous = re.sub(r"\$\{(\w+)(?:(:-|:\?)([^${}]*))?\}", value, text), text
    return text


def read_compose(**variables: str) -> dict[str, Any]:
    """Return docker-compose.yml with its variables replaced; comments are not replaced in.

    What a service's environment names without a value is taken from the variables, or is not there.
    """
    text = "\n".join(
        line for line in COMPOSE_PATH.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")
    )
    data: dict[str, Any] = yaml.safe_load(interpolate(text, {"DEEPFAKE_ADMIN_TOKEN": TOKEN, **variables}))
    for service in data["services"].values():
        if "environment" in service:
            named = {
                name: variables.get(name) if value is None else value
                for name, value in service["environment"].items()
            }
            service["environment"] = {name: value for name, value in named.items() if value is not None}
    return data
