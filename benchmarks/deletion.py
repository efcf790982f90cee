"""How much the answer hangs on what is hot: deletion and insertion curves, and randomised networks.

    python train.py model=vit data=digits model.pool=cls seed=1      networks to measure, as many
    python benchmarks/deletion.py outputs/*/checkpoints/last.ckpt    seeds as you like
    python benchmarks/deletion.py vit-digits --images 8              a look

Deletion (Petsiuk, Das and Saenko, "RISE", 2018): the pixels with the most heat are replaced first,
a tenth of them at a time, and the probability of the class that the network named is followed; the
lower the mean of the curve, the more hung on what went first. Insertion: they come first into an
image that has nothing else; the higher the better. What is put in a pixel's place is either the
mean colour of the training images or the image blurred. Heats are those of ``benchmarks/heats.py``,
and three that know nothing of the network: random in cells of 4 pixels, as the networks' grids have
them; random in cells of 11, whose holes hang together (scattered ones do more harm); and contrast,
how far a pixel is from the mean colour.

The second table is in the spirit of Adebayo et al., "Sanity Checks for Saliency Maps" (2018): the
rank correlation of a heat with that of the same network after its head, or all of it, was drawn
anew (a block's gamma stays, or there would be nothing to see). Near 1: it says little about what
was learned.

Test images of the data that a network was trained on. Rows go to results/deletion.csv and
results/deletion_randomised.csv, a picture to docs/deletion.png. Grad-CAM needs
``pip install -e ".[peers]"``.
"""

import argparse
import copy
from collections.abc import Iterable
from pathlib import Path

import machine
import torch
import torch.nn.functional as F
from deletion_picture import draw_curves
from heats import methods_of
from rows import write_rows
from torch import Tensor, nn

from cvattn import SAGANClassifier
from cvattn.inference import open_classifier
from cvattn.inference.own_data import choose_data

STEPS = 10
RANDOM, COARSE, CONTRAST = "random", "random, coarse", "contrast"
CURVES, FILLS = ("deletion", "insertion"), ("mean", "blur")
FACTS = ("torch", "commit", "cpu", "threads", "date")
OF = ("network", "seed", "data", "method")
COLUMNS = (*OF, "curve", "fill", "mean", "points", "images", *FACTS)
RANDOMISED = (*OF, "drawn_anew", "rank_correlation", "images", *FACTS)


def curves(
    model: nn.Module, images: Tensor, classes: Tensor, heat: Tensor, fill: Tensor
) -> dict[str, Tensor]:
    """Mean probability of the classes after 0, 1/10, ..., all pixels: (11,) of each curve.

    Args:
        images, fill: (B, C, H, W); what is deleted comes from the latter.
        heat: (B, H, W); pixels of equal heat go in a random order.
    """
    pixels = heat.flatten(1)
    mixed = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0)).argsort(1)
    hottest = pixels.gather(1, mixed).argsort(dim=1, descending=True, stable=True)
    order = mixed.gather(1, hottest)
    rank = order.argsort(1).view_as(heat)
    found = {name: torch.empty(STEPS + 1) for name in CURVES}
    for step in range(STEPS + 1):
        first = (rank < round(step / STEPS * pixels.shape[1]))[:, None]
        for name, given in (
            ("deletion", torch.where(first, fill, images)),
            ("insertion", torch.where(first, images, fill)),
        ):
            with torch.no_grad():
                chances = model(given).softmax(1).gather(1, classes[:, None])
            found[name][step] = chances.mean()
    return found


def fills(images: Tensor) -> dict[str, Tensor]:
    """What takes the place of a pixel, of normalised images: the mean is 0."""
    side = min(images.shape[-2:]) // 4 * 2 + 1
    reach = torch.arange(side, dtype=images.dtype) - side // 2
    bell = (-0.5 * (reach / (side / 4)) ** 2).exp()
    bell = (bell / bell.sum()).repeat(images.shape[1], 1, 1, 1)
    padded = F.pad(images, [side // 2] * 4, mode="replicate")
    blurred = F.conv2d(padded, bell, groups=images.shape[1])
    blurred = F.conv2d(blurred, bell.mT, groups=images.shape[1])
    return dict(zip(FILLS, (torch.zeros_like(images), blurred), strict=True))


def heats_of(model: nn.Module, images: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Those of the network, and those that know nothing of it."""
    found = {name: heat(model, images, classes) for name, heat in methods_of(model).items()}
    size = (images.shape[-2], images.shape[-1])
    generator = torch.Generator().manual_seed(1)
    for name, cell in ((RANDOM, 4), (COARSE, 11)):
        grid = [round(side / cell) for side in size]
        noise = torch.rand(len(images), 1, *grid, generator=generator)
        found[name] = F.interpolate(noise, size=size, mode="bilinear")[:, 0]
    found[CONTRAST] = images.square().sum(1)
    return found


@torch.no_grad()
def drawn_anew(model: nn.Module, what: str) -> nn.Module:
    """A copy with new weights: of the "head", or of "all"."""
    model = copy.deepcopy(model)
    torch.manual_seed(0)
    for module in (model.head if what == "head" else model).modules():  # type: ignore[union-attr]
        reset = getattr(module, "reset_parameters", None)
        gamma = getattr(module, "gamma", None)
        kept = None if gamma is None else gamma.clone()
        if reset is not None:
            reset()
        if kept is not None:
            gamma.copy_(kept)
    return model.eval()


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's, of heats (B, H, W), mean over images; of a heat without any contrast 0."""
    from scipy.stats import rankdata

    ranks = [torch.from_numpy(rankdata(heat.flatten(1).numpy(), axis=1)) for heat in (one, other)]
    centred = [each - each.mean(1, keepdim=True) for each in ranks]
    sizes = centred[0].norm(dim=1) * centred[1].norm(dim=1)
    return ((centred[0] * centred[1]).sum(1) / sizes.clamp_min(1e-12)).mean().item()


def measure(path: str, count: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The rows of one checkpoint."""
    classifier = open_classifier(path)
    model = classifier.network
    data, _ = choose_data(classifier)
    data.setup("test")
    images, _, _ = data.example_images(count, split="test")
    with torch.no_grad():
        classes = model(images).argmax(1)
    config = classifier.config
    of = {
        "network": "sagan" if isinstance(model, SAGANClassifier) else "vit",
        "seed": str(config.get("seed", config.get("data", {}).get("seed", ""))),
        "data": type(data).__name__.removesuffix("Data").lower(),
        "images": str(len(images)),
    }
    heats = heats_of(model, images, classes)
    rows = []
    for fill, pixels in fills(images).items():
        for method, heat in heats.items():
            for name, curve in curves(model, images, classes, heat, pixels).items():
                area = torch.trapezoid(curve) / STEPS
                points = " ".join(f"{each:.4f}" for each in curve.tolist())
                row = {"method": method, "curve": name, "fill": fill, "points": points}
                rows.append(of | row | {"mean": f"{area:.4f}"})
    randomised = []
    for what in ("head", "all"):
        other = drawn_anew(model, what)
        for method, heat in methods_of(model).items():
            near = rank_correlation(heats[method], heat(other, images, classes))
            row = {"method": method, "drawn_anew": what, "rank_correlation": f"{near:.4f}"}
            randomised.append(of | row)
    return rows, randomised


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--images", type=int, default=100, help="test images of each network")
    parser.add_argument("--output", type=Path, default=machine.ROOT / "results" / "deletion.csv")
    picture = machine.ROOT / "docs" / "deletion.png"
    parser.add_argument("--picture", type=Path, default=picture)
    args = parser.parse_args()
    facts = machine.facts() | {"threads": str(torch.get_num_threads())}
    rows: list[dict[str, str]] = []
    randomised: list[dict[str, str]] = []
    for path in args.checkpoints:
        new, other = measure(path, args.images)
        rows += [row | facts for row in new]
        randomised += [row | facts for row in other]
        print(
            f"{new[0]['network']}, {new[0]['data']}, seed {new[0]['seed']}: {summary(new)}",
            flush=True,
        )
        write_rows(args.output, COLUMNS, rows)
        beside = args.output.with_name(f"{args.output.stem}_randomised.csv")
        write_rows(beside, RANDOMISED, randomised)
    draw_curves(rows, args.picture)
    print(args.output, args.picture)
    return 0


def summary(rows: Iterable[dict[str, str]]) -> str:
    return ", ".join(
        f"{row['method']} {row['mean']}"
        for row in rows
        if row["curve"] == "deletion" and row["fill"] == "mean"
    )


if __name__ == "__main__":
    raise SystemExit(main())
