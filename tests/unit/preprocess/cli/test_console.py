"""Where commands print results for people."""

from __future__ import annotations

import io

from rich.table import Table

from deepfake_preprocess.cli.console import results_console

LONG = "a-model-whose-name-is-longer-than-any-terminal-is-wide-" * 3


def listed(*rows: tuple[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for row in rows:
        table.add_row(*row)
    return table


def test_what_goes_into_a_pipe_has_whole_lines_without_padding(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    results_console().print(listed(("name", LONG), ("version", "1")))
    assert capsys.readouterr().out == f"name     {LONG}\nversion  1\n"


def test_blanks_that_are_printed_within_a_line_stay(capsys):
    screen = results_console()
    screen.print("two: ", end="")
    screen.print("2")
    assert capsys.readouterr().out == "two: 2\n"


def test_a_terminal_gets_its_own_width(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any stream for a terminal then
    monkeypatch.setenv("COLUMNS", "40")
    results_console().print(listed(("name", LONG)))
    assert LONG not in terminal.getvalue()
    assert all(len(line) <= 40 for line in terminal.getvalue().splitlines())
