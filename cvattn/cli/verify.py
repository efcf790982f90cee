"""``cvattn verify recipe=NAME``: train a recipe again and say whether it gives what it promises."""

import dataclasses
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

import cvattn
from cvattn.cli.common import CommandError, Parser
from cvattn.comparison.metrics import Metric
from cvattn.harness.config.paths import assigned
from cvattn.inference.own_data import MODULES, data_here, loaded
from cvattn.system import did_you_mean

_MARK = "# contracts:"
_ROOT = Path(cvattn.__file__).parents[1]  # of the repository, if this is one


@dataclass(frozen=True)
class Contract:
    """What a recipe promises on one data set, as the comment on top of its file states it.

    Attributes:
        command: ``python train.py ...``, without a seed.
        data: its name, and whether it is the JPEG copy: accuracies on that are lower.
        metric: of the test set: "accuracy", "accuracy_views" (see ``cvattn evaluate --views``),
            "mean_iou" of masks, "loss" of a flow or "swd" of a GAN.
        mean: over ``seeds``, in percent; a loss or distance as it is.
        expect: likewise; 95 % of single runs land in it.
        seeds: those that ``mean`` and ``expect`` come from.
        pflop: training cost, the same on any machine.
        minutes, machine, commit: of those runs; told, not judged.
    """

    command: str
    data: str
    metric: str
    mean: float
    expect: tuple[float, float]
    seeds: tuple[int, ...]
    pflop: float
    minutes: float
    machine: str
    commit: str


def run(arguments: Sequence[str]) -> int:
    """The command. 0 if the run landed inside, 1 if not."""
    args = _parser().read(arguments)
    given = dict(text.partition("=")[::2] for text in args.choices)
    unknown = [name for name in given if name not in ("recipe", "data", "seed")]
    if unknown or "recipe" not in given:
        wrong = unknown[0] if unknown else ""
        raise CommandError(
            f"expected recipe=NAME, data=NAME, seed=NUMBER{did_you_mean(wrong, ['recipe'])}"
        )
    data, contract = _choose(given["recipe"], given.get("data"))
    seed = given.get("seed", str(max(contract.seeds) + 1))
    if not seed.isdecimal():
        raise CommandError(f"seed={seed}: expected a whole number, 0 or more")
    _check_data(data, contract)
    folder = Path(
        f"outputs/verify_{given['recipe']}_{data}_seed{seed}_{time.time():.0f}"
    ).absolute()
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{contract.command} seed={seed}", markup=False)
    _, script, *overrides = shlex.split(contract.command)
    command = [sys.executable, str(_ROOT / script), *overrides, f"seed={seed}"]
    code = subprocess.call([*command, assigned("hydra.run.dir", folder)])
    if code:
        raise CommandError(f"training ended with exit code {code}", code=1)
    return _judge(contract, json.loads((folder / "summary.json").read_text()), console)


def contracts(path: Path) -> dict[str, Contract]:
    """The contracts in the comment on top of a recipe's file, by data set."""
    lines: list[str] = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        if lines or line.startswith(_MARK):
            lines.append(line[2:])
    found = yaml.safe_load("\n".join(lines)) or {}
    return {data: _read(path, data, given) for data, given in found.get("contracts", {}).items()}


def _read(path: Path, data: str, given: Mapping[str, Any]) -> Contract:
    names = {field.name for field in dataclasses.fields(Contract)}
    if set(given) != names:
        raise CommandError(
            f"{path}: the contract of {data} has {sorted(given)}, expected {sorted(names)}"
        )
    values = dict(given) | {"expect": tuple(given["expect"]), "seeds": tuple(given["seeds"])}
    return Contract(**values)


def _choose(recipe: str, data: str | None) -> tuple[str, Contract]:
    folder = _ROOT / "conf" / "recipe"
    if not (_ROOT / "train.py").is_file() or not folder.is_dir():
        raise CommandError(
            "recipes belong to the repository: clone it, pip install -e . and run this there"
        )
    path = folder / f"{recipe}.yaml"
    if not path.is_file():
        raise CommandError(
            f"recipe={recipe}{did_you_mean(recipe, sorted(p.stem for p in folder.iterdir()))}"
        )
    known = contracts(path)
    if not known:
        raise CommandError(f"recipe={recipe} states no contract")
    data = data or next(iter(known))
    if data not in known:
        raise CommandError(
            f"recipe={recipe} has no contract for data={data}{did_you_mean(data, known)}"
        )
    return data, known[data]


def _check_data(name: str, contract: Contract) -> None:
    """Whether the images are those the contract is of: it would show only after the training."""
    if name not in MODULES:
        return  # no images
    label = loaded(data_here(name)).label
    if label == contract.data:
        return
    how = (
        " Of official pixels, `python benchmarks/jpeg_copy.py data data_jpeg` makes such a copy; "
        "with CVATTN_DATA=data_jpeg it is taken."
    )
    raise CommandError(
        f"the contract is of {contract.data}, and here is {label}: other pixels, other accuracies."
        + (how if contract.data.endswith("(JPEG copy)") else "")
    )


def _judge(contract: Contract, summary: Mapping[str, Any], console: Console) -> int:
    low, high = contract.expect
    metric = Metric(f"test_{contract.metric}", "max")
    share = 100 if metric.unit else 1
    reached = share * summary["test"].get(contract.metric, float("nan"))
    digits = 2 if metric.unit else 4
    inside = low <= reached <= high
    same_cost = abs(summary["pflop"] / contract.pflop - 1) <= 0.01
    table = Table(title="inside" if inside and same_cost else "OUTSIDE", title_justify="left")
    for column in ("", "promised", "now"):
        table.add_column(column, justify="right" if column else "left")
    promised = f"{contract.mean:.{digits}f}; 95 %: {low:.{digits}f} to {high:.{digits}f}"
    name = ", ".join(filter(None, [metric.name, metric.unit]))
    table.add_row(name, promised, f"{reached:.{digits}f}")
    table.add_row("data", contract.data, summary["data"]["label"])
    table.add_row("training PFLOP", f"{contract.pflop:.4f}", f"{summary['pflop']:.4f}")
    machine = summary["machine"]
    here = f"{machine['cores']} cores, {machine['gpu'] or machine['processor']}"
    table.add_row("minutes (not judged)", f"{contract.minutes:.1f}", f"{summary['minutes']:.1f}")
    table.add_row("machine", contract.machine, here)
    table.add_row("commit", contract.commit[:7], (summary["commit"] or "none")[:7])
    console.print(table)
    if not same_cost:
        console.print("The cost differs: the network or the number of steps is not the recipe's.")
    return 0 if inside and same_cost else 1


def _parser() -> Parser:
    parser = Parser(
        prog="cvattn verify",
        description="Train a recipe of this repository again, with a seed that it was not measured "
        "with, and say whether its test lands where 95 % of the runs do.",
    )
    parser.add_argument(
        "choices",
        nargs="+",
        metavar="recipe=NAME [data=NAME] [seed=NUMBER]",
        help="data: one of those on top of conf/recipe/NAME.yaml, the first if not said",
    )
    return parser
