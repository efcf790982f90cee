"""Names of the user's: shown as they are, and never a command to a terminal or a spreadsheet."""

import pytest

from cvattn.system import csv_cell, printable

PLAIN = ["cat", "naïve café", "猫", "кошка", "قطة", "🐈‍⬛", "a\\b $x$ {y} %s <b> [red]", "ー", "é"]


@pytest.mark.parametrize("name", PLAIN)
def test_letters_and_signs_stay(name):
    assert printable(name) == name


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x9b31m", r"\x9b31m"),
        ("two\nlines\r", r"two\nlines\r"),
        ("a\tb\x00\x07\x7f", r"a\tb\x00\x07\x7f"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u2028", r"\u2028"),
        ("\udcff.png", r"\udcff.png"),
    ],
)
def test_what_steers_a_terminal_is_written_out(name, want):
    assert printable(name) == want
    printable(name).encode()


def test_a_message_keeps_its_lines():
    assert printable("a\n\tb\x1b]0;title\x07", lines=True) == "a\n\tb\\x1b]0;title\\x07"


@pytest.mark.parametrize(
    "name", ["=cmd|'/C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1"]
)
def test_a_formula_is_text_in_a_spreadsheet(name):
    assert csv_cell(name) == f"'{name}"


@pytest.mark.parametrize("name", PLAIN)
def test_other_cells_stay(name):
    assert csv_cell(name) == name
