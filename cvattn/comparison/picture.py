"""The picture of a comparison: every seed, means and intervals, and the paired differences."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvattn.comparison.compared import Arm, Comparison
from cvattn.comparison.intervals import mean_interval
from cvattn.comparison.metrics import Metric
from cvattn.system import figures
from cvattn.system.files import whole_file

_COLOURS = {"better": "C2", "worse": "C3"}
_LEGEND = (
    "dots: seeds; diamonds: means, with the 95 % interval (Student's t) of 3 seeds or more. "
    "Differences: green better, red worse, grey no difference seen or too few seeds"
)


def draw(comparison: Comparison, path: Path) -> None:
    """A row of two panels for each metric: the runs, and how far they are from the first -> PNG.

    Of two seeds no interval is drawn: it is so wide that it would hide all others.
    """
    metrics = comparison.metrics
    arms = [comparison.arms(metric) for metric in metrics]
    height = sum(0.85 + 0.34 * len(each) for each in arms)
    figure = Figure(figsize=(10.0, 0.7 + height), layout="constrained")
    figure.suptitle(figures.label(f"on {comparison.data}"), fontsize=11)
    figure.supxlabel(_LEGEND, fontsize=8, color="0.35")
    panels = figure.subplots(
        len(metrics), 2, squeeze=False, height_ratios=[2 + len(each) for each in arms]
    )
    for (left, right), metric, found in zip(panels, metrics, arms, strict=True):
        _draw_runs(left, metric, found)
        _draw_differences(right, metric, found, comparison.first)
    with whole_file(path) as file:
        figures.save(figure, file)


def _draw_runs(axes: Axes, metric: Metric, arms: Sequence[Arm]) -> None:
    for place, arm in enumerate(arms):
        _draw_line(axes, place, list(arm.values.values()), "C0")
    unit = f", {metric.unit}" if metric.unit else ""
    axes.set_xlabel(f"{metric.name}{unit}", fontsize=9)
    _dress(axes, arms)


def _draw_differences(axes: Axes, metric: Metric, arms: Sequence[Arm], first: str) -> None:
    axes.axvline(0.0, color="0.4", linewidth=1)
    for place, arm in enumerate(arms):
        if arm.differences:
            colour = _COLOURS.get(arm.verdict(metric), "0.35")
            _draw_line(axes, place, list(arm.differences.values()), colour)
    unit = ", points" if metric.unit else ""
    better = "right" if metric.mode == "max" else "left"
    label = f"difference from {figures.label(first, 30)}, seed by seed{unit} (better: {better})"
    axes.set_xlabel(label, fontsize=9)
    _dress(axes, arms)
    axes.tick_params(labelleft=False)


def _draw_line(axes: Axes, place: int, values: Sequence[float], colour: str) -> None:
    """The seeds as dots; of two or more their mean, of three or more its 95 % interval."""
    axes.plot(values, [place + 0.25] * len(values), "o", color="0.6", markersize=3.5)
    if len(values) > 1:
        mean, half = mean_interval(values)
        xerr = half if len(values) > 2 else 0.0
        axes.errorbar(mean, place, xerr=xerr, fmt="D", color=colour, capsize=4, markersize=5)


def _dress(axes: Axes, arms: Sequence[Arm]) -> None:
    axes.set_yticks(range(len(arms)), [figures.label(arm.name, 40) for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.locator_params(axis="x", nbins=6)
