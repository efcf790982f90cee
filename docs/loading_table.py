"""What loaders of photographs give and take, of each machine that was measured."""

import csv
from pathlib import Path

_COLUMNS = {
    "images/s, first epoch": "images/s, first epoch",
    "images/s, second epoch": "second",
    "seconds to the first batch": "seconds to the first batch",
    "the same, of a second run": "of a second run",
    "GiB above imports, 1": "GiB of a process",
    "GiB above imports, each of 2": "each of 2",
}
_RATIO = "ours : "


def loading_table(results: Path) -> str:
    """Every loader of ``benchmarks/loading.py``, and how long ours take beside the others."""
    parts: list[str] = []
    for file in sorted(results.glob("loading_*.csv")):
        with file.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        first = rows[0]
        rounds = f"{first['rounds']} round" + "s" * (first["rounds"] != "1")
        parts += [
            f"{int(first['images']):,} photographs of 224x224, {first['cpu']}, {first['cores']} "
            f"cores, torch {first['torch']}, commit {first['commit']}, {first['date']}, {rounds} "
            "(`python benchmarks/loading.py`):",
            "",
            f"| loader | {' | '.join(_COLUMNS.values())} |",
            "|---" * (1 + len(_COLUMNS)) + "|",
        ]
        figures = {(row["loader"], row["figure"]): row["median"] for row in rows}
        for loader in dict.fromkeys(row["loader"] for row in rows):
            values = [float(figures[loader, column]) for column in _COLUMNS]
            cells = [f"{value:,.0f}" if value >= 100 else f"{value:.2g}" for value in values]
            parts.append(f"| {' | '.join([loader, *cells])} |")
        parts += ["", "| time of an epoch | beside | first | second |", "|---|---|---|---|"]
        pairs = dict.fromkeys(
            (row["loader"], row["figure"].partition(_RATIO)[2])
            for row in rows
            if _RATIO in row["figure"]
        )
        for loader, rival in pairs:
            times = [figures[loader, f"time, epoch {n}, {_RATIO}{rival}"] for n in (1, 2)]
            cells = [f"{float(time):.2f}" for time in times]
            parts.append(f"| {' | '.join([loader, rival, *cells])} |")
        parts.append("")
    return "\n".join(parts)
