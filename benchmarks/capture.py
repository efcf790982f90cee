"""What it costs to look: a pass with one row captured beside the same pass without.

    python benchmarks/capture.py              five minutes, on a machine that does nothing else

Networks of 1,025 tokens (512 x 512 pixels in patches of 16), one image, no gradients, random
weights. Passes with and without take turns; the overhead is the median of the ratios of a turn,
with the 95 % interval of the median by order statistics. Rows go to
results/capture_<machine>.csv.
"""

import statistics
import time
from collections.abc import Callable

import machine
import timm
import torch
from rows import write_rows
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionViT

from cvattn import capture_attention

ROUNDS = 41
LOW, HIGH = 13, 27  # of 41 sorted values, around the median: 95 %
COLUMNS = (
    *("network", "plain_ms", "one_row_ms", "overhead", "low", "high", "rounds"),
    *("torch", "commit", "cpu", "threads", "date"),
)
IMAGE = (1, 3, 512, 512)
LAYER = {"d_model": 384, "nhead": 6, "dim_feedforward": 1536, "batch_first": True}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "timm vit_tiny_patch16_224": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=512),
        IMAGE,
    ),
    "timm vit_small_patch16_224": (
        lambda: timm.create_model("vit_small_patch16_224", img_size=512),
        IMAGE,
    ),
    "timm vit_base_patch16_224": (
        lambda: timm.create_model("vit_base_patch16_224", img_size=512),
        IMAGE,
    ),
    "torchvision ViT, 12 layers of 384, fused": (
        lambda: TorchvisionViT(512, 16, 12, 6, 384, 1536),
        IMAGE,
    ),
    "nn.TransformerEncoder, 12 layers of 384, fused": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**LAYER), 12),
        (1, 1025, 384),
    ),
}


def seconds(model: nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    model(x)
    return time.perf_counter() - start


def main() -> int:
    facts = machine.facts() | {"threads": str(torch.get_num_threads())}
    rows: list[dict[str, str]] = []
    path = machine.ROOT / "results" / f"capture_{machine.slug(facts['cpu'])}.csv"
    for name, (build, shape) in NETWORKS.items():
        torch.manual_seed(0)
        model, x = build().eval(), torch.randn(shape)
        plain, watched = [], []
        with torch.no_grad():
            model(x)
            for _ in range(ROUNDS):
                plain.append(seconds(model, x))
                with capture_attention(model, rows=[0]):
                    watched.append(seconds(model, x))
        ratios = sorted(b / a - 1 for a, b in zip(plain, watched, strict=True))
        row = {"network": name, "rounds": str(ROUNDS), **facts}
        row["plain_ms"], row["one_row_ms"] = (
            f"{1e3 * statistics.median(times):.1f}" for times in (plain, watched)
        )
        for column, value in zip(
            ("overhead", "low", "high"),
            (ratios[ROUNDS // 2], ratios[LOW], ratios[HIGH]),
            strict=True,
        ):
            row[column] = f"{value:.4f}"
        rows.append(row)
        print(
            f"{name}: {row['plain_ms']} ms, with one row {row['one_row_ms']} ms, overhead "
            f"{float(row['overhead']):.1%} ({float(row['low']):.1%} to {float(row['high']):.1%})",
            flush=True,
        )
        write_rows(path, COLUMNS, rows)
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
