"""The pictures of ``cvattn evaluate``."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cvattn.cli.measures import Measures
from cvattn.system import figures
from cvattn.system.files import whole_file

_MOST_NUMBERS = 25  # classes up to which counts can be read in their squares
_MOST_NAMES = 60


def draw_confusion(measures: Measures, names: Sequence[str], path: Path, *, title: str) -> None:
    """Rows = true class, shaded by the share of that class; counts where there is room -> PNG."""
    counts = np.array(measures.confusion)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    size = len(names)
    side = min(max(4.0, 0.42 * size + 1.5), 14.0)
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if size <= _MOST_NUMBERS:
        for row, column in zip(*counts.nonzero(), strict=True):
            axes.text(
                column,
                row,
                f"{counts[row, column]}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if shares[row, column] > 0.55 else "black",
            )
    if size <= _MOST_NAMES:
        short = [figures.label(name, 18) for name in names]
        axes.set_xticks(range(size), short, rotation=90 if max(map(len, short)) > 2 else 0)
        axes.set_yticks(range(size), short)
        axes.tick_params(labelsize=8 if size <= _MOST_NUMBERS else 6)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    axes.set_title(figures.label(title, 70), fontsize=10)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, label="share of the true class")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    with whole_file(path) as file:
        figures.save(figure, file)


def draw_reliability(measures: Measures, path: Path, *, title: str) -> None:
    """Accuracy against confidence for each bin, above how many images each bin holds -> PNG."""
    filled = [b for b in measures.bins if b.count]
    left = [b.lower for b in measures.bins]
    width = measures.bins[0].upper - measures.bins[0].lower
    figure = Figure(figsize=(4.6, 5.4), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.bar(
        [b.lower for b in filled],
        [b.accuracy for b in filled],
        width,
        align="edge",
        color="tab:blue",
        edgecolor="white",
        label="accuracy",
    )
    axes.plot(
        [b.confidence for b in filled],
        [b.accuracy for b in filled],
        "o",
        color="black",
        markersize=3.5,
        label="at the mean probability",
    )
    axes.plot([0, 1], [0, 1], "--", color="tab:red", linewidth=1, label="perfect calibration")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(fontsize=8, loc="upper left", frameon=False)
    error = f"expected calibration error {measures.calibration_error:.2%}"
    axes.set_title(f"{figures.label(title, 60)}\n{error} ({len(left)} bins)", fontsize=10)
    below.bar(left, [b.count for b in measures.bins], width, align="edge", color="tab:grey")
    below.set(xlabel="probability of the likeliest class", ylabel="images")
    below.xaxis.set_major_formatter(PercentFormatter(1.0))
    for part in (axes, below):
        part.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as file:
        figures.save(figure, file)
