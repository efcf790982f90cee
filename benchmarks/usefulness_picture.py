"""The picture of the tasks: what is given, the answers, and where one cell's came from."""

from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from usefulness_tasks import CELL, SIDE, TASKS, Images

from cvattn import capture_attention
from cvattn.blocks import MapAttention

# A cell (row, column) in the hidden half, and one among the patterns; in a texture it is a hole.
QUERY = (5, 12)
ENLARGED = 3


def draw_answers(networks: Mapping[str, Mapping[str, nn.Module]], seed: int = 20_000) -> Figure:
    """A row for each task, of its networks by arm: given, truth, answers, and where one looked.

    Where nothing is asked, an answer is what was given. Of noise, which is hard to see, there are
    the errors, enlarged. The last panel is the truth in the light of the attention weights of one
    position, in the square: dark is what it did not look at.
    """
    arms = list(dict.fromkeys(arm for each in networks.values() for arm in each))
    heads = ["given", "truth", *arms, "where it looked"]
    size = (1.75 * len(heads), 1.95 * len(networks))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(networks), len(heads), squeeze=False)
    for line, (name, models) in zip(axes, networks.items(), strict=True):
        images = TASKS[name].draw(1, torch.Generator().manual_seed(seed))
        query = _query(images)
        given = images.given[:, :3]
        panels = {"given": given}
        with torch.no_grad():
            for arm, model in models.items():
                panels[arm] = torch.where(images.asked, model(images.given), given)
        label = name
        if images.asked.all():
            panels = {head: ENLARGED * (x - images.truth) for head, x in panels.items()}
            label += f": errors x {ENLARGED}"
        panels["truth"] = images.truth
        for axis, head in zip(line, heads, strict=True):
            axis.set(xticks=[], yticks=[])
            if name == next(iter(networks)):
                axis.set_title(head, fontsize=9)
            if head in panels:
                axis.imshow(_pixels(panels[head]))
            _frame(axis, query)
        line[0].set_ylabel(label, fontsize=9)
        weights = _weights(models, images, query)
        if weights is None:
            line[-1].set_axis_off()
        else:
            dimmed = 0.12 + 0.88 * weights / weights.max()
            line[-1].imshow(_pixels(images.truth) * dimmed[..., None])
    return figure


def _query(images: Images) -> tuple[int, int]:
    """The cell that is looked from: QUERY, or if that is not asked for, the nearest that is."""
    asked = images.asked[0, 0, ::CELL, ::CELL].nonzero()
    nearest = (asked - torch.tensor(QUERY)).abs().sum(1).argmin()
    row, column = asked[nearest].tolist()
    return row, column


def _weights(
    models: Mapping[str, nn.Module], images: Images, query: tuple[int, int]
) -> Tensor | None:
    """(32, 32): of the first network with attention, its weights for that query on the pixels."""
    for model in models.values():
        if any(isinstance(module, MapAttention) for module in model.modules()):
            row = query[0] * SIDE + query[1]
            with torch.no_grad(), capture_attention(model, rows=[row]) as maps:
                model(images.given)
            (name,) = maps
            weights = maps.on_grid(name)[0, 0, 0]
            return weights.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
    return None


def _pixels(colours: Tensor) -> Tensor:
    """(32, 32, 3) from 0 to 1: the range of a colour of one length, -sqrt(3) to sqrt(3)."""
    return (colours[0].movedim(0, -1) / (2 * 3**0.5) + 0.5).clamp(0, 1)


def _frame(axis: Axes, query: tuple[int, int]) -> None:
    """A square around the cell."""
    y, x = (CELL * side - 0.5 for side in query)
    corners_x, corners_y = [x, x + CELL, x + CELL, x, x], [y, y, y + CELL, y + CELL, y]
    axis.plot(corners_x, corners_y, color="white", linewidth=2.5)
    axis.plot(corners_x, corners_y, color="black", linewidth=1.2)
