"""The tables of figures on the pages, from the files in results/."""

import csv
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

from comparison_tables import comparison_tables
from loading_table import loading_table
from scale_table import scale_table

from cvattn.comparison.intervals import mean_text


def all_tables(results: Path) -> Iterator[tuple[str, str]]:
    """Name and Markdown of each."""
    yield "training", training_table(results)
    yield "speed", speed_tables(results)
    yield "forms", forms_table(results)
    yield "planted_patch", planted_table(results)
    yield "deletion", deletion_tables(results)
    yield "randomised", randomised_table(results)
    yield "quality", quality_table(results)
    yield "usefulness", usefulness_table(results)
    yield "usefulness_filters", filters_table(results)
    yield "scale", scale_table(results)
    yield "loading", loading_table(results)
    yield from comparison_tables(results)


def training_table(results: Path) -> str:
    """Mean accuracies of every list of runs, with what they cost."""
    parts = []
    lists = ("cifar10", "attention_ablation", "sequences", "finetuning")
    # Beside a list's own file, those of other machines.
    files = [file for name in lists for file in _files_of(results, name)]
    for name, file in files:
        rows = _rows(file)
        parts += [f"### {file.stem}", ""]
        parts += [f"`python -m cvattn compare benchmarks/{name}.yaml -o results`", ""]
        parts += ["| run | data | seeds | test, % | with views, % | minutes | PFLOP | commits |"]
        parts += ["|---|---|---|---|---|---|---|---|"]
        for run in dict.fromkeys(row["run"] for row in rows):
            mine = [row for row in rows if row["run"] == run]
            commits = dict.fromkeys(word[:7] for row in mine for word in row["commit"].split())
            cells = [
                run,
                mine[0]["data"],
                str(len(mine)),
                _accuracy(mine, "test_accuracy"),
                _accuracy(mine, "test_accuracy_views"),
                f"{statistics.mean(float(row['minutes']) for row in mine):.1f}",
                f"{statistics.mean(float(row['pflop']) for row in mine):.4f}",
                ", ".join(commits),
            ]
            parts.append("| " + " | ".join(cells) + " |")
        machines = dict.fromkeys(f"{row['cpu']}, {row['cores']} cores" for row in rows)
        parts += ["", f"Machines: {'; '.join(machines)}.", ""]
    return "\n".join(parts)


def _files_of(results: Path, name: str) -> list[tuple[str, Path]]:
    others = sorted(results.glob(f"{name}_*cores.csv"))
    return [(name, file) for file in (results / f"{name}.csv", *others)]


def _accuracy(rows: list[dict[str, str]], key: str) -> str:
    values = [100 * float(row[key]) for row in rows if row[key]]
    return mean_text(values) if values else ""


def speed_tables(results: Path) -> str:
    """Ours against the best of the others, for each machine that was measured."""
    parts = []
    for file in _speed_files(results):
        # Ours against the best of the others; the scans over sizes are in the picture.
        rows = [
            row
            for row in _rows(file)
            if row["method"].startswith("ours")
            and row["versus"]
            and not row["versus"].startswith("ours")
            and not row["case"].startswith(("scan", "form"))
        ]
        first = rows[0]
        parts += [f"### {first['cpu']}, {first['threads']} threads", ""]
        parts += [
            f"torch {first['torch']}; bfloat16 instructions: {first['bf16_instructions']}. "
            "`python benchmarks/attention.py`",
            "",
        ]
        parts += ["| case | ours, ms | best other | ratio (95 % interval) | peak, MiB | commit |"]
        parts += ["|---|---|---|---|---|---|"]
        for row in rows:
            ratio = f"{float(row['ratio']):.2f} ({float(row['ratio_low']):.2f} to "
            ratio += f"{float(row['ratio_high']):.2f})"
            peak = f"{float(row['peak_mib']):.0f}" if row["peak_mib"] else ""
            cells = [row["case"], f"{float(row['median_ms']):.1f}", row["versus"], ratio, peak]
            parts.append("| " + " | ".join([*cells, row["commit"]]) + " |")
        parts.append("")
    return "\n".join(parts)


_FORMS = {
    "map": "`SelfAttention2d(C)`",
    "unet": "`SelfAttention2d.unet`",
    "window": "`WindowAttention2d.unet`, 8x8",
    "neighborhood": "`NeighborhoodAttention2d.unet`, 7x7",
    "axial": "`AxialAttention2d.unet`",
    "criss_cross": "`CrissCrossAttention2d.unet`",
}


def forms_table(results: Path) -> str:
    """What each form costs on maps of each size, on the machines where that was measured."""
    parts = []
    for file in _speed_files(results):
        found = {
            tuple(row["case"].split("-")[1:3]): row
            for row in _rows(file)
            if row["case"].startswith("form-") and row["method"] == "ours"
        }
        if not found:
            continue
        sides = sorted({side for _, side in found}, key=lambda side: int(side.split("x")[0]))
        parts += [f"| form | {' | '.join(sides)} |", "|---" * (len(sides) + 1) + "|"]
        for kind, name in _FORMS.items():
            cells = [_time_and_peak(found.get((kind, side))) for side in sides]
            parts.append(f"| {name} | {' | '.join(cells)} |")
        first = next(iter(found.values()))
        commits = dict.fromkeys(row["commit"] for row in found.values())
        parts += [
            "",
            f"{first['cpu']}, {first['threads']} threads, torch {first['torch']}, "
            f"commits {', '.join(commits)}. `python benchmarks/attention.py --only 'form-*'`",
            "",
        ]
    return "\n".join(parts)


def planted_table(results: Path) -> str:
    """How often the maximum of each heat lies in the patch, for each network."""
    rows = _rows(results / "planted_patch.csv")
    networks = list(dict.fromkeys(row["network"] for row in rows))
    parts = [f"| in the patch, % | {' | '.join(networks)} |", "|---" * (len(networks) + 1) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = [
            _percent(row["hits"] for row in rows if (row["network"], row["method"]) == of)
            for of in ((network, method) for network in networks)
        ]
        parts.append(f"| {method} | {' | '.join(cells)} |")
    chance = f"{100 * float(rows[0]['chance']):.1f}"
    parts.append(f"| chance | {' | '.join([chance] * len(networks))} |")
    return "\n".join([*parts, "", _made_with(rows), ""])


def deletion_tables(results: Path) -> str:
    """Means of the curves: of random order, and how far the others are from it, seed by seed."""
    rows = _rows(results / "deletion.csv")
    columns = [(curve, fill) for fill in ("mean", "blur") for curve in ("deletion", "insertion")]
    parts = []
    for network in dict.fromkeys(row["network"] for row in rows):
        parts += [f"**{network}**", ""]
        heads = [f"{curve}, {fill}" for curve, fill in columns]
        parts += [f"| points from random | {' | '.join(heads)} |", "|---|---|---|---|---|"]
        found = {
            (row["method"], row["curve"], row["fill"], row["seed"]): 100 * float(row["mean"])
            for row in rows
            if row["network"] == network
        }
        seeds = list(dict.fromkeys(key[3] for key in found))
        for method in dict.fromkeys(key[0] for key in found):
            cells = []
            for of in columns:
                values = [found[(method, *of, seed)] for seed in seeds]
                random = [found[("random", *of, seed)] for seed in seeds]
                if method == "random":
                    cells.append(f"(itself: {statistics.mean(values):.1f})")
                else:
                    apart = [one - other for one, other in zip(values, random, strict=True)]
                    cells.append(mean_text(apart, "+"))
            parts.append(f"| {method} | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join([*parts, _made_with(rows), ""])


def randomised_table(results: Path) -> str:
    """Rank correlation of each heat before and after weights were drawn anew."""
    rows = _rows(results / "deletion_randomised.csv")
    columns = [
        (network, what)
        for network in dict.fromkeys(row["network"] for row in rows)
        for what in ("head", "all")
    ]
    heads = [f"{network}, {what} anew" for network, what in columns]
    parts = [f"| rank correlation | {' | '.join(heads)} |", "|---" * (len(columns) + 1) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for network, what in columns:
            of = {"network": network, "drawn_anew": what, "method": method}
            mine = [float(row["rank_correlation"]) for row in rows if of.items() <= row.items()]
            cells.append(mean_text(mine) if mine else "")
        parts.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join([*parts, "", _made_with(rows), ""])


def quality_table(results: Path) -> str:
    """Both distances of each rung, with the range of the draws; of the first data in the file."""
    everything = _rows(results / "quality_ladder.csv")
    first = everything[0]
    same = {key: first[key] for key in ("data", "count", "seed")}
    rows = [row for row in everything if same.items() <= row.items()]
    names = list(dict.fromkeys(row["distance"] for row in rows))
    parts = [
        f"| {first['data']}, N = {int(first['count']):,} | {' | '.join(names)} |",
        "|---|---|---|",
    ]
    for rung in dict.fromkeys(row["rung"] for row in rows):
        cells = [
            f"{float(row['mean']):.4g} ({float(row['low']):.4g} to {float(row['high']):.4g})"
            for row in rows
            if row["rung"] == rung
        ]
        parts.append(f"| {rung} | {' | '.join(cells)} |")
    told = (
        f"Against test images; mean and range of {first['draws']} draws, seed {first['seed']}; "
        f"images resized to {first['size']}, weights {first['weights'][:8]}. {first['cpu']}, torch "
        f"{first['torch']}, commit {first['commit']}."
    )
    return "\n".join([*parts, "", told, ""])


def usefulness_table(results: Path) -> str:
    """What share of its task's ceiling each network reaches, and what it costs."""
    rows = _rows(results / "usefulness.csv")
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    parts = [f"| % of the ceiling | ceiling | {' | '.join(arms)} | steps |"]
    parts.append("|---" * (len(arms) + 3) + "|")
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        first = mine[0]
        whole = f"{float(first['ceiling']):.2f} dB" if first["unit"] == "dB" else "all"
        cells = [_percent(row["share"] for row in mine if row["arm"] == arm) for arm in arms]
        steps = f"{first['steps']} of {first['batch']} images"
        parts.append(f"| {task} | {whole} | {' | '.join(cells)} | {steps} |")
    costs = (
        f"{arm} {_millions(rows, arm, 'block_macs')} of {_millions(rows, arm, 'macs')}"
        for arm in arms
    )
    total = sum(float(row["pflop"]) for row in rows)
    said = f"Millions of multiply-accumulates, block of network: {', '.join(costs)}. "
    said += f"All {len(rows)} trainings cost {total:.3f} PFLOP. "
    return "\n".join([*parts, "", said + _made_with(rows), ""])


def filters_table(results: Path) -> str:
    """The wide convolution with each filter, and with the best for four times as long."""
    rows, longer = (_rows(results / f"usefulness_{name}.csv") for name in ("filters", "longer"))
    filters = list(dict.fromkeys(row["filter"] for row in rows))
    parts = [f"| % of the ceiling | {' | '.join(filters)} | the best, 4 x the steps |"]
    parts.append("|---" * (len(filters) + 2) + "|")
    for again in longer:
        mine = [row for row in rows if row["task"] == again["task"]]
        cells = [_percent(row["share"] for row in mine if row["filter"] == of) for of in filters]
        long = f"{_percent([again['share']])} ({again['filter']})"
        parts.append(f"| {again['task']} | {' | '.join(cells)} | {long} |")
    first = rows[0]
    commits = ", ".join(dict.fromkeys(row["commit"] for row in (*rows, *longer)))
    said = f"Seed {first['seed']}. {first['cpu']}, torch {first['torch']}, commit {commits}."
    return "\n".join([*parts, "", said, ""])


def _millions(rows: list[dict[str, str]], arm: str, key: str) -> str:
    values = [int(row[key]) / 1e6 for row in rows if row["arm"] == arm]
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def _percent(shares: Iterable[str]) -> str:
    values = [100 * float(each) for each in shares]
    return mean_text(values) if values else ""


def _made_with(rows: list[dict[str, str]]) -> str:
    seeds, commits = (list(dict.fromkeys(row[key] for row in rows)) for key in ("seed", "commit"))
    first = rows[0]
    return (
        f"Means over seeds {', '.join(seeds)} with their 95 % interval (Student's t). "
        f"{first['cpu']}, torch {first['torch']}, commit {', '.join(commits)}."
    )


def _time_and_peak(row: dict[str, str] | None) -> str:
    if row is None or not row["median_ms"]:
        return ""
    time = float(row["median_ms"])
    said = f"{time:.3g} ms" if time < 1000 else f"{time / 1000:.3g} s"
    return f"{said}, {float(row['peak_mib']):.0f} MiB"


def _speed_files(results: Path) -> list[Path]:
    files = sorted(results.glob("attention_*.csv"))
    return [file for file in files if not file.name.startswith("attention_ablation")]


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))
