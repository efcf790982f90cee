"""The rows of the CSV file: what they hold, and a file that is whole at every moment.

``ratio`` on the row of an alternative is subject : that alternative. On the subject's own row it is
subject : the best of its rivals, named in ``versus``; ``memory_ratio`` there is subject : common
block. On maps each side is taken in the layout, contiguous or channels last, in which it is faster
(for times) or takes less (for memory). ``error`` is that of bfloat16 against float64, the larger of
two relative 2-norms: of attention's part of the output, and of the input's gradient.
"""

import csv
import os
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

from cases import ALLOWANCE, CASES, COMMON, OURS, QUICK_CASES, Case
from paired import fitted_exponent, paired_ratio, quartiles

COLUMNS = (
    *("case", "dtype", "shape", "pass", "method"),
    *("median_ms", "q1_ms", "q3_ms", "rounds", "peak_mib", "total_mib"),
    *("versus", "ratio", "ratio_low", "ratio_high", "memory_ratio"),
    *("target_ratio", "ratio_met", "target_memory_ratio", "target_total_mib", "memory_met"),
    *("error", "note", "torch", "commit", "cpu", "threads", "bf16_instructions", "date"),
)
Row = dict[str, str]


def make_rows(
    case: Case, timing: Mapping, peaks: Mapping[str, Mapping], facts: Mapping[str, str]
) -> list[Row]:
    """One row a method from the times of all rounds and the peaks of the memory processes."""
    times = timing["times"]
    subject = min(case.subjects, key=lambda name: statistics.median(times[name]))
    return [_row(case, name, subject, timing, peaks, facts) for name in case.methods]


def _row(
    case: Case,
    name: str,
    subject: str,
    timing: Mapping,
    peaks: Mapping[str, Mapping],
    facts: Mapping[str, str],
) -> Row:
    times, notes = timing["times"], [timing["notes"].get(name, ""), peaks[name].get("note", "")]
    row = dict.fromkeys(COLUMNS, "") | {
        "case": case.name,
        "dtype": case.dtype,
        "shape": "x".join(map(str, case.shape)),
        "pass": case.passes,
        "method": name,
        "threads": str(timing["threads"]),
        "note": "; ".join(note for note in notes if note),
        **facts,
    }
    if name in times:
        low, middle, high = quartiles(times[name])
        row |= _text(median_ms=middle, q1_ms=low, q3_ms=high)
        row["rounds"] = str(len(times[name]))
        if name in timing["errors"]:
            row |= _text(error=timing["errors"][name])
        _compare_times(row, case, name, subject, times)
    if "peak_mib" in peaks[name]:
        row |= _text(peak_mib=peaks[name]["peak_mib"], total_mib=peaks[name]["total_mib"])
        _compare_peaks(row, case, name, subject, peaks)
    return row


def _compare_times(
    row: Row, case: Case, name: str, subject: str, times: Mapping[str, list[float]]
) -> None:
    other, target = name, case.time_targets.get(name)
    if name == subject:
        rivals = [r for r in case.rivals or case.methods if r in times and r not in case.subjects]
        if not rivals:
            return
        other = min(rivals, key=lambda rival: statistics.median(times[rival]))
        target = case.time_targets.get("best")
    ratio, low, high = paired_ratio(times[subject], times[other])
    row |= {"versus": other} | _text(ratio=ratio, ratio_low=low, ratio_high=high)
    if target is not None:
        row |= _text(target_ratio=target)
        row["ratio_met"] = "yes" if high <= target + ALLOWANCE else "no"


def _compare_peaks(
    row: Row, case: Case, name: str, subject: str, peaks: Mapping[str, Mapping]
) -> None:
    mine = min((peaks[one] for one in case.subjects), key=lambda peak: peak["peak_mib"])
    others = [peaks[name]]
    if name == subject:
        others = [
            peaks[n] for n in (COMMON if case.kind in ("map", "pooled") else (OURS,)) if n in peaks
        ]
    others = [other for other in others if "peak_mib" in other]
    if others:
        ratio = mine["peak_mib"] / max(min(other["peak_mib"] for other in others), 1e-3)
        row |= _text(memory_ratio=ratio)
        if name == subject and case.memory_target is not None:
            row |= _text(target_memory_ratio=case.memory_target)
            row["memory_met"] = "yes" if ratio <= case.memory_target else "no"
    if name == subject and case.total_target is not None:
        row |= _text(target_total_mib=case.total_target)
        row["memory_met"] = "yes" if mine["total_mib"] <= case.total_target else "no"


def _text(**numbers: float) -> Row:
    return {key: f"{number:.4g}" for key, number in numbers.items()}


def read_rows(path: Path) -> list[Row]:
    """The rows of a results file; none if there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def put_rows(path: Path, new: list[Row]) -> None:
    """Add one case's rows to the file, in place of earlier ones of that case, all or nothing."""
    order = {case.name: i for i, case in enumerate(CASES + QUICK_CASES)}
    rows = [row for row in read_rows(path) if row["case"] != new[0]["case"]] + new
    rows.sort(key=lambda row: order.get(row["case"], len(order)))
    write_rows(path, COLUMNS, rows)


def write_rows(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, object]]) -> None:
    """The whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".csv.part")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns), extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(beside, path)


def is_measured(rows: list[Row], case: Case, facts: Mapping[str, str], *, rounds: int) -> bool:
    """Whether the file has all of the case: this code, torch and processor, and enough rounds."""
    same = ("torch", "commit", "cpu")
    found = {
        row["method"]
        for row in rows
        if row["case"] == case.name
        and all(row[key] == facts[key] for key in same)
        and (not row["rounds"] or int(row["rounds"]) >= rounds)
    }
    return found == set(case.methods)


def exponent(rows: list[Row], prefix: str, method: str, column: str = "peak_mib") -> float | None:
    """The fitted growth of a column with N over a scan, or None with fewer than three points."""
    known = {case.name: case for case in CASES}
    points = [
        (known[row["case"]].tokens, float(row[column]))
        for row in rows
        if row["case"] in known
        and row["case"].startswith(prefix)
        and row["method"] == method
        and row[column]
        and float(row[column]) > 0
    ]
    return fitted_exponent(*zip(*points, strict=True)) if len(points) >= 3 else None
