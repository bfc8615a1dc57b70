"""Text of others in tables."""

import pytest

from deepfake_preprocess.support.text import table_cell


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_a_spreadsheet_finds_no_formula(first):
    cell = table_cell(f"{first}HYPERLINK(1)")
    assert cell.startswith("'")
    assert cell.endswith("HYPERLINK(1)")
    assert "\n" not in cell


def test_numbers_and_other_text_stay():
    assert [table_cell(value) for value in (-1.5, None, "a=b", "")] == [-1.5, None, "a=b", ""]
