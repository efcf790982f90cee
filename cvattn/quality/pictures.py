"""Pictures of a judgement: samples beside the training images they are nearest to, the ladder."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
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
    figure = Figure(figsize=(0.9 * count + 0.9, 4.6), layout="constrained")
    grid = figure.subplots(4, count, squeeze=False)
    for rows, found in zip(
        (grid[:2], grid[2:]), (judgement.pixels, judgement.features), strict=True
    ):
        for column, at in enumerate(found.distances.argsort(stable=True)[:count].tolist()):
            _show(rows[0, column], samples[at], f"{found.distances[at]:.3g}")
            _show(rows[1, column], train[found.nearest[at]], "")
        alarm = ", more than chance brings" if found.alarm else ""
        rows[0, 0].text(
            -0.1,
            1.45,
            f"by {found.space}: {100 * found.share:.1f} % of the samples as near as the nearest "
            f"{100 * found.test_share:.1f} % of the test images{alarm}",
            transform=rows[0, 0].transAxes,
            fontsize=8,
        )
    for row, text in enumerate(("sample", "nearest") * 2):
        grid[row, 0].set_ylabel(text, fontsize=8)
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
        means = torch.tensor([each.mean for each in found])
        below = means - torch.tensor([each.low for each in found])
        above = torch.tensor([each.high for each in found]) - means
        colours = ["#0072b2" if rung.kind == "floor" else "#888888" for rung in rungs]
        errors = torch.stack((below, above)).clamp(min=0).numpy()
        axes.barh(names, means.numpy(), color=colours, height=0.6)
        axes.errorbar(means.numpy(), names, xerr=errors, fmt="none", ecolor="black", lw=1)
        if samples is not None:
            mine = getattr(samples, pick)
            axes.axvline(mine.mean, color="#d55e00", lw=1.5, label=f"samples: {mine.mean:.4g}")
            axes.legend(fontsize=8, frameon=False)
        axes.set_xlabel(f"{found[0].name}, N = {found[0].count:,}", fontsize=9)
        # The rungs lie orders of magnitude apart; a kernel distance may be below 0.
        axes.set_xscale("symlog", linthresh=max(float(means[0].abs()), 1e-4))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.25)
    panels[0].invert_yaxis()
    if title:
        figure.suptitle(figures.label(title), fontsize=10)
    with whole_file(path) as file:
        figures.save(figure, file)


def _show(axes: "Axes", image: Tensor, text: str) -> None:
    pixels: Any = image.movedim(0, -1).numpy()
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    axes.set_title(text, fontsize=7, pad=2)
    axes.set_xticks([])
    axes.set_yticks([])
