"""Every command and option that the documentation names is one that there is."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import typer
from checkout import ROOT

from deepfake_client.cli import main as cli

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
PAGES += sorted(str(card.relative_to(ROOT)) for card in (ROOT / "export/deepfake_export/demo").glob("MODEL_CARD*.md"))
LINES = re.compile(r"^(?:\$ )?(deepfake [a-z][^\n]*)|`(deepfake [a-z][^`]*)`", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


@cache
def options_of(command: str) -> dict[str, set[str]]:
    """Return the options of a command, and of its sub-commands, by the words that call it."""
    root: Any = typer.main.get_command(cli.build_app(command))
    found = {}

    def add(node: Any, words: str) -> None:
        found[words] = {"--help", *(name for item in node.params for name in (*item.opts, *item.secondary_opts))}
        for name, below in getattr(node, "commands", {}).items():
            add(below, f"{words} {name}")

    add(root.commands[command], command)
    return found


def commands_in(text: str) -> list[str]:
    """Return the calls of `deepfake` in a page's blocks and lines, each without the comment behind it."""
    joined = text.replace("\\\n", " ")
    return [" ".join((block or inline).split("#")[0].split()) for block, inline in LINES.findall(joined)]


def unknown_in(line: str) -> list[str]:
    """Return what there is no such command or option for."""
    first, *rest = line.split()[1:]
    if first not in cli.COMMANDS:
        return [first]
    words = first
    known = options_of(first)
    for word in rest:
        if f"{words} {word}" not in known:
            break
        words += f" {word}"
    return [option for option in OPTION.findall(line) if option not in known[words]]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_exists(page):
    lines = commands_in((ROOT / page).read_text(encoding="utf-8"))
    assert {line: unknown for line in lines if (unknown := unknown_in(line))} == {}


def test_the_check_can_fail():
    assert commands_in("deepfake export c.pt \\\n  --tensorrt  # --no") == ["deepfake export c.pt --tensorrt"]
    assert unknown_in("deepfake repository prune m --keep 3 --dry-run") == []
    assert unknown_in("deepfake repository prune m --tensorrt 1") == ["--tensorrt"]
    assert unknown_in("deepfake analyse clip.mp4") == ["analyse"]
