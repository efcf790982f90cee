"""What a person reads at the start and the end of a run, and what a summary says before it."""

import shlex
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from cvattn.cost import count_parameters
from cvattn.harness.assemble import Run
from cvattn.harness.config.paths import continue_command, short
from cvattn.harness.provenance import machine, versions
from cvattn.harness.reporting.summary import figure
from cvattn.maps import attention_modules
from cvattn.tasks.making import MakingTask

# Commands that take a network, by what it was trained on; {} is its checkpoint.
_NEXT = {
    "image": ("evaluate {}", "predict {} IMAGE...", "explore {}"),
    "line": ("predict {} LINE.png", "explore {}"),
    "string": (),
}


def show_start(console: Console, run: Run, trainer: pl.Trainer) -> None:
    """One short panel."""
    info = run.info
    lines = {
        "network": f"{run.name}: {type(run.network).__name__}, "
        f"{count_parameters(run.network):,} parameters, {run.macs / 1e9:.3f} GMACs per {info.unit}",
        "data": f"{info.label}: {info.train_size:,} / {info.val_size:,} / "
        f"{info.test_size:,} {info.unit}s, from {info.source}",
        "device": f"{trainer.strategy.root_device.type} x {trainer.world_size}, "
        f"{run.precision.choice} ({run.precision.reason})",
        "run folder": short(run.folder),
    }
    if run.notes:
        lines["note"] = "\n".join(run.notes)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, text in lines.items():
        table.add_row(key, text)
    position = None if run.saved is None else run.saved.position
    title = "training" if position is None else f"continuing {position.words}"
    if run.finished:
        title = "trained; what is left is the test and the report"
    console.print(Panel(table, title=title, title_align="left", expand=False))


def show_end(console: Console, summary: dict[str, Any], run: Run) -> None:
    """One table, and what to do next."""
    run_dir, unit = run.folder, run.info.unit
    table = Table(title=f"{summary['model']} on {summary['data']['label']}", title_justify="left")
    cells = {}
    for metric, name in run.task.shown.items():
        part, _, key = metric.partition("/")
        cells[name] = figure(metric, summary[part].get(key))
    cells |= {
        "minutes": f"{summary['minutes']:.1f}",
        f"{unit}s/s": f"{summary[f'{unit}s_per_second']:,.0f}",
        "training PFLOP": f"{summary['pflop']:.4f}",
    }
    for name in cells:
        table.add_column(name, justify="right", overflow="fold")  # a figure cut short is another
    table.add_row(*cells.values())
    if summary["gamma"]:
        gammas = (f"{name} {gamma:.3g}" for name, gamma in summary["gamma"].items())
        table.caption, table.caption_justify = f"gamma: {', '.join(gammas)}", "left"
    console.print(table)
    for title, found in summary.get("further_tests", {}).items():
        shown = {
            name.removeprefix("test "): figure(metric, found.get(metric.removeprefix("test/")))
            for metric, name in run.task.shown.items()
            if metric.startswith("test/")
        }
        console.print(f"{title}: " + ", ".join(f"{name} {value}" for name, value in shown.items()))
    for note in run.notes:
        console.print(note)
    folder = short(run_dir)
    files = ", ".join(sorted(path.name for path in run_dir.iterdir()))
    console.print(f"Everything is in {folder}/: {files}", soft_wrap=True)
    last = run_dir / "checkpoints" / "last.ckpt"
    if last.exists():
        path = shlex.quote(short(last))
        console.print("Next:")
        looks = bool(attention_modules(run.network))
        own = run.entry["model"]
        # What made an object is not known.
        maker = own if run.again is None else "MODULE:NAME"
        given = f" --network {maker}" if ":" in own else ""
        commands = [
            f"python -m cvattn {command.format(path)}{given}"
            for command in _next(run)
            if looks or not command.startswith("explore")
        ]
        # More of what ended it.
        unit = "steps" if summary["steps"] == run.cfg.trainer.max_steps else "epochs"
        if run.again is None:
            target = f" model._target_={run.cfg.model._target_}" if given else ""
            further = f"{continue_command(last)}{target} trainer.max_{unit}={2 * summary[unit]}"
        else:
            further = f"{run.again}, with more {unit}"
        for command in (*commands, further):
            console.print(f"  {command}", soft_wrap=True)


def _next(run: Run) -> tuple[str, ...]:
    if isinstance(run.task, MakingTask):
        return ("sample {}", "judge {}")
    return _NEXT.get(run.info.unit, ())


def facts(run: Run, trainer: pl.Trainer) -> dict[str, Any]:
    """What can be said of a run before it begins, whatever comes out of it."""
    info = run.info
    return {
        "model": run.name,
        "data": {
            "name": info.name,
            "label": info.label,
            "unit": info.unit,
            "source": info.source,
            "official_pixels": info.official_pixels,
            "fingerprint": info.fingerprint,
            "train": info.train_size,
            "val": info.val_size,
            "test": info.test_size,
            "train_on_val": bool(run.cfg.data.get("train_on_val", False)),
        },
        f"macs_per_{info.unit}": run.macs,
        "seed": run.cfg.seed,
        "notes": run.resolved.get("notes"),
        "precision": run.precision.choice,
        "machine": machine(trainer.strategy.root_device),
        "processes": trainer.world_size,
        "versions": versions(),
        "commit": run.commits[-1],
        "earlier_commits": run.commits[:-1],
        "overrides": run.overrides,
    }
