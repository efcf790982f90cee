"""The picture of the forms: time and peak memory of a step on maps of growing size."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from cases import CASES, LOCAL_PEERS, OURS
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from picture import PANELS
from rows import Row

# Colours that are told apart without seeing red and green.
KINDS = {
    "map": ("SelfAttention2d", "#000000"),
    "unet": ("SelfAttention2d.unet", "#666666"),
    "window": ("windows of 8x8", "#0072b2"),
    "neighborhood": ("neighbourhoods of 7x7", "#009e73"),
    "axial": ("columns, then rows", "#e69f00"),
    "criss_cross": ("row and column at once", "#d55e00"),
}
_FORMS = {case.name: case for case in CASES if case.name.startswith("form-")}


def draw_forms(rows: list[Row], path: Path) -> bool:
    """Draw the forms' rows into a PNG file; False if there are fewer than two sizes."""
    found = [row for row in rows if row["case"] in _FORMS and row["median_ms"]]
    sides = sorted({_FORMS[row["case"]].shape[2] for row in found})
    if len(sides) < 2:
        return False
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    for panel, (column, factor, label, title) in zip(axes, PANELS, strict=True):
        panel.set(xscale="log", yscale="log", xlabel="side of the map", ylabel=label, title=title)
        _lines(panel, found, column, factor)
        panel.xaxis.set_major_locator(FixedLocator(sides))
        panel.xaxis.set_major_formatter(FixedFormatter([str(side) for side in sides]))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, loc="upper left", fontsize=8)
    figure.suptitle(
        "64 channels, batch 1, float32, forward + backward; dashed: how others write it\n"
        f"{found[0]['cpu']}, {found[0]['threads']} threads, torch {found[0]['torch']}",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True


def _lines(panel: Axes, rows: list[Row], column: str, factor: float) -> None:
    for kind, (label, colour) in KINDS.items():
        methods = {OURS: "o-"} | ({LOCAL_PEERS[kind]: "--"} if kind in LOCAL_PEERS else {})
        for method, style in methods.items():
            points = sorted(
                (_FORMS[row["case"]].shape[2], float(row[column]) * factor)
                for row in rows
                if _FORMS[row["case"]].kind == kind and row["method"] == method and row[column]
            )
            if points:
                name = label if method == OURS else None
                panel.plot(
                    *zip(*points, strict=True), style, label=name, color=colour, lw=1.6, ms=4
                )
