"""``benchmarks/deletion.py``: its curves by hand, and that what is drawn anew is new."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import deletion  # noqa: E402

from cvattn.models import SAGANClassifier  # noqa: E402


class Sum(nn.Module):
    """Class 0 against class 1 by the sum of weighted pixels of 4 x 6."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.arange(24.0).view(4, 6).sin() + 0.2

    def forward(self, images):
        score = (images[:, 0] * self.weights).sum((1, 2))
        return torch.stack([score, torch.zeros_like(score)], dim=1)


def test_curves_by_hand():
    model, images, classes = Sum(), torch.rand(3, 1, 4, 6), torch.tensor([0, 1, 0])
    heat, fill = torch.rand(3, 4, 6), torch.rand(3, 1, 4, 6)
    found = deletion.curves(model, images, classes, heat, fill)
    for step in range(11):
        chances = {"deletion": 0.0, "insertion": 0.0}
        for b in range(3):
            spots = [(y, x) for y in range(4) for x in range(6)]
            spots.sort(key=lambda spot: -heat[b, spot[0], spot[1]].item())
            first = set(spots[: round(step / 10 * 24)])
            for name in chances:
                score = 0.0
                for y, x in spots:
                    there = ((y, x) in first) == (name == "insertion")
                    given = images if there else fill
                    score += (given[b, 0, y, x] * model.weights[y, x]).item()
                chance = torch.sigmoid(torch.tensor(score if classes[b] == 0 else -score))
                chances[name] += chance.item() / 3
        for name, want in chances.items():
            assert found[name][step].item() == pytest.approx(want, abs=1e-5)


def test_the_best_order_is_that_of_what_counts():
    model, images, classes = Sum(), torch.ones(5, 1, 4, 6), torch.zeros(5, dtype=torch.long)
    fill = torch.zeros_like(images)
    best = model.weights.expand(5, 4, 6)

    def mean(heat):
        found = deletion.curves(model, images, classes, heat, fill)
        return found["deletion"].mean(), found["insertion"].mean()

    low, high = mean(best)
    for heat in (torch.rand(5, 4, 6), best.flip(1), best.flip(2), torch.zeros(5, 4, 6)):
        assert mean(heat)[0] > low
        assert mean(heat)[1] < high


def test_what_is_filled_in():
    flat = torch.full((2, 3, 8, 13), 0.7)
    mean, blur = deletion.fills(flat).values()
    assert mean.abs().max() == 0
    assert torch.allclose(blur, flat)
    one = torch.zeros(1, 1, 9, 13)
    one[0, 0, 3, 8] = 1.0
    _, blur = deletion.fills(one).values()
    assert blur.flatten().argmax() == 3 * 13 + 8
    assert blur.sum() == pytest.approx(1.0, abs=0.02)
    assert blur.max() < 0.2


def test_rank_correlation():
    heat = torch.rand(3, 4, 6)
    assert deletion.rank_correlation(heat, heat.exp()) == pytest.approx(1.0)
    assert deletion.rank_correlation(heat, -heat) == pytest.approx(-1.0)
    assert deletion.rank_correlation(heat, torch.ones(3, 4, 6)) == 0.0
    assert abs(deletion.rank_correlation(heat, heat.flip(2))) < 0.9


def test_what_is_drawn_anew():
    model = SAGANClassifier(3, image_size=(12, 16), widths=(8, 8, 8)).eval()
    nn.init.constant_(model.attention["stage2"].gamma, 0.7)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    for what in ("head", "all"):
        other = deletion.drawn_anew(model, what).state_dict()
        changed = {n for n, each in before.items() if not torch.equal(each, other[n])}
        assert {n for n in changed if n.startswith("head")} == {"head.weight", "head.bias"}
        queries = {n for n in changed if "query" in n}
        assert queries == (
            set() if what == "head" else {f"attention.stage2.query.{n}" for n in ("weight", "bias")}
        )
        assert torch.equal(other["attention.stage2.gamma"], torch.tensor([0.7]))
    assert all(torch.equal(each, model.state_dict()[n]) for n, each in before.items())


@pytest.mark.slow
def test_the_command_leaves_rows_and_a_picture(tmp_path):
    pytest.importorskip("pytorch_grad_cam", reason="pip install -e '.[peers]'")
    script = str(ROOT / "benchmarks" / "deletion.py")
    output, picture = tmp_path / "deletion.csv", tmp_path / "deletion.png"
    words = ["vit-digits", "sagan-digits", "--images", "3"]
    words += ["--output", str(output), "--picture", str(picture)]
    done = subprocess.run(
        [sys.executable, script, *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert picture.stat().st_size > 10_000
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (9 + 7) * 2 * 2
    assert {(row["network"], row["images"]) for row in rows} == {("vit", "3"), ("sagan", "3")}
    assert all(0 < float(row["mean"]) < 1 for row in rows)
    with output.with_name("deletion_randomised.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == (6 + 4) * 2
