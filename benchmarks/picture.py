"""The picture of the scan: time and peak memory of one block against the number of positions."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from cases import CASES, COMMON, OURS, SDPA
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from rows import Row, exponent

COLOURS = {OURS: "#0072b2", COMMON[0]: "#d55e00", SDPA[0]: "#666666"}
LABELS = {OURS: "cvattn", COMMON[0]: "common block", SDPA[0]: "plain SDPA"}
PANELS = (
    ("median_ms", 1e-3, "time of a step (s)", "Time"),
    ("peak_mib", 1.0, "peak above the start (MiB)", "Peak memory"),
)
_SCAN = {case.name: case for case in CASES if case.name.startswith("scan-map-")}


def draw(rows: list[Row], path: Path) -> bool:
    """Draw the scan's rows into a PNG file; False if there are fewer than two sizes."""
    scan = [row for row in rows if row["case"] in _SCAN]
    if len({row["case"] for row in scan}) < 2:
        return False
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for panel, (column, factor, label, title) in zip(axes, PANELS, strict=True):
        _panel(panel, scan, column, factor)
        panel.set_ylabel(label)
        grows = exponent(rows, "scan-map-", OURS, column)
        panel.set_title(title + ("" if grows is None else f" (cvattn: N to the {grows:.2f})"))
    _, channels, _, _ = next(iter(_SCAN.values())).shape
    figure.suptitle(
        f"Self-attention on a {channels}-channel map, batch 1, float32, forward + backward\n"
        f"{scan[0]['cpu']}, {scan[0]['threads']} threads, torch {scan[0]['torch']}",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True


def _panel(panel: Axes, scan: list[Row], column: str, factor: float) -> None:
    """One line a method, and a dashed one to where it could not run."""
    panel.set(xscale="log", yscale="log", xlabel="positions N = H x W")
    for method, colour in COLOURS.items():
        points = sorted(
            (_SCAN[row["case"]].tokens, float(row[column]) * factor)
            for row in scan
            if row["method"] == method and row[column] and float(row[column]) > 0
        )
        if not points:
            continue
        # Ours above the others, and the dots of two lines that coincide both to be seen.
        panel.plot(
            *zip(*points, strict=True),
            "o-",
            label=LABELS[method],
            color=colour,
            lw=2,
            ms=4 + 2 * (method != OURS),
            zorder=3 if method == OURS else 2,
            mfc=colour if method != SDPA[0] else "white",
        )
        if column == "peak_mib" and method == COMMON[0]:
            _mark_unrun(panel, scan, points[-1], colour)
    sizes = sorted({_SCAN[row["case"]].tokens for row in scan})
    panel.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
    panel.xaxis.set_major_locator(FixedLocator(sizes))
    panel.xaxis.set_major_formatter(FixedFormatter([f"{size / 1000:.0f}k" for size in sizes]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, loc="upper left", fontsize=9)


def _mark_unrun(panel: Axes, scan: list[Row], last: tuple[float, float], colour: str) -> None:
    """What the common block would have needed where it was not run: computed, so dashed."""
    points = [
        (case.tokens, case.stored_bytes(COMMON[0]) / 2**20)
        for case in (_SCAN[row["case"]] for row in scan if row["method"] == COMMON[0])
        if case.tokens > last[0]
    ]
    if points:
        xs, ys = zip(last, *sorted(points), strict=True)
        panel.plot(xs, ys, "--", color=colour, lw=1.2)
        panel.plot(xs[1:], ys[1:], "x", color=colour, ms=6)
        panel.annotate(
            f"would need {ys[-1] / 1024:.0f} GiB",
            (xs[-1], ys[-1]),
            xytext=(-8, 0),
            textcoords="offset points",
            color=colour,
            ha="right",
            va="center",
            fontsize=8,
        )
