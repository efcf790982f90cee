"""Pictures of a judgement: samples beside the training images they are nearest to, the ladder."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cvattn.quality.judge import Judgement
from cvattn.quality.ladder import Rung
from cvattn.quality.reference import Distances
from cvattn.system import figures
from cvattn.system.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_neighbours(
    samples: Tensor, judgement: Judgement, train: Tensor, path: Path, *, count: int = 8
) -> None:
    """The samples nearest to training images, above those, by pixels and by features -> a PNG.

    Args:
        samples: uint8 (N, C, H, W), those that were judged.
        train: all training images, uint8 (K, C, H, W).
        count: how many of each space.
    """
    from matplotlib.figure import Figure

    count = min(count, len(samples))
    figure = Figure(figsize=(0.8 * count + 0.6, 4.6), layout="constrained")
    parts: Any = figure.subfigures(2, 1)
    for part, found in zip(parts, (judgement.pixels, judgement.features), strict=True):
        rows = part.subplots(2, count, squeeze=False)
        for column, at in enumerate(found.distances.argsort(stable=True)[:count].tolist()):
            _show(rows[0, column], samples[at], f"{found.distances[at]:.3g}")
            _show(rows[1, column], train[found.nearest[at]], "")
        for row, text in zip(rows, ("sample", "nearest"), strict=True):
            row[0].set_ylabel(text, fontsize=8)
        alarm = "; more than chance brings" if found.alarm else ""
        part.suptitle(
            f"by {found.space}, among {found.among:,}: {100 * found.share:.1f} % of the samples\n"
            f"as near as the nearest {100 * found.test_share:.1f} % of the test images{alarm}",
            fontsize=8,
        )
    with whole_file(path) as file:
        figures.save(figure, file)


def draw_ladder(
    rungs: Sequence[Rung], path: Path, *, samples: Distances | None = None, title: str = ""
) -> None:
    """Both distances of each rung, with the range of the draws, and of samples as a line -> a PNG.

    Args:
        rungs: of :func:`cvattn.quality.ladder`; of a judgement ``(floor, *ladder)``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 0.32 * len(rungs) + 1.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    names = [figures.label(rung.name) for rung in rungs]
    for axes, pick in zip(panels, ("frechet", "kernel"), strict=True):
        found = [getattr(rung.distances, pick) for rung in rungs]
        for name, rung, each in zip(names, rungs, found, strict=True):
            reach = [[each.mean - each.low], [each.high - each.mean]]
            colour = "#0072b2" if rung.kind == "floor" else "#555555"
            axes.errorbar([each.mean], [name], xerr=reach, fmt="o", color=colour, ms=4, capsize=2)
        if samples is not None:
            mine = getattr(samples, pick)
            axes.axvline(mine.mean, color="#d55e00", lw=1.5, label=f"samples: {mine.mean:.4g}")
            axes.legend(fontsize=8, frameon=False)
        axes.set_xlabel(f"{found[0].name}, N = {found[0].count:,}", fontsize=9)
        _scale(axes, *(abs(value) for value in (found[0].low, found[0].high)))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    panels[0].invert_yaxis()
    if title:
        figure.suptitle(figures.label(title), fontsize=10)
    with whole_file(path) as file:
        figures.save(figure, file)


def _scale(axes: "Axes", *floor: float) -> None:
    """Logarithmic above the floor: rungs lie orders of magnitude apart, and some below 0."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    near = max(*floor, 1e-9)
    axes.set_xscale("symlog", linthresh=near, linscale=0.5)
    low, high = axes.get_xlim()
    first = math.ceil(math.log10(near))
    powers = [10.0**n for n in range(first, max(first, math.ceil(math.log10(max(high, near)))) + 1)]
    axes.set_xticks([value for value in (0.0, *powers) if low <= value <= high])
    axes.xaxis.set_minor_locator(NullLocator())
    # As plain text: powers in formulas need fonts that are not everywhere.
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(labelsize=7)


def _show(axes: "Axes", image: Tensor, text: str) -> None:
    pixels: Any = image.movedim(0, -1).numpy()
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    axes.set_title(text, fontsize=7, pad=2)
    axes.set_xticks([])
    axes.set_yticks([])
