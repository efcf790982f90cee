"""Whether attention does what it is for: four tasks with a known ceiling, at equal cost.

    python benchmarks/usefulness.py --seeds 0 --tasks mirror          a look, half a minute
    python benchmarks/usefulness.py --picture docs/usefulness.png     all, ten to twenty minutes

A half is completed from its mirror image, or from the other half turned around; holes in a texture
of unknown period from its repeats; and noise is averaged away over copies that lie anywhere
(``benchmarks/usefulness_tasks.py``). A small CNN with ``SelfAttention2d.unet`` in its middle is to
reach 95 % of what is possible. Beside it the same CNN with a wide convolution that costs the same
(``WideConvolution``), and with nothing there. Every batch is drawn anew, so that there is nothing
to memorise; what is measured are other images.

The wide convolution has the filter that is best for the task on a seed of its own, and with four
times the training it shows whether it lacks time:

    python benchmarks/usefulness.py --arms "wide convolution" --seeds 3 --filters 7,1 7,2 7,3 7,5 \\
        --output results/usefulness_filters.csv
    python benchmarks/usefulness.py --arms "wide convolution" --seeds 3 --times 4 \\
        --output results/usefulness_longer.csv

Rows go to results/usefulness.csv; the picture is of the first seed. One thread is fastest for
tensors this small: ``OMP_NUM_THREADS=1``.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import machine
import torch
import torch.nn.functional as F
from rows import write_rows
from torch import Tensor, nn
from usefulness_picture import draw_answers
from usefulness_tasks import CELL, SIDE, TASKS, Images, Task

from cvattn import SelfAttention2d
from cvattn.cost import count_macs, count_parameters, training_pflop
from cvattn.models.controls import WideConvolution

WIDTH, TESTED = 32, 256
COLUMNS = (
    *("task", "arm", "filter", "seed", "score", "unit", "ceiling", "share"),
    *("macs", "block_macs", "parameters", "steps", "batch", "pflop"),
    *("torch", "commit", "cpu", "threads", "date"),
)
ATTENTION, WIDE, NONE = "attention", "wide convolution", "none"


def wide_convolution(task: Task) -> nn.Module:
    """The control, with the norm that the attention block has."""
    side, dilation = task.wide
    block = WideConvolution(WIDTH, positions=SIDE**2, kernel_size=side, dilation=dilation)
    block.norm = nn.GroupNorm(1, WIDTH)
    return block


# One group for the norm: with as many groups as channels, as 32 groups would be here, how strong
# a channel is in an image is lost, and texture and denoise with it.
ARMS: dict[str, Callable[[Task], nn.Module]] = {
    ATTENTION: lambda task: SelfAttention2d.unet(WIDTH, groups=1),
    WIDE: wide_convolution,
    NONE: lambda task: nn.Identity(),
}


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of each position, as ConvNeXt's (Liu et al., 2022)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Residual(nn.Module):
    """``y = x + conv(GELU(norm(x)))`` with a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.gelu(self.norm(x)))


def small_cnn(task: Task, block: nn.Module) -> nn.Sequential:
    """Cells to positions with ConvNeXt's stem, 3x3 convolutions around the block, and back."""
    stem = [nn.Conv2d(task.channels, WIDTH, CELL, CELL), ChannelNorm(WIDTH)]
    head = [nn.Conv2d(WIDTH, 3 * CELL**2, 1), nn.PixelShuffle(CELL)]
    return nn.Sequential(*stem, Residual(WIDTH), block, Residual(WIDTH), *head)


def trained(task: Task, arm: str, seed: int) -> nn.Sequential:
    """A network after the task's steps on images that are all new, in eval mode."""
    torch.manual_seed(seed)
    model = small_cnn(task, ARMS[arm](task))
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-2, total_steps=task.steps, pct_start=0.2, cycle_momentum=False
    )
    model.train()
    for _ in range(task.steps):
        images = task.draw(task.batch, generator)
        loss = mean_error(model(images.given), images)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def mean_error(answer: Tensor, images: Images) -> Tensor:
    """The mean square of the errors of colours where they are asked for."""
    asked = images.asked.expand_as(images.truth)
    return (answer - images.truth)[asked].square().mean()


def score(task: Task, solve: Callable[[Tensor], Tensor], seed: int) -> float:
    """Of answers (N, 3, 32, 32) to what is given, on images that no training draws."""
    images = task.draw(TESTED, torch.Generator().manual_seed(10_000 + seed))
    with torch.no_grad():
        answer = torch.cat([solve(part) for part in images.given.split(64)])
    error, before = (mean_error(x, images).item() for x in (answer, images.given[:, :3]))
    return task.score(error, before)


def measure(task: Task, arm: str, seed: int) -> tuple[dict[str, str], nn.Sequential]:
    """A row, but for the name of the task and what is equal for all rows; and the network."""
    model = trained(task, arm, seed)
    reached = score(task, model, seed)
    example = torch.zeros(1, task.channels, CELL * SIDE, CELL * SIDE)
    macs = count_macs(model, example)
    row = {
        "arm": arm,
        "filter": "{0}x{0}, dilation {1}".format(*task.wide) if arm == WIDE else "",
        "seed": str(seed),
        "score": f"{reached:.4f}",
        "unit": task.unit,
        "ceiling": f"{task.ceiling:.4f}",
        "share": f"{reached / task.ceiling:.4f}",
        "macs": str(macs),
        "block_macs": str(macs - count_macs(small_cnn(task, nn.Identity()), example)),
        "parameters": str(count_parameters(model)),
        "steps": str(task.steps),
        "batch": str(task.batch),
        "pflop": f"{training_pflop(macs, task.steps * task.batch):.6f}",
    }
    return row, model


def variants(name: str, args: argparse.Namespace) -> Iterator[tuple[Task, str, int]]:
    """Tasks, arms and seeds that are asked for, of the task of that name."""
    task = TASKS[name]
    task = replace(task, steps=max(1, round(args.times * task.steps)))
    for seed in args.seeds:
        for arm in args.arms:
            for wide in args.filters if arm == WIDE and args.filters else [task.wide]:
                yield replace(task, wide=wide), arm, seed


def _filter(text: str) -> tuple[int, int]:
    """``"7,5"``: side and dilation."""
    side, dilation = text.split(",")
    return int(side), int(dilation)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--times", type=float, default=1.0, help="so many times the steps")
    parser.add_argument(
        "--filters",
        type=_filter,
        nargs="+",
        metavar="SIDE,DILATION",
        help="of the wide convolution, instead of each task's own",
    )
    output = machine.ROOT / "results" / "usefulness.csv"
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--picture", type=Path, help="a picture of the answers, of the first seed")
    args = parser.parse_args()
    facts = machine.facts() | {"threads": str(torch.get_num_threads())}
    rows: list[dict[str, str]] = []
    shown: dict[str, dict[str, nn.Module]] = {}
    for name in args.tasks:
        for task, arm, seed in variants(name, args):
            row, model = measure(task, arm, seed)
            rows.append({"task": name} | row | facts)
            if seed == args.seeds[0]:
                shown.setdefault(name, {})[arm] = model
            print(
                f"{name}, {arm} {row['filter']}, seed {seed}: {row['score']} {task.unit}, "
                f"{float(row['share']):.1%} of the ceiling",
                flush=True,
            )
            write_rows(args.output, COLUMNS, rows)
    print(args.output)
    if args.picture is not None:
        args.picture.parent.mkdir(parents=True, exist_ok=True)
        draw_answers(shown).savefig(args.picture, dpi=130)
        print(args.picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
