"""The picture of learning curves: mean of the seeds, and their spread."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cvattn.comparison.metrics import Metric
from cvattn.system import figures
from cvattn.system.files import whole_file


def draw(rows: Sequence[Mapping[str, str]], path: Path, *, judged: str) -> None:
    """What the runs are judged by and their training loss against epochs, a line for each -> PNG.

    Args:
        rows: of the file of learning curves.
        path: of the picture.
        judged: a column of theirs, "val/accuracy" say.
    """
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    metric = Metric(judged.replace("/", "_"), "max")
    panels = ((judged, metric.name), ("train/loss", "training loss"))
    for axes, (key, title) in zip(figure.subplots(1, 2), panels, strict=True):
        points: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if row.get(key):
                points[row["run"]][int(row["epoch"])].append(float(row[key]))
        for run, at in points.items():
            epochs = sorted(at)
            means = [mean(at[e]) for e in epochs]
            label = figures.label(run)
            (line,) = axes.plot(epochs, means, marker="o", markersize=2.5, label=label)
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
        if key == judged and metric.unit:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.axes[0].legend(fontsize=7, frameon=False)
    with whole_file(path) as file:
        figures.save(figure, file)
