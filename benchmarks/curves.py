"""The picture of a queue's learning curves: mean of the seeds, and their spread."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter


def draw(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Validation accuracy (or loss) and training loss against epochs, a line for each run.

    Args:
        rows: of a ``*_curves.csv`` of :mod:`queue_rows`.
    """
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    judged = "accuracy" if any(row["val/accuracy"] for row in rows) else "loss"
    panels = ((f"val/{judged}", f"validation {judged}"), ("train/loss", "training loss"))
    for axes, (key, title) in zip(figure.subplots(1, 2), panels, strict=True):
        points: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if row[key]:
                points[row["run"]][int(row["epoch"])].append(float(row[key]))
        for run, at in points.items():
            epochs = sorted(at)
            means = [mean(at[e]) for e in epochs]
            (line,) = axes.plot(epochs, means, marker="o", markersize=2.5, label=run)
            axes.fill_between(
                epochs,
                [min(at[e]) for e in epochs],
                [max(at[e]) for e in epochs],
                alpha=0.2,
                color=line.get_color(),
                linewidth=0,
            )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if key.endswith("accuracy"):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.axes[0].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=130)
