"""How often the heat is highest where the answer is: images whose class one small patch decides.

    python benchmarks/planted_patch.py                       five seeds, a few minutes
    python benchmarks/planted_patch.py --seeds 0 --steps 300  a look

Images of 24 x 40 pixels: noise, one patch of 6 x 6 pixels at a random place whose texture is the
class (lines across, lines along, a chequerboard, squares of 2 x 2; a random contrast between two
random colours), and five patches of the same size and contrast whose pixels are random: as
conspicuous, and without any information on the class. Small networks learn it; then, of images
that they name right, it is counted how often the maximum of the heat for that class lies in the
patch (the "pointing game" of Zhang et al., "Top-down Neural Attention by Excitation Backprop",
2016, without their margin). By chance it would be the patch's share of the pixels.

Rows go to results/planted_patch.csv, one for each network, seed and way. Grad-CAM needs
``pip install -e ".[peers]"``.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import machine
import torch
import torch.nn.functional as F
from heats import methods_of
from rows import write_rows
from torch import Tensor, nn

from cvattn import SAGANClassifier, VisionTransformer

SIZE, SIDE, DISTRACTORS, CLASSES = (24, 40), 6, 5, 4
BATCH, STEPS, TESTED = 48, 250, 300
COLUMNS = (
    *("network", "seed", "method", "hits", "chance", "images", "accuracy", "steps"),
    *("torch", "commit", "cpu", "threads", "date"),
)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "sagan": lambda: SAGANClassifier(
        CLASSES, image_size=SIZE, widths=(16, 32, 32), attention_after=["stage1"]
    ),
    "vit": lambda: VisionTransformer(
        CLASSES,
        image_size=SIZE,
        patch_size=4,
        stem="conv",
        embed_dim=32,
        num_heads=4,
        ffn_dim=64,
        num_layers=3,
        pool="cls",
    ),
}


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, 3, H, W), classes (N,), and where their patches are, bool (N, H, W)."""
    height, width = SIZE
    images = 0.5 * torch.randn(count, 3, height, width, generator=generator)
    classes = torch.randint(CLASSES, (count,), generator=generator)
    inside = torch.zeros(count, height, width, dtype=torch.bool)
    steps = torch.arange(SIDE)
    for patch, (y, x) in enumerate(_places(count, generator)):
        signs = torch.randint(2, (count, SIDE, SIDE), generator=generator) * 2.0 - 1
        each = torch.arange(count)[:, None, None]
        rows, columns = (y[:, None] + steps)[:, :, None], (x[:, None] + steps)[:, None]
        if patch == 0:
            signs = _textures()[classes] * signs[:, :1, :1]
            inside[each, rows, columns] = True
        colours = F.normalize(torch.randn(count, 3, generator=generator), dim=1)
        colours = colours * (1.5 + torch.rand(count, 1, generator=generator))
        images[each, :, rows, columns] = signs[..., None] * colours[:, None, None]
    return images, classes, inside


def _places(count: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Rows and columns (N,) of patches that do not overlap."""
    places: list[tuple[Tensor, Tensor]] = []
    for _ in range(DISTRACTORS + 1):
        y, x = torch.zeros(2, count, dtype=torch.long)
        open_ = torch.ones(count, dtype=torch.bool)
        while open_.any():
            for at, size in ((y, SIZE[0]), (x, SIZE[1])):
                at[open_] = torch.randint(size - SIDE + 1, (count,), generator=generator)[open_]
            open_ = torch.zeros(count, dtype=torch.bool)
            for other_y, other_x in places:
                open_ |= ((y - other_y).abs() < SIDE) & ((x - other_x).abs() < SIDE)
        places.append((y, x))
    return places


def _textures() -> Tensor:
    """(classes, side, side) of 1 and -1, half of each."""
    y, x = torch.arange(SIDE)[:, None], torch.arange(SIDE)[None]
    kinds = (y + 0 * x, x + 0 * y, y + x, y // 2 + x // 2)
    return torch.stack([1.0 - 2.0 * (kind % 2) for kind in kinds])


def trained(build: Callable[[], nn.Module], seed: int, steps: int) -> nn.Module:
    """A network after so many steps on images that are all different, in eval mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pool, classes, _ = draw(8192, generator)
    model = build()
    if isinstance(model, SAGANClassifier):
        model.fit_to_images(pool[:256])
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.02
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(pool), (BATCH,), generator=generator)
        images = pool[chosen]
        if torch.rand((), generator=generator) < 0.5:  # no texture changes its class by this
            images = images.flip(-1)
        loss = F.cross_entropy(model(images), classes[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def hits(heat: Tensor, inside: Tensor) -> float:
    """The share of images (B, H, W) whose maximum lies inside; of several maxima, their share."""
    highest = heat == heat.amax((1, 2), keepdim=True)
    share = (highest & inside).sum((1, 2)) / highest.sum((1, 2))
    return share.mean().item()


def measured(model: nn.Module, seed: int) -> tuple[float, int, dict[str, float]]:
    """Accuracy on new images, the number of those named right, and the hits of each way on them."""
    images, classes, inside = draw(TESTED, torch.Generator().manual_seed(10_000 + seed))
    with torch.no_grad():
        right = model(images).argmax(1) == classes
    images, classes, inside = images[right], classes[right], inside[right]
    found = {}
    for name, heat in methods_of(model).items():
        parts = zip(images.split(100), classes.split(100), strict=True)
        found[name] = hits(torch.cat([heat(model, *part) for part in parts]), inside)
    return right.float().mean().item(), len(images), found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--steps", type=int, default=STEPS)
    output = machine.ROOT / "results" / "planted_patch.csv"
    parser.add_argument("--output", type=Path, default=output)
    args = parser.parse_args()
    facts = machine.facts() | {"threads": str(torch.get_num_threads())}
    rows: list[dict[str, str]] = []
    for network in args.networks:
        for seed in args.seeds:
            accuracy, count, found = measured(trained(NETWORKS[network], seed, args.steps), seed)
            for method, share in found.items():
                row = {"network": network, "seed": str(seed), "method": method, **facts}
                row |= {"hits": f"{share:.4f}", "chance": f"{SIDE**2 / (SIZE[0] * SIZE[1]):.4f}"}
                row |= {"images": str(count), "accuracy": f"{accuracy:.4f}"}
                rows.append(row | {"steps": str(args.steps)})
            shown = ", ".join(f"{method} {share:.1%}" for method, share in found.items())
            print(f"{network}, seed {seed}: accuracy {accuracy:.1%}; {shown}", flush=True)
            write_rows(args.output, COLUMNS, rows)
    print(args.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
