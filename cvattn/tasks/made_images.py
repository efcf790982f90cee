"""How far made images are from real ones, without a network: by their patches, and their spread."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

PATCH = 7  # side of the patches that are compared


def sliced_wasserstein(
    made: Tensor, real: Tensor, *, patches: int = 16, projections: int = 128, seed: int = 0
) -> Tensor:
    """Distance between the 7x7 patches of two sets of images, on every level of a pyramid.

    Karras et al., "Progressive Growing of GANs" (2018), section 5: patches of the levels of a
    Laplacian pyramid are projected onto random directions, and the sorted projections of one set
    are compared with those of the other; the mean over levels. Where we differ: the pyramid ends
    only where a patch is (nearly) all of the map, so that the layout of whole images counts, too;
    patches of both sets are normalised by the mean and standard deviation of the real ones, so that
    a wrong contrast is seen; and the distance is not multiplied by 1000.

    Args:
        made, real: (N, C, H, W), as many of each, on one device; H, W of at least 7.
        patches: of each image and level, at random places.
        projections: directions.
        seed: of places and directions.

    Returns:
        A scalar, float32 at least; more than 0 between two draws of one set.

    Raises:
        ValueError: not as many, or images that are too small.
    """
    if made.shape != real.shape or made.ndim != 4 or min(made.shape[-2:]) < PATCH:
        raise ValueError(
            f"made images {tuple(made.shape)} and real ones {tuple(real.shape)}: expected as many, "
            f"(N, C, H, W), with sides of at least {PATCH} pixels"
        )
    generator = torch.Generator().manual_seed(seed)
    apart = []
    for mine, theirs in zip(_pyramid(_precise(made)), _pyramid(_precise(real)), strict=True):
        rows, columns = (
            torch.randint(0, side - PATCH + 1, (len(made), patches), generator=generator)
            for side in mine.shape[-2:]
        )
        direction = torch.randn(mine.shape[1] * PATCH**2, projections, generator=generator)
        direction = (direction / direction.norm(dim=0)).to(mine)
        a, b = (_patches(level, rows, columns) for level in (mine, theirs))
        mean, std = b.mean((0, 2, 3), keepdim=True), b.std((0, 2, 3), keepdim=True)
        a, b = (((each - mean) / std.clamp_min(1e-6)).flatten(1) @ direction for each in (a, b))
        apart.append((a.sort(0).values - b.sort(0).values).abs().mean())
    return torch.stack(apart).mean()


def spread(made: Tensor, real: Tensor, labels: Tensor) -> Tensor:
    """How far images of a class are from their mean, as a share of what real images are.

    ``sqrt(mean over classes of the variance of the made / the same of the real)``, of whole images
    of each class. Near 1 where the made differ from each other as the real do; it goes to 0 where
    all of a class become one image, which is how such networks fail. It does not say whether they
    are good.

    Args:
        made, real: (N, C, H, W).
        labels: int64 (N,), of both. A class of one image does not count.

    Returns:
        A scalar, float32 at least; NaN if no class has two images.
    """
    mine, theirs = (_variance(_precise(images).flatten(1), labels) for images in (made, real))
    return (mine.nanmean() / theirs.nanmean()).sqrt()


class _Pairs(Metric):
    """Keeps pairs of made and real images, the first ``most`` of a set over all processes."""

    full_state_update = False
    made: list[Tensor]
    real: list[Tensor]
    labels: list[Tensor]

    def __init__(self, most: int = 2048) -> None:
        super().__init__()
        self.most = most
        for name in ("made", "real", "labels"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, made: Tensor, real: Tensor, labels: Tensor) -> None:
        processes = dist.get_world_size() if dist.is_initialized() else 1
        left = -(-self.most // processes) - sum(map(len, self.made))
        if left > 0:
            self.made.append(made[:left].detach())
            self.real.append(real[:left].detach())
            self.labels.append(labels[:left])

    def _all(self, name: str) -> Tensor:
        kept = getattr(self, name)  # one tensor once processes have come together
        return kept if isinstance(kept, Tensor) else torch.cat(kept)


class SlicedWasserstein(_Pairs):
    """:func:`sliced_wasserstein` of the first 2,048 pairs of a set."""

    def compute(self) -> Tensor:
        return sliced_wasserstein(self._all("made"), self._all("real"))


class Spread(_Pairs):
    """:func:`spread` of the same."""

    def compute(self) -> Tensor:
        return spread(self._all("made"), self._all("real"), self._all("labels"))


def _precise(images: Tensor) -> Tensor:
    return images.to(torch.promote_types(images.dtype, torch.float32))


def _pyramid(images: Tensor) -> list[Tensor]:
    """What each halving loses, from fine to coarse, and what is left at the end."""
    levels = []
    while min(images.shape[-2:]) // 2 >= PATCH:
        smaller = _blurred(images)[..., ::2, ::2]
        larger = F.interpolate(smaller, images.shape[-2:], mode="bilinear", align_corners=False)
        levels.append(images - larger)
        images = smaller
    return [*levels, images]


def _blurred(images: Tensor) -> Tensor:
    """By the binomial filter of 5 x 5 (Burt and Adelson, 1983), mirrored at the edges."""
    taps = images.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16.0
    channels = images.shape[1]
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    down = F.conv2d(padded, taps.view(1, 1, 5, 1).expand(channels, 1, 5, 1), groups=channels)
    return F.conv2d(down, taps.view(1, 1, 1, 5).expand(channels, 1, 1, 5), groups=channels)


def _patches(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(N * patches, C, 7, 7) whose upper left corners are at rows, columns (N, patches)."""
    inside = torch.arange(PATCH)
    rows = (rows[..., None, None] + inside[:, None]).to(images.device)
    columns = (columns[..., None, None] + inside).to(images.device)
    sample = torch.arange(len(images), device=images.device)[:, None, None, None]
    return images.movedim(1, -1)[sample, rows, columns].flatten(0, 1).movedim(-1, 1)


def _variance(points: Tensor, labels: Tensor) -> Tensor:
    """Summed over the coordinates, of each class that is there; NaN of one image."""
    classes = [points[labels == label] for label in labels.unique()]
    none = points.new_tensor(torch.nan)
    return torch.stack([part.var(0).sum() if len(part) > 1 else none for part in classes])
