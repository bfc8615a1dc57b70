"""The public names of `deepfake_client`: all that are needed, each importable, none paid for before its use."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from public_api import unexported_types

import deepfake_client

HEAVY = {"av", "cv2", "numpy", "onnxruntime", "grpc", "aiohttp", "tritonclient", "pydantic", "yaml", "torch"}


def test_the_stub_lists_what_it_imports_and_every_name_is_there() -> None:
    stub = ast.parse(Path(deepfake_client.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    (listed,) = (ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    assert set(listed) == set(deepfake_client.__all__)
    assert [name for name in listed if not hasattr(deepfake_client, name)] == []


def test_what_public_signatures_mention_is_exported() -> None:
    assert unexported_types(deepfake_client) == []


def errors_in(member: object) -> Iterator[str]:
    """Yield the errors that the docstrings of a member say are raised."""
    for item in (member, *(vars(member).values() if inspect.isclass(member) else ())):
        text = inspect.getdoc(item) or ""
        yield from re.findall(r"^ +(\w+Error):", text[text.rfind("Raises:") :], re.MULTILINE)


@pytest.mark.parametrize("name", deepfake_client.__all__)
def test_what_a_public_name_raises_is_exported(name: str) -> None:
    raised = set(errors_in(getattr(deepfake_client, name))) - set(vars(builtins))
    assert {error for error in raised if not hasattr(deepfake_client, error)} == set()


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'deepfake_client' has no attribute 'nothing'"):
        deepfake_client.nothing  # noqa: B018


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = f"import sys, deepfake_client; print({HEAVY} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
