"""``cvattn compare``: the same question put to several runs with the same seeds, and the answer."""

import argparse
import fnmatch
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cvattn.cli.common import CommandError, Parser, shown
from cvattn.comparison import queue, report
from cvattn.comparison.arms import read_arms
from cvattn.comparison.compared import Comparison, comparisons
from cvattn.comparison.jobs import Job, jobs_of, read_jobs
from cvattn.comparison.planned import Plan, plan
from cvattn.comparison.rows import read_rows
from cvattn.harness import ConfigError
from cvattn.harness.config.paths import short
from cvattn.harness.reporting.console import plain_console
from cvattn.system import figures
from cvattn.system.files import CannotWrite

_SEEDS = 5


def run(arguments: Sequence[str]) -> int:
    """The command: 1 if a run failed, 128 + the signal's number if it was stopped."""
    args = _parser().read(arguments)
    if args.at_once < 1:
        raise CommandError(f"--at-once {args.at_once} must be at least 1")
    try:
        name, jobs = _asked(args)
    except ConfigError as error:
        raise CommandError(str(error)) from error
    results = _results(args.output, name)
    chosen = [job for job in jobs if fnmatch.fnmatchcase(job.run, args.only)]
    if not chosen:
        runs = ", ".join(dict.fromkeys(job.run for job in jobs))
        raise CommandError(f"--only {args.only}: there is no such run; there are: {runs}")
    todo = queue.left(chosen, results)
    console = plain_console()
    if args.list:
        for job in chosen:
            state = "to do" if job in todo else "done"
            console.print(f"{state}  {job.run}  {job.command}", soft_wrap=True)
        return 0
    failed: list[str] = []
    if todo and not args.plot:
        _check(todo, console)
        again = shlex.join(["python", "-m", "cvattn", "compare", *arguments])
        goes_on = f"The comparison goes on with\n  {again}"
        try:
            failed = queue.work(
                todo, results=results, place=args.folder, console=console, at_once=args.at_once
            )
        except queue.Stopped as stopped:
            console.print(goes_on, soft_wrap=True)
            return 128 + stopped.number
        except CannotWrite as error:
            raise CommandError(f"{error} {goes_on}", code=1) from error
    _show(jobs, results, console)
    for message in failed:
        console.print(message, style="bold red", soft_wrap=True)
    return 1 if failed else 0


def _asked(args: argparse.Namespace) -> tuple[str, list[Job]]:
    """A name for files, and every run."""
    first = Path(args.settings[0])
    if first.suffix in (".yaml", ".yml") and "=" not in args.settings[0]:
        if len(args.settings) > 1:
            raise ConfigError(f"{args.settings[1]}: a list of runs says all of each run itself")
        if args.seeds is not None:
            raise ConfigError(f"--seeds: {shown(first)} says the seeds of each run itself")
        return first.stem, read_jobs(first)
    if args.seeds is not None and args.seeds < 1:
        raise ConfigError(f"--seeds {args.seeds}: expected how many, 1 or more")
    seeds = range(_SEEDS if args.seeds is None else args.seeds)
    folder = [] if args.config_dir is None else [f"--config-dir={args.config_dir}"]
    arms = read_arms([*args.settings, *folder])
    return arms.name, jobs_of({name: (given, seeds) for name, given in arms.overrides.items()})


def _results(given: Path, name: str) -> Path:
    return given if given.suffix == ".csv" else given / f"{name}.csv"


def _check(jobs: Sequence[Job], console: Console) -> None:
    """Compose every run, build its network and say what it costs, before one is trained."""
    plans: dict[str, Plan] = {}
    for job in jobs:
        if job.run not in plans:
            try:
                plans[job.run] = plan(job)
            except ConfigError as error:
                raise CommandError(str(error)) from error
    for name, each in plans.items():
        console.print(
            f"{name}: {each.macs / 1e6:,.3f} million MACs per {each.unit}, "
            f"{each.parameters:,} parameters",
            soft_wrap=True,
        )


def _show(jobs: Sequence[Job], results: Path, console: Console) -> None:
    """Tables, sentences and pictures of what there is."""
    found, others = comparisons(jobs, read_rows(results))
    if others:
        console.print(
            f"{others} rows of {short(results)} are left out: runs of these names, from other "
            "commands",
            soft_wrap=True,
        )
    if not found:
        console.print("no run has finished yet")
        return
    files = [results.name]
    for number, comparison in enumerate(found, start=1):
        console.print(report.cost_table(comparison))
        for metric in comparison.metrics:
            console.print(report.metric_table(comparison, metric))
        for sentence in report.sentences(comparison):
            console.print(sentence, soft_wrap=True)
        if comparison.metrics:
            name = f"{results.stem}_compared{'' if number == 1 else number}.png"
            files += _draw(comparison, results.with_name(name))
    files += _draw_curves(found, results)
    console.print(f"Everything is in {short(results.parent)}/: {', '.join(files)}", soft_wrap=True)


def _draw(comparison: Comparison, path: Path) -> list[str]:
    with figures.tolerate_failure(path.name):
        from cvattn.comparison import picture  # matplotlib is slow to load

        picture.draw(comparison, path)
        return [path.name]
    return []


def _draw_curves(found: Sequence[Comparison], results: Path) -> list[str]:
    there = {(row["run"], row["seed"]) for each in found for row in each.rows}
    file, path = queue.curves_file(results), results.with_suffix(".png")
    curves = [row for row in read_rows(file) if (row["run"], row["seed"]) in there]
    judged = [metric.column.replace("_", "/", 1) for each in found for metric in each.metrics]
    if not curves or not judged:
        return []
    if len({row["epoch"] for row in curves}) == 1:  # one point is no curve
        return [file.name]
    with figures.tolerate_failure(path.name):
        from cvattn.comparison.curves import draw

        draw(curves, path, judged=judged[0])
        return [file.name, path.name]
    return []


def _parser() -> Parser:
    parser = Parser(
        prog="cvattn compare",
        usage="cvattn compare experiment=NAME [KEY=VALUE ...] [--seeds N] [-o FOLDER | FILE.csv]\n"
        "       cvattn compare KEY=ONE,OTHER [KEY=VALUE ...] [--seeds N] [-o FOLDER | FILE.csv]\n"
        "       cvattn compare LIST.yaml [-o FOLDER | FILE.csv]",
        description="Train what is to be compared, each with the same seeds, and say how far the "
        "others are from the first, with 95 %% intervals, and what each costs. The arms are what "
        "an experiment sweeps, the values of a key with several, or the runs of a list. Stopped "
        "at any time (Ctrl-C), the same command goes on. More seeds add to what is there.",
    )
    parser.add_argument(
        "settings",
        nargs="+",
        metavar="KEY=VALUE",
        help="as of training; or a YAML file of runs, each with overrides and seeds",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help=f"0 to N - 1 ({_SEEDS} seeds)")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="make these runs, by name")
    parser.add_argument(
        "--at-once",
        type=int,
        default=1,
        metavar="N",
        help="runs beside each other, each with its share of the cores (1)",
    )
    parser.add_argument("--list", action="store_true", help="show the runs, train nothing")
    parser.add_argument("--plot", action="store_true", help="tables and pictures, train nothing")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("outputs/compare"),
        metavar="PATH",
        help="a folder, or a CSV file with pictures beside it (outputs/compare)",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("outputs/queue"),
        metavar="FOLDER",
        help="of the runs (outputs/queue)",
    )
    parser.add_argument("--config-dir", metavar="FOLDER", help="with experiments of your own")
    return parser
