"""Runs against the first one: by seed, with intervals, and as a picture."""

import sys
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import compare_runs

ROWS = [
    {"run": run, "seed": seed, "test_accuracy_views": views, "test_accuracy": "0.2"}
    | {"val_accuracy": "0.3"}
    for run, seed, views in [
        *(("ours", "0", "0.80"), ("ours", "1", "0.82"), ("ours", "2", "0.84")),
        *(("other", "2", "0.83"), ("other", "0", "0.81"), ("other", "7", "0.50")),
        ("single", "1", "0.10"),
    ]
]


def test_runs_are_compared_by_what_all_rows_have():
    assert compare_runs.metric(ROWS) == "test_accuracy_views"
    without_views = ROWS[0] | {"test_accuracy_views": ""}
    assert compare_runs.metric([*ROWS, without_views]) == "test_accuracy"
    untested = without_views | {"test_accuracy": ""}
    assert compare_runs.metric([*ROWS, untested]) == "val_accuracy"


def test_equal_seeds_are_compared():
    runs = compare_runs.by_seed(ROWS, "test_accuracy_views")
    assert runs["single"] == {1: pytest.approx(10.0)}
    assert compare_runs.differences(runs, "other") == pytest.approx([1.0, -1.0])
    table = compare_runs.table(runs, {"ours": 0.1, "other": 0.2, "single": 0.3}, title="accuracy")
    cells = [list(column.cells) for column in table.columns]
    assert cells[1] == ["3", "3", "1"]
    # 3 values with a standard deviation of 2: 4.303 * 2 / sqrt(3) = 4.968.
    assert cells[2][0] == "82.00 (77.03 to 86.97)"
    # 2 differences with one of 1.414: 12.706 * 1.414 / sqrt(2) = 12.706.
    assert cells[3] == ["", "+0.00 (-12.71 to +12.71)", "-72.00"]


def test_the_picture_is_drawn(tmp_path, monkeypatch):
    """With the interval of three seeds, without that of two."""
    rows = [row for row in ROWS if (row["run"], row["seed"]) != ("other", "7")]
    drawn = []

    def errorbar(axes: Axes, x: float, y: float, *, xerr: float, **style: object) -> None:
        drawn.append((round(x, 3), y, round(xerr, 3)))

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    compare_runs.draw(
        compare_runs.by_seed(rows, "test_accuracy_views"),
        tmp_path / "runs.png",
        label="accuracy on digits",
    )
    with Image.open(tmp_path / "runs.png") as picture:
        assert picture.size[0] > 500
    assert drawn == [(82.0, 0, 4.968), (82.0, 1, 0.0)]
