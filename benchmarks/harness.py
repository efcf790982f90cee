"""What the harness costs: `train.py`'s own path against a bare PyTorch loop and the usual pipeline.

    CVATTN_DATA=... python benchmarks/harness.py          rows in results/harness_<machine>.csv

The same network, optimiser, batches and precision (float32) in all. Each round runs them in turn in
this process; differences and ratios are of rounds, with the 95 % interval of their median.

- bare: batches from our loader, forward, loss, backward, optimiser step; nothing else.
- ours: ``cvattn.harness.fit`` as `train.py` calls it: progress, metrics, checkpoints, pictures.
- usual: a torchvision-style dataset, PIL transforms for each image, a DataLoader with 2 workers,
  and the bare loop.
"""

import argparse
import contextlib
import csv
import io
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import machine
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict
from paired import paired_difference, paired_ratio
from rich.console import Console
from torch import Tensor, nn

from cvattn.data import CIFAR10Data, ImageDataModule
from cvattn.harness import fit
from cvattn.harness.assemble import assemble
from cvattn.harness.config.decisions import register_resolvers
from cvattn.tasks import parameter_groups

STEPS, EPOCHS, VAL_BATCHES = 12, 2, 2
# A quarter of the recipe's batch: what a step costs beside its arithmetic weighs four times more.
SAGAN = ["model=sagan", "data.batch_size=125"]
ONE_LAYER = [
    *("model=vit", "model.num_layers=1", "model.embed_dim=16", "model.num_heads=4"),
    "data.batch_size=4",
]
# All images of one size, as the bare loop has them.
COMMON = [
    *("data=cifar10", "recipe.resizing=[]"),
    *("trainer.precision=32-true", "trainer.accelerator=cpu"),
]
COLUMNS = (
    *("case", "figure", "median", "low", "high", "target", "met", "rounds"),
    *("torch", "commit", "cpu", "bf16_instructions", "date"),
)


def composed(overrides: Sequence[str], run_dir: Path) -> DictConfig:
    """The configuration as `train.py` gets it."""
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(machine.ROOT / "conf")):
        cfg = compose("config", overrides=list(overrides))
    with open_dict(cfg):
        cfg.run_dir = str(run_dir)
    return cfg


def ours(overrides: Sequence[str], steps: int) -> tuple[float, float]:
    """Seconds a step, and seconds an epoch beside its steps, of a whole run."""
    limits = [f"trainer.limit_train_batches={steps}", f"trainer.limit_val_batches={VAL_BATCHES}"]
    limits += [f"trainer.max_epochs={EPOCHS}", "trainer.limit_test_batches=1"]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        cfg = composed([*overrides, *limits], Path(folder) / "run")
        fit(cfg)
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    in_steps = summary["images"] / summary["images_per_second"]
    beside = (summary["minutes"] * 60 - in_steps) / EPOCHS
    return in_steps / (steps * EPOCHS), beside


def bare(
    overrides: Sequence[str],
    steps: int,
    batches: Callable[[ImageDataModule], Iterable[tuple[Tensor, Tensor]]],
) -> tuple[float, float]:
    """The same without a harness; an epoch has its validation."""
    with tempfile.TemporaryDirectory() as folder:
        run = assemble(composed(overrides, Path(folder)))
    network, optimizer = run.network, run.task.optimizer(parameter_groups(run.network))
    smoothing, layout = run.task.label_smoothing, run.task.memory_format
    in_steps, beside = 0.0, 0.0
    for _ in range(EPOCHS):
        network.train()
        source = iter(batches(run.data))
        begin = time.perf_counter()
        for _ in range(steps):
            images, labels = next(source)
            logits = network(images.contiguous(memory_format=layout))
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        in_steps += time.perf_counter() - begin
        del source  # workers end
        begin = time.perf_counter()
        validate(network, run.data, layout)
        beside += time.perf_counter() - begin
    return in_steps / (steps * EPOCHS), beside / EPOCHS


@torch.no_grad()
def validate(network: nn.Module, data: ImageDataModule, layout: torch.memory_format) -> int:
    network.eval()
    right = 0
    for images, labels in itertools.islice(data.val_dataloader(), VAL_BATCHES):
        logits = network(images.contiguous(memory_format=layout))
        right += int((logits.argmax(-1) == labels).sum())
    return right


class PilImages(torch.utils.data.Dataset):
    """Images one by one through PIL, as ``torchvision.datasets.CIFAR10`` gives them."""

    def __init__(self, data: ImageDataModule) -> None:
        from torchvision.transforms import v2

        train, info = data.split("train"), data.describe()
        self.images = train.images.movedim(1, -1).numpy()
        self.labels = train.labels.tolist()
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4, padding_mode="reflect"),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(info.mean, info.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def pil_batches(data: ImageDataModule) -> Iterable[tuple[Tensor, Tensor]]:
    return torch.utils.data.DataLoader(
        PilImages(data), batch_size=data.batch_size, shuffle=True, num_workers=2
    )


def data_path(rounds: int) -> list[float]:
    """Seconds for 50,000 augmented images on one core, with cutout, a round each."""
    data = CIFAR10Data(root=composed(COMMON, Path()).data.root, train_on_val=True, cutout=8)
    loader = data.train_dataloader()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = []
    for epoch in range(rounds + 1):
        begin = time.perf_counter()
        for index in loader.batch_indices(epoch):
            loader.batch(index, epoch)
        seconds.append(time.perf_counter() - begin)
    torch.set_num_threads(threads)
    return seconds[1:]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    console, facts = Console(highlight=False), machine.facts()
    found: list[dict[str, object]] = []

    def say(case: str, figure: str, values: tuple[float, float, float], target: float) -> None:
        middle, low, high = values
        found.append(
            {"case": case, "figure": figure, "target": target, "rounds": args.rounds, **facts}
            | {"median": f"{middle:.4g}", "low": f"{low:.4g}", "high": f"{high:.4g}"}
            | {"met": "yes" if high <= target else "no" if low > target else "open"}
        )
        console.print(
            f"{case}: {figure} {middle:.3g} ({low:.3g} to {high:.3g}), asked: at most {target}"
        )

    threads = torch.get_num_threads()
    loading = data_path(args.rounds)
    say(
        "data",
        "seconds for 50,000 augmented images on one core",
        (statistics.median(loading), min(loading), max(loading)),
        2.0,
    )

    def our_batches(data: ImageDataModule) -> Iterable[tuple[Tensor, Tensor]]:
        return data.train_dataloader()

    for case, overrides, steps in (
        ("sagan", SAGAN, STEPS),
        ("one layer, batch 4", ONE_LAYER, 20 * STEPS),
    ):
        # With so little arithmetic, threads that wait for each other would be what is measured.
        torch.set_num_threads(threads if case == "sagan" else 1)
        rounds: dict[str, list[tuple[float, float]]] = {"ours": [], "bare": [], "usual": []}
        for number in range(args.rounds + 1):
            here = {
                "ours": ours([*COMMON, *overrides], steps),
                "bare": bare([*COMMON, *overrides], steps, our_batches),
            }
            if case == "sagan":
                here["usual"] = bare([*COMMON, *overrides], steps, pil_batches)
            if number:  # the first round warms up
                for way, value in here.items():
                    rounds[way].append(value)
        steps_of = {way: [step for step, _ in values] for way, values in rounds.items()}
        beside = {way: [epoch for _, epoch in values] for way, values in rounds.items()}
        if case == "sagan":
            ratio = paired_ratio(steps_of["ours"], steps_of["bare"])
            say(case, "time of a step, ours : bare loop", ratio, 1.02)
            ratio = paired_ratio(steps_of["ours"], steps_of["usual"])
            say(case, "time of a step, ours : usual pipeline", ratio, 1.0)
        else:
            extra = paired_difference(steps_of["ours"], steps_of["bare"])
            say(case, "ms a step over the bare loop", tuple(1e3 * x for x in extra), 1.5)
        extra = paired_difference(beside["ours"], beside["bare"])
        say(case, "seconds an epoch over the bare loop", extra, 0.3)
    path = machine.ROOT / "results" / f"harness_{machine.slug(facts['cpu'])}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(found)
    console.print(f"rows: {path.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
