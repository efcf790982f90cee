"""Pictures with names of every kind in them, and pictures that fail."""

import io

import pytest
from matplotlib.figure import Figure
from PIL import Image

from cvattn.system import figures

NAMES = [
    *("Ba$$in", "$x", "$", "a$b$c", r"\$", r"a\$b$c\\$", "_x^2{", "}{", "100%", r"\frac{", "<b>"),
    *("two\nlines", "\x1b[31m", "", " ", "猫", "🐈", "قطة", "हिन्दी", "\udcff", "a" * 300, "\x00"),
]


@pytest.mark.sweep(8)
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_is_drawn_as_it_is(name):
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_xticks([0], [figures.label(name)])
    axes.set_title(f"{figures.label(name)}\n(taken for {figures.label(name, 9)})")
    axes.plot([0], [0], label=figures.label(name))
    file = io.BytesIO()
    figures.save(figure, file)
    with Image.open(file) as picture:
        assert picture.size == (780, 520)
    # As matplotlib itself comes to what it draws.
    drawn, is_mathematics = axes.title._preprocess_math(figures.label(name, 400))
    assert not is_mathematics
    if name.isprintable():
        assert drawn == name


def test_long_names_are_cut():
    assert figures.label("a" * 9, 9) == "a" * 9
    assert figures.label("a" * 10, 9) == "a" * 8 + "…"


def test_what_goes_wrong_is_said_in_one_line(capsys):
    with figures.tolerate_failure("a.png"):
        raise ValueError("two\nlines\x1b[31m")
    assert capsys.readouterr().err == (
        "note: a.png was not drawn: ValueError: two lines\\x1b[31m\n"
    )
    with pytest.raises(KeyboardInterrupt), figures.tolerate_failure("a.png"):
        raise KeyboardInterrupt
