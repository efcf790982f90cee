"""All that only a GPU can show, in one command of at most nine minutes.

    python benchmarks/gpu.py                            all sections on the GPU
    python benchmarks/gpu.py --only equality edges      some of them
    python benchmarks/gpu.py --small                    tiny sizes, also on a CPU: does it work?

Needs torch and Lightning; diffusers and timm are compared with where they are installed. Each
section runs in a process of its own, which is started again behind a check that leaves the device
unusable; ``--small`` runs them all in this one. What a section has no time for is said. Rows go to
results/gpu_<device>.csv as they come; on a CPU only to ``--output``. Ends with 1 if a check
failed.
"""

import argparse
import dataclasses
import importlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent))  # the package, where it is not installed

import machine  # noqa: E402
import torch  # noqa: E402
from gpu_checks import Check, Finding, Place  # noqa: E402
from rows import write_rows  # noqa: E402

# In this order; seconds that each may take, of nine minutes with the start.
SECTIONS = {
    "kernels": 45,
    "equality": 90,
    "edges": 45,
    "modes": 45,
    "speed": 110,
    "compiled": 110,
    "training": 190,
}
MINUTES = 9.0
PATIENCE = 20  # seconds that a check may go on when the time of its section is over
SAVED_EACH = 10  # seconds
UNUSABLE = 3  # what a section's process ends with when the device takes no more
COLUMNS = (
    *("section", "case", "dtype", "method", "route", "kernel", "ok", "error", "bound"),
    *("ms", "peak_mib", "seconds", "note", "device", "capability", "cuda", "cudnn"),
    *("torch", "commit", "cpu", "date"),
)
Row = dict[str, str]


def main() -> int:
    args = _arguments()
    place = Place(torch.device("cuda" if torch.cuda.is_available() else "cpu"), args.small)
    if args.section is not None:
        return _work(args.section, place, args.start, args.seconds)
    facts = device_facts(place)
    output = args.output
    if output is None and place.on_cuda:
        small = "_small" if place.small else ""
        output = machine.ROOT / "results" / f"gpu_{device_slug(facts['device'])}{small}.csv"
    print(", ".join(f"{key} {value}" for key, value in facts.items() if value), flush=True)
    end = time.perf_counter() + 60 * args.minutes
    rows: list[Row] = []
    written = time.perf_counter()
    run = _in_this_process if place.small else _in_a_process
    for section in args.only:
        left = end - time.perf_counter()
        seconds = left if place.small else min(SECTIONS[section], left)
        for row in _section(section, place, seconds, run):
            rows.append(row | facts)
            if row["ok"] == "no":
                print(f"FAILED {_words(row)}", flush=True)
            # Whoever stops it keeps what there is.
            if output is not None and time.perf_counter() - written > SAVED_EACH:
                write_rows(output, COLUMNS, rows)
                written = time.perf_counter()
    if output is not None:
        write_rows(output, COLUMNS, rows)
    print(summary(rows))
    if output is not None:
        print(output)
    return 1 if any(row["ok"] == "no" for row in rows) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=[*SECTIONS])
    parser.add_argument("--small", action="store_true", help="tiny sizes; so without a GPU")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all sections")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="another file")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.small = args.small or not torch.cuda.is_available()
    return args


Runner = Callable[[str, Place, int, float], Iterator[tuple[int, Row]]]


def _section(section: str, place: Place, seconds: float, run: Runner) -> Iterator[Row]:
    """The rows of all its checks; the last one says it where the time was over, or it cannot go."""
    begin, start, count = time.perf_counter(), 0, 0
    print(f"{section}: at most {max(seconds, 0):.0f} s", flush=True)
    while start is not None:
        left = seconds - (time.perf_counter() - begin)
        if left <= 0:
            note = f"from check {start + 1} on there was no time"
            yield row_of(section, Finding(section, note=note), 0.0)
            break
        following = None
        for index, row in run(section, place, start, left):
            count += 1
            if row["case"] == _ENDED:
                following = index
            else:
                yield row
        start = following
    print(f"{section}: {count} rows in {time.perf_counter() - begin:.0f} s", flush=True)


# The case of a row that is none: the process has ended, and goes on with the check of this index.
_ENDED = "the process has ended"


def _in_this_process(
    section: str, place: Place, start: int, seconds: float
) -> Iterator[tuple[int, Row]]:
    try:
        every = load_section(section)(place)
    except Exception as error:  # such as a package that is not there
        note = f"{type(error).__name__}: {error}"[:300]
        yield 0, row_of(section, Finding(section, ok=False, note=note), 0.0)
        return
    yield from run_checks(section, every, place, start, seconds)


def _in_a_process(
    section: str, place: Place, start: int, seconds: float
) -> Iterator[tuple[int, Row]]:
    """The rows that a process prints, until it ends or its time does."""
    words = [sys.executable, __file__, "--section", section, "--start", str(start)]
    words += ["--seconds", f"{seconds:.1f}"] + ["--small"] * place.small
    # Deterministic cuBLAS has to be asked for before it is loaded.
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONUNBUFFERED": "1"}
    lines: queue.Queue[str | None] = queue.Queue()
    end, index, under_way, whole = time.perf_counter() + seconds + PATIENCE, start, "", False
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
        reader.start()
        try:
            while (line := lines.get(timeout=max(0.1, end - time.perf_counter()))) is not None:
                said = json.loads(line) if line.startswith("{") else {}
                if "begin" in said:
                    index, under_way = said["begin"], said["name"]
                elif "row" in said:
                    yield index, said["row"]
                whole = whole or "whole" in said
            note = ""
        except queue.Empty:
            note = f"stopped {PATIENCE} s after the time of its section"
        finally:
            process.kill()
            code = process.wait()
            reader.join()
        log.seek(0)
        last = (log.read().strip().splitlines() or [""])[-1]
    if whole:
        return
    if note:
        yield index, row_of(section, Finding(under_way, ok=False, note=note), seconds)
        return
    note = f"the process ended with {code}: {last[:300]}"
    if code == UNUSABLE:
        note = "it left the device unusable"
    yield index, row_of(section, Finding(under_way or section, ok=False, note=note), 0.0)
    if under_way:
        yield index + 1, row_of(section, Finding(_ENDED), 0.0)


def _read(process: subprocess.Popen[str], lines: "queue.Queue[str | None]") -> None:
    assert process.stdout is not None
    with process.stdout as said:
        for line in said:
            lines.put(line)
    lines.put(None)


def _work(section: str, place: Place, start: int, seconds: float) -> int:
    """The process of a section: a line of JSON for what begins, and for each row."""
    every = load_section(section)(place)

    def begin(index: int) -> None:
        print(json.dumps({"begin": index, "name": every[index].name}), flush=True)

    for _, row in run_checks(section, every, place, start, seconds, begin):
        print(json.dumps({"row": row}), flush=True)
        try:
            place.synchronize()
        except RuntimeError:
            return UNUSABLE
    print(json.dumps({"whole": True}), flush=True)
    return 0


def load_section(section: str) -> Callable[[Place], list[Check]]:
    """The function that lists its checks; importing it is a part of the section."""
    return importlib.import_module(f"gpu_{section}").checks


def run_checks(
    section: str,
    every: list[Check],
    place: Place,
    start: int,
    seconds: float,
    begin: Callable[[int], None] = lambda index: None,
) -> Iterator[tuple[int, Row]]:
    """(index, row) of each finding; a check that raises is a finding that failed."""
    end = time.perf_counter() + seconds
    exact = section != "training"
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=not exact):
        for index, check in enumerate(every[start:], start):
            if time.perf_counter() > end:
                note = f"from here on ({len(every) - index} checks) there was no time"
                yield index, row_of(section, Finding(check.name, note=note), 0.0)
                return
            begin(index)
            since = time.perf_counter()
            try:
                for finding in check.run(place):
                    yield index, row_of(section, finding, time.perf_counter() - since)
                    since = time.perf_counter()
            except Exception as error:  # whatever it is, the others are run
                words = (str(error).splitlines() or [""])[0][:300]
                finding = Finding(check.name, ok=False, note=f"{type(error).__name__}: {words}")
                yield index, row_of(section, finding, time.perf_counter() - since)
            finally:
                if place.on_cuda:
                    _empty_cache()


def _empty_cache() -> None:
    """What one check has allocated is no part of another's peak."""
    try:
        torch.cuda.empty_cache()
    except RuntimeError:
        return  # the device takes no more: who synchronises next finds it


def row_of(section: str, finding: Finding, seconds: float) -> Row:
    """A finding as the file has it."""
    numbers = {"error": finding.error, "bound": finding.bound, "peak_mib": finding.peak_mib}
    numbers |= {"ms": finding.milliseconds, "seconds": seconds}
    known = dataclasses.asdict(finding)
    return {
        "section": section,
        **{key: known[key] for key in ("case", "dtype", "method", "route", "kernel", "note")},
        "ok": {None: "", True: "yes", False: "no"}[finding.ok],
        **{key: "" if value is None else f"{value:.4g}" for key, value in numbers.items()},
    }


def summary(rows: list[Row]) -> str:
    """A line for each section, then what failed and what was not run."""
    lines = [f"{'section':<10} {'met':>5} {'failed':>6} {'said':>5}"]
    for section in dict.fromkeys(row["section"] for row in rows):
        counts = Counter(row["ok"] for row in rows if row["section"] == section)
        lines.append(f"{section:<10} {counts['yes']:>5} {counts['no']:>6} {counts['']:>5}")
    lines += [f"FAILED {_words(row)}" for row in rows if row["ok"] == "no"]
    not_run = [row for row in rows if not row["ok"] and "no time" in row["note"]]
    return "\n".join([*lines, *(f"not run: {_words(row)}" for row in not_run)])


def _words(row: Row) -> str:
    keys = ("section", "case", "dtype", "method", "route", "kernel")
    words = ", ".join(row[key] for key in keys if row[key])
    if row["error"]:
        words += f": off by {row['error']}, at most {row['bound']}"
    return words + (f" ({row['note']})" if row["note"] else "")


def device_facts(place: Place) -> dict[str, str]:
    """What it ran on, equal for every row."""
    known = machine.facts()
    facts = {"device": known["cpu"], "capability": "", "cuda": "", "cudnn": ""}
    if place.on_cuda:
        major, minor = torch.cuda.get_device_capability(place.device)
        facts = {
            "device": torch.cuda.get_device_name(place.device),
            "capability": f"{major}.{minor}",
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
        }
    return facts | {key: known[key] for key in ("torch", "commit", "cpu", "date")}


def device_slug(name: str) -> str:
    """A GPU's name for files: "NVIDIA H200" -> "nvidia-h200"."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


if __name__ == "__main__":
    sys.exit(main())
