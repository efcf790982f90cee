"""``benchmarks/quality_ladder.py``: a row for each rung, and other rows stay."""

import csv
import sys
from functools import partial
from pathlib import Path

import pytest
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import quality_ladder  # noqa: E402

from cvattn.quality import FeatureNetwork, Reference  # noqa: E402


class Coarse(FeatureNetwork):
    name, weights, size, num_features = "coarse", "none", 3, 9

    def forward(self, images):
        return F.adaptive_avg_pool2d(images[:, :1] / 255, 3).flatten(1)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The script on digits, with features that cost nothing; the rows of its file."""
    monkeypatch.setattr(quality_ladder, "Reference", partial(Reference, network=Coarse()))

    def run(*arguments):
        words = ["quality_ladder.py", "--data", "digits", "--draws", "2", "--count", "7"]
        monkeypatch.setattr(sys, "argv", [*words, "-o", str(tmp_path / "out.csv"), *arguments])
        quality_ladder.main()
        with (tmp_path / "out.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    return run


def test_rows_say_what_they_were_made_with(run, tmp_path, capsys):
    rows = run()
    assert len(rows) == 18
    assert [row["distance"] for row in rows] == ["FD-coarse", "KD-coarse"] * 9
    assert (rows[0]["rung"], rows[-1]["rung"]) == ("training images", "one image only")
    for row in rows:
        assert (row["count"], row["reference_count"], row["reference"]) == ("7", "7", "test")
        assert (row["weights"], row["size"], row["data"], row["draws"]) == (
            "none",
            "3",
            "digits",
            "2",
        )
        assert row["commit"]
        assert row["cpu"]
        assert row["fingerprint"]
        values = [float(value) for value in row["values"].split()]
        assert sum(values) / 2 == pytest.approx(float(row["mean"]), rel=1e-4, abs=1e-9)
        assert (min(values), max(values)) == (float(row["low"]), float(row["high"]))
    assert "rank 6" in rows[0]["note"]
    assert capsys.readouterr().out.count("\n") == 18
    assert (tmp_path / "out_digits.png").read_bytes().startswith(b"\x89PNG")


def test_other_seeds_are_put_beside_and_the_same_in_place(run):
    run()
    assert len(run("--seed", "1")) == 36
    rows = run("--seed", "1")
    assert len(rows) == 36
    assert [row["seed"] for row in rows] == ["0"] * 18 + ["1"] * 18
