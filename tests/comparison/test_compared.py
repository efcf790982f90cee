"""Runs against the first one: by seed, in each metric's direction and unit; words and picture."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image
from scipy.stats import ttest_rel

from cvattn.comparison import curves, picture
from cvattn.comparison.compared import Comparison, comparisons
from cvattn.comparison.intervals import mean_interval, mean_text
from cvattn.comparison.jobs import Job
from cvattn.comparison.metrics import Metric, metrics_of
from cvattn.comparison.report import cost_table, metric_table, sentences

ACCURACY = Metric("test_accuracy", "max")
LOSS = Metric("val_loss", "min")


def row(run, seed, **values):
    """As it comes from a file."""
    common = {"data": "digits", "trained_on_val": "False", "pflop": "0.5", "parameters": "100"}
    common |= {"macs_per_sample": "2000000", "minutes": "1.5", "sample": "image"}
    common |= {"precision": "32-true", "cpu": "Xeon", "torch": "2.10", "commit": "1234567890"}
    common |= {"criterion": "val/loss", "mode": "min", "gpu": ""}
    named = {"run": run, "seed": str(seed), "command": Job(run, (), seed).command}
    return common | named | {key: str(value) for key, value in values.items()}


ROWS = [
    *(row("ours", s, test_accuracy=a) for s, a in [(0, 0.80), (1, 0.82), (2, 0.84)]),
    *(row("other", s, test_accuracy=a) for s, a in [(0, 0.81), (2, 0.83), (7, 0.50)]),
    row("single", 1, test_accuracy=0.10),
]


def cells(table):
    return [list(column.cells) for column in table.columns]


def test_equal_seeds_are_compared():
    found = {arm.name: arm for arm in Comparison("ours", ROWS).arms(ACCURACY)}
    assert found["single"].values == {1: pytest.approx(10.0)}
    assert found["other"].differences == pytest.approx({0: 1.0, 2: -1.0})
    assert found["ours"].differences == {}
    shown = cells(metric_table(Comparison("ours", ROWS), ACCURACY))
    assert shown[1] == ["3", "3, 2 paired", "1"]
    # 3 values with a standard deviation of 2: 4.303 * 2 / sqrt(3) = 4.968.
    assert shown[2][0] == "82.00 (77.03 to 86.97)"
    # 2 differences with one of 1.414: 12.706 * 1.414 / sqrt(2) = 12.706.
    assert shown[3] == ["", "+0.00 (-12.71 to +12.71)", "-72.00"]


@pytest.mark.parametrize("count", [2, 3, 5, 11])
def test_the_interval_is_that_of_the_paired_t_test(count):
    draw = np.random.default_rng(5)
    ours, other = 0.3 + draw.normal(0, 0.1, count), 0.35 + draw.normal(0, 0.1, count)
    rows = [row("ours", s, val_loss=v) for s, v in enumerate(ours)]
    rows += [row("other", s, val_loss=v) for s, v in reversed(list(enumerate(other)))]
    _, arm = Comparison("ours", rows).arms(LOSS)
    mean, half = mean_interval(list(arm.differences.values()))
    theirs = ttest_rel(other, ours).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((theirs.low, theirs.high), rel=1e-12)


def test_a_single_value_has_no_interval():
    assert mean_interval([3.0]) == (3.0, float("inf"))
    assert mean_text([3.0], "+", 1) == "+3.0"
    assert mean_text([90, 91, 92, 91, 91]) == "91.00 (90.12 to 91.88)"  # 2.776 * 0.7071 / sqrt(5)


@pytest.mark.parametrize(
    ("apart", "least", "most"),
    [
        ((0.02, 0.03, 0.04), "worse", "better"),
        ((-0.02, -0.03, -0.04), "better", "worse"),
        ((-0.02, 0.03, 0.04), "no difference seen", "no difference seen"),
        ((0.0, 0.0, 0.0), "no difference seen", "no difference seen"),
        # Of two the interval may be as narrow as chance likes.
        ((0.02, 0.02), *["2 seeds, too few for a verdict"] * 2),
        ((0.5,), *["1 seed, no interval"] * 2),
        ((), *["no seed in common"] * 2),
    ],
)
def test_verdicts_by_direction(apart, least, most):
    rows = [row("ours", seed, val_loss=0.5, test_accuracy=0.5) for seed in range(3)]
    rows += [row("b", s, val_loss=0.5 + x, test_accuracy=0.5 + x) for s, x in enumerate(apart)]
    rows += [] if apart else [row("b", 9, val_loss=1, test_accuracy=1)]
    for metric, verdict in ((LOSS, least), (ACCURACY, most)):
        assert Comparison("ours", rows).arms(metric)[1].verdict(metric) == verdict


def names(*rows):
    return [(metric.name, metric.mode, metric.unit) for metric in metrics_of(rows)]


def test_metrics_come_from_what_the_task_is_judged_by_and_from_the_test():
    loss = row("a", 0, val_loss=1.5, test_loss=1.25, val_accuracy="", test_accuracy="")
    assert names(loss) == [("validation loss", "min", ""), ("test loss", "min", "")]
    assert metrics_of([loss])[1].value(loss) == 1.25
    # A task that nobody knew when this was written.
    told = {"criterion": "val/mean_iou", "mode": "max", "val_mean_iou": 0.5, "test_mean_iou": 0.25}
    masks = row("a", 0, val_loss=1, test_loss=2, **told)
    means = ("validation mean IoU", "max", "%"), ("test mean IoU", "max", "%")
    assert names(masks) == [*means, ("test loss", "min", "")]
    assert metrics_of([masks])[0].value(masks) == 50.0
    # The direction is the task's to say, also of the test.
    assert names(row("a", 0, criterion="val/far", mode="min", val_far=1, test_far=1))[1][1] == "min"
    words = row("a", 0, test_cer=0.1, test_accuracy=0.1, criterion="val/accuracy", mode="max")
    assert ("test character error rate", "min", "%") in names(words)


def test_rows_from_before_the_criterion_was_written_down():
    old = row("a", 0, val_accuracy=0.5, test_accuracy=0.25, test_accuracy_views=0.5)
    for key in ("criterion", "mode", "gpu"):
        del old[key]
    assert [name for name, *_ in names(old)] == [
        *("validation accuracy", "test accuracy", "test accuracy with views")
    ]
    old |= {"val_accuracy": "", "test_accuracy": "", "test_accuracy_views": "", "val_loss": "2"}
    assert names(old) == [("validation loss", "min", "")]


def test_what_was_trained_on_is_not_compared():
    rows = [row("a", 0, val_loss=1.0), row("b", 0, val_loss=0.1, trained_on_val=True)]
    assert [arm.name for arm in Comparison("a", rows).arms(LOSS)] == ["a"]


def test_runs_on_other_data_or_from_other_commands_are_kept_apart():
    jobs = [Job("a", (), 0), Job("b", (), 0), Job("c", (), 0)]
    rows = [
        row("b", 5, val_loss=1, data="cifar10 (JPEG copy)"),
        row("b", 0, val_loss=2),
        row("a", 0, val_loss=3),
        row("a", 1, val_loss=3, command="python train.py model=vit seed=1"),
        row("unasked", 0, val_loss=4),
    ]
    found, others = comparisons(jobs, rows)
    assert others == 1
    # Run by run, in the order of the runs; the first run is the first whether it is there or not.
    assert [[(r["run"], r["seed"]) for r in each.rows] for each in found] == [
        [("a", "0"), ("b", "0")],
        [("b", "5")],
    ]
    copy = found[1]
    assert (copy.first, copy.data) == ("a", "cifar10 (JPEG copy)")
    assert "cifar10 (JPEG copy)" in metric_table(copy, LOSS).title
    assert sentences(copy) == [
        "No run of a on cifar10 (JPEG copy): there is nothing to compare with."
    ]


def test_what_it_comes_to_in_sentences():
    rows = [row("a", s, val_loss=0.5 + 0.01 * s, test_loss=0.5) for s in range(4)]
    rows += [row("b", s, val_loss=0.6 + 0.01 * s, test_loss=0.5, pflop=0.4) for s in range(4)]
    rows += [row("c", s, val_loss=0.5 + 0.02 * s, pflop=0.505, gpu="H200") for s in range(2)]
    rows[-1]["precision"] = "bf16-mixed"
    rows[-1]["commit"] = "abcdefabcd 1234567890+changes"
    first, second, cost, *circumstances, last = sentences(Comparison("a", rows))
    assert first == "b against a: worse (validation loss); no difference seen (test loss)"
    assert second == "c against a: 2 seeds, too few for a verdict (validation loss)"
    assert cost.startswith("Unequal training PFLOP, as shares of what a has: b 0.80. A diff")
    assert circumstances == [
        "The runs are of different precisions (trainer.precision= makes them one): 32-true, "
        "bf16-mixed.",
        "The runs are of different GPUs: none, H200.",
        "The runs are of different commits: 1234567, abcdefa 1234567+changes.",
    ]
    assert last.startswith("Intervals are 95 %")
    shown = cells(cost_table(Comparison("a", rows)))
    assert [column[1] for column in shown] == ["b", "2.000", "100", "0.4", "1.5"]


def test_the_picture_is_drawn(tmp_path, monkeypatch):
    """With the interval of three seeds, without that of two; a row of panels for each metric."""
    rows = [r for r in ROWS if (r["run"], r["seed"]) != ("other", "7")]
    rows = [r | {"val_loss": r["test_accuracy"]} for r in rows]
    drawn = []

    def errorbar(axes: Axes, x: float, y: float, *, xerr: float, **style: object) -> None:
        drawn.append((round(x, 3), y, round(xerr, 3)))

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    picture.draw(Comparison("ours", rows), tmp_path / "runs.png")
    with Image.open(tmp_path / "runs.png") as opened:
        assert opened.size[0] > 900
        assert opened.size[1] > 500
    loss, accuracy = drawn[:3], drawn[3:]
    assert loss == [(0.82, 0, 0.05), (0.82, 1, 0.0), (0.0, 1, 0.0)]
    assert accuracy == [(82.0, 0, 4.968), (82.0, 1, 0.0), (0.0, 1, 0.0)]


@pytest.mark.parametrize(
    ("judged", "said"), [("val/mean_iou", "validation mean IoU"), ("val/loss", "validation loss")]
)
def test_curves_of_what_is_judged(tmp_path, monkeypatch, judged, said):
    titles = []
    monkeypatch.setattr(Axes, "set_title", lambda axes, text, **style: titles.append(text))
    rows = [
        {"run": "a", "seed": "0", "epoch": str(e), "train/loss": "0.5", judged: "0.25"}
        for e in (1, 2)
    ]
    curves.draw(rows, tmp_path / "curves.png", judged=judged)
    assert titles == [said, "training loss"]
    assert (tmp_path / "curves.png").stat().st_size > 5000
