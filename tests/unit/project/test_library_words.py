"""The library names parameters; only the modules of the command line name options."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from checkout import ROOT

from deepfake_client.cli.option_names import OPTION_OF_PARAMETER, with_options
from deepfake_client.options import AnalyzeOptions, WatchOptions
from deepfake_client.result.words import PLAIN_NAMES, in_plain_words

PACKAGES = sorted(path.parent for path in ROOT.glob("*/deepfake_*/__init__.py"))
OPTION = re.compile(r"(?<![\w-])--[a-z]")
OF_OTHER_PROGRAMS = re.compile(r"`docker [^`]*`|pip (un)?install [^`;]*")


def texts(package: Path) -> Iterator[tuple[str, str]]:
    """Where each string of a package's library stands, and the string.

    One without a space is an argument of another program, not a sentence.
    """
    for path in sorted(package.rglob("*.py")):
        if "cli" in path.relative_to(package).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_the_library_names_no_option(package: Path) -> None:
    found = [f"{where}: {text}" for where, text in texts(package) if OPTION.search(OF_OTHER_PROGRAMS.sub("", text))]
    assert found == []


def test_the_command_line_turns_parameters_into_options() -> None:
    assert with_options("raise `timeout_s` or correct `tls.ca`") == "raise --timeout or correct --tls-ca"
    assert with_options("start one with `deepfake serve`; `max_attempts` is 0") == (
        "start one with `deepfake serve`; `max_attempts` is 0"
    )
    assert with_options("`int8_target` is 0") == "--int8-target is 0"


def test_pages_turn_parameters_into_plain_words() -> None:
    assert in_plain_words("sample more: raise `num_frames` or `fps`") == (
        "sample more: raise the number of frames or the number of frames per second"
    )
    assert in_plain_words("set `url_intake`, or run `deepfake serve`") == "set `url_intake`, or run `deepfake serve`"


def test_pages_have_plain_words_for_every_parameter_that_somebody_sets() -> None:
    named = {field.name for options in (AnalyzeOptions, WatchOptions) for field in fields(options)}
    assert named - set(PLAIN_NAMES) == {"abstain", "sampling", "source_ca", "source_proxy"}, "which no message names"


def test_every_option_in_the_table_is_one() -> None:
    declared = {
        option
        for package in PACKAGES
        for path in package.glob("cli/*.py")
        for option in re.findall(r"--[a-z-]+", path.read_text(encoding="utf-8"))
    }
    nodes = [
        node
        for package in PACKAGES
        for path in package.glob("cli/*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]
    names = [node.arg for node in nodes if isinstance(node, ast.arg)]
    names += [
        node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    parameters = {"--" + name.replace("_", "-") for name in names}
    assert set(OPTION_OF_PARAMETER.values()) <= declared | parameters
