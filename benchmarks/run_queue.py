"""A queue of training runs, each written down as it ends.

    python benchmarks/run_queue.py benchmarks/cifar10.yaml            the runs that are not done yet
    python benchmarks/run_queue.py benchmarks/cifar10.yaml --only 'sagan*'
    python benchmarks/run_queue.py benchmarks/cifar10.yaml --list    what there is and what is done
    python benchmarks/run_queue.py benchmarks/cifar10.yaml --plot    the curves again, from the file

The YAML file names each run: its overrides of `python train.py`, and its seeds. A finished run adds
a row to results/<file>.csv and its epochs to results/<file>_curves.csv. Stop it with Ctrl-C at any
time: started again, it goes on with the run that was interrupted, where that was. A run that fails
does not keep the others from theirs; it is named at the end, with exit code 1.

A row stays when the recipe behind its command changes (each has its commit): delete it then.
"""

import argparse
import csv
import fnmatch
import hashlib
import io
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import machine
import yaml
from rich.console import Console
from rich.table import Table

from cvattn.harness.csv_log import read_metrics
from cvattn.harness.files import CannotWrite, write_text
from cvattn.harness.paths import assigned
from cvattn.harness.summary import read_summary

COLUMNS = (
    *("run", "seed", "command", "data", "test_accuracy", "test_accuracy_views", "views"),
    *("test_cer", "further_tests", "val_accuracy", "trained_on_val", "gamma"),
    *("val_accuracy_gamma_0", "minutes", "pflop", "sample", "samples_per_second", "epochs"),
    *("parameters", "macs_per_sample"),
    *("precision", "cpu", "cores", "bf16_instructions", "torch", "commit", "date"),
)
CURVES = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")


@dataclass(frozen=True)
class Job:
    """One training run: its name in the file, its overrides and its seed."""

    run: str
    overrides: tuple[str, ...]
    seed: int

    @property
    def command(self) -> str:
        return shlex.join(["python", "train.py", *self.overrides, f"seed={self.seed}"])

    @property
    def key(self) -> tuple[str, str]:
        return self.run, self.command

    @property
    def folder(self) -> str:
        """Another one for other overrides: what is continued is what was asked for."""
        return f"{self.run}_seed{self.seed}_{hashlib.sha1(self.command.encode()).hexdigest()[:7]}"


def main() -> int:
    args = _arguments()
    console = Console(soft_wrap=True, highlight=False)
    jobs = [j for j in read_jobs(args.file) if fnmatch.fnmatchcase(j.run, args.only)]
    results = args.output or machine.ROOT / "results" / f"{args.file.stem}.csv"
    if not jobs:
        console.print(f"--only {args.only}: {args.file} has no such run")
        return 2
    done = {(row["run"], row["command"]) for row in read_rows(results)}
    left = [job for job in jobs if job.key not in done]
    if args.list:
        for job in jobs:
            state = "done" if job.key in done else "to do"
            console.print(f"{state}  {job.run}  {job.command}", markup=False)
        return 0
    again = shlex.join(["python", *sys.argv])
    with signals_to(_stop):
        try:
            return _work([] if args.plot else left, args.folder.absolute(), results, console)
        except Stopped as stopped:
            console.print(f"The queue goes on with\n  {again}", markup=False)
            return 128 + stopped.number
        except CannotWrite as error:
            console.print(f"{error} The queue goes on with\n  {again}", markup=False)
            return 1


def _work(jobs: Sequence[Job], place: Path, results: Path, console: Console) -> int:
    """Run the jobs, write them down, show and draw what there is; the exit code."""
    curves = results.with_name(f"{results.stem}_curves.csv")
    failed: list[str] = []
    for number, job in enumerate(jobs, start=1):
        console.print(f"{number} of {len(jobs)}: {job.run}  {job.command}", markup=False)
        folder = place / job.folder
        code = run_to_its_end(_start(job, folder))
        if code or read_summary(folder / "summary.json") is None:
            why = f"exit code {code}" if code else "exit code 0 and no whole summary.json"
            failed.append(f"{job.run} ended with {why}; its folder is {folder}")
            console.print(failed[-1], markup=False)
            continue
        row = row_of(job, folder)
        # A run is done when its row is there: what was left by a stop before that is replaced.
        same = {"run": job.run, "seed": str(job.seed)}
        append(curves, ("run", "seed", "epoch", *CURVES), _epochs(job, folder), instead_of=same)
        append(results, COLUMNS, [row])
    console.print(summary(read_rows(results)))
    if read_rows(curves):
        from curves import draw  # matplotlib is slow to load

        draw(read_rows(curves), results.with_suffix(".png"))
        console.print(f"rows, curves, picture: {results.parent.name}/{results.stem}*")
    for message in failed:
        console.print(message, style="bold red", markup=False)
    return 1 if failed else 0


class Stopped(Exception):
    """Ctrl-C or SIGTERM came for the queue."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def signals_to(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Within it Ctrl-C and SIGTERM go to the handler."""
    before = {n: signal.signal(n, handler) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def _stop(number: int, frame: object) -> None:
    raise Stopped(number)


def run_to_its_end(command: Sequence[str]) -> int:
    """Run it, and pass Ctrl-C and SIGTERM on to it.

    Returns:
        Its exit code.

    Raises:
        Stopped: a signal came, and the process has ended.
    """
    came: list[int] = []
    started: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: object) -> None:
        came.append(number)
        for process in started:
            process.send_signal(number)

    with signals_to(forward):
        # In a process group of its own, or the terminal's Ctrl-C would reach it twice.
        process = subprocess.Popen(command, cwd=machine.ROOT, process_group=0)
        started.append(process)
        if came:  # while it was being started
            process.send_signal(came[0])
        code = process.wait()
    if came:
        raise Stopped(came[0])
    return code


def summary(rows: list[dict[str, str]]) -> Table:
    """A line for each run: means over its seeds, with the 95 % interval (Student's t)."""
    table = Table(title="mean over seeds (95 % interval)", title_justify="left")
    for column in ("run", "seeds", "test", "test, views", "validation", "minutes", "PFLOP"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for run in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == run]
        honest = [row for row in mine if row["trained_on_val"] != "True"]
        table.add_row(
            run,
            str(len(mine)),
            *(_mean(mine, key) for key in ("test_accuracy", "test_accuracy_views")),
            _mean(honest, "val_accuracy"),
            f"{statistics.mean(float(row['minutes']) for row in mine):.1f}",
            f"{statistics.mean(float(row['pflop']) for row in mine):.3f}",
        )
    return table


def _mean(rows: list[dict[str, str]], key: str) -> str:
    values = [100 * float(row[key]) for row in rows if row[key]]
    return mean_text(values) if values else ""


def mean_text(values: Sequence[float], sign: str = "") -> str:
    """The mean and, of two values or more, its 95 % interval (Student's t)."""
    middle, half = mean_interval(values)
    text = f"{middle:{sign}.2f}"
    ends = f"{middle - half:{sign}.2f} to {middle + half:{sign}.2f}"
    return f"{text} ({ends})" if len(values) > 1 else text


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and half the width of its 95 % interval; of a single value that is infinite."""
    if len(values) < 2:
        return statistics.mean(values), float("inf")
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(half)


def read_jobs(path: Path) -> list[Job]:
    """The runs of the file: each with its first seed, then each with its second, and so on."""
    named = yaml.safe_load(path.read_text())
    for name, entry in named.items():
        if set(entry) != {"overrides", "seeds"}:
            raise SystemExit(f"{path}: {name} has {sorted(entry)}, expected overrides and seeds")
    rounds = zip_longest(*(entry["seeds"] for entry in named.values()))
    return [
        Job(name, tuple(entry["overrides"]), seed)
        for seeds in rounds
        for (name, entry), seed in zip(named.items(), seeds, strict=True)
        if seed is not None
    ]


def _start(job: Job, folder: Path) -> list[str]:
    """The command line, which also continues the run or finds it finished."""
    arguments = [*job.overrides, f"seed={job.seed}", assigned("hydra.run.dir", folder)]
    return [sys.executable, "train.py", *arguments, "resume=auto"]


def row_of(job: Job, folder: Path) -> dict[str, object]:
    """What is written down of a finished run."""
    summary = read_summary(folder / "summary.json")
    assert summary is not None
    facts = machine.facts()
    gammas, unit = summary["gamma"], summary["data"]["unit"]
    further = summary.get("further_tests", {})
    return {
        "run": job.run,
        "seed": job.seed,
        "command": job.command,
        "data": summary["data"]["label"],
        "test_accuracy": summary["test"].get("accuracy", ""),
        "test_accuracy_views": summary["test"].get("accuracy_views", ""),
        "views": summary.get("test_views", ""),
        "test_cer": summary["test"].get("cer", ""),
        "further_tests": "; ".join(f"{k}: {v['accuracy']:.4f}" for k, v in further.items()),
        "val_accuracy": summary["val"].get("accuracy", ""),
        "trained_on_val": summary["data"]["train_on_val"],
        "gamma": " ".join(f"{value:.4f}" for value in gammas.values()),
        "val_accuracy_gamma_0": accuracy_without_gamma(folder) if gammas else "",
        **{key: summary[key] for key in ("pflop", "epochs", "parameters")},
        "sample": unit,
        "macs_per_sample": summary[f"macs_per_{unit}"],
        "minutes": f"{summary['minutes']:.2f}",
        "samples_per_second": f"{summary[f'{unit}s_per_second']:.0f}",
        "precision": summary["precision"],
        **{key: facts[key] for key in ("cpu", "bf16_instructions", "torch", "date")},
        "cores": machine.cores(),
        "commit": " ".join(filter(None, [*summary["earlier_commits"], summary["commit"]])),
    }


def accuracy_without_gamma(folder: Path) -> float:
    """Validation accuracy of the trained network with every gamma set to 0."""
    import torch
    from hydra.utils import instantiate

    import cvattn

    network = cvattn.load(folder / "checkpoints" / "last.ckpt")
    with torch.no_grad():
        for block in network.modules():
            if isinstance(block, cvattn.SelfAttention2d):
                block.gamma.zero_()
    data = instantiate(network.meta["config"]["data"])
    data.prepare_data()
    network = network.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        right = sum(
            int((network(images).argmax(-1) == labels).sum())
            for images, labels in data.val_dataloader()
        )
    return right / len(data.split("val").labels)


def _epochs(job: Job, folder: Path) -> list[dict[str, object]]:
    rows = read_metrics(folder / "metrics.csv")
    return [
        {"run": job.run, "seed": job.seed, "epoch": epoch + 1}
        | {key: f"{row[key]:.5f}" for key in CURVES if key in row}
        for epoch, row in sorted(rows.items())
    ]


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(
    path: Path,
    columns: tuple[str, ...],
    rows: list[dict[str, object]],
    instead_of: dict[str, str] | None = None,
) -> None:
    """Add the rows, all or nothing, in place of those that have the values of ``instead_of``."""
    kept = [
        row
        for row in read_rows(path)
        if instead_of is None or any(row[key] != value for key, value in instead_of.items())
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows([*kept, *rows])
    write_text(path, text.getvalue())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="the list of runs, a YAML file")
    parser.add_argument(
        "--only", default="*", metavar="PATTERN", help="runs by name, as in a shell"
    )
    parser.add_argument("--list", action="store_true", help="show the runs and stop")
    parser.add_argument("--plot", action="store_true", help="train nothing")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="another results file")
    parser.add_argument(
        "--folder", type=Path, default=machine.ROOT / "outputs" / "queue", help="of the runs"
    )
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
