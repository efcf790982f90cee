"""Loaders of photographs, each as its own documentation has it, all with the same work.

Each function yields the batches of two epochs, of one of several processes.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from photographs import SIZE

BATCH, WORKERS = 128, 2
SHARE = (0.08, 1.0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OURS = ("ours, mapped", "ours, stream")
RIVALS = ("torchvision ImageFolder", "timm create_loader")
SHARDS = ("ours, shards, stream", "webdataset WebLoader")
LOADERS = (*OURS, *RIVALS, *SHARDS)
# What is imported before the memory of a process is looked at.
PACKAGES = {
    **dict.fromkeys(OURS, ("cvattn.data.images.folder",)),
    **dict.fromkeys(RIVALS, ("torchvision", "timm")),
    SHARDS[0]: ("cvattn.data.images.webdataset",),
    SHARDS[1]: ("torchvision", "webdataset"),
}


def batches_of(loader: str, root: Path, rank: int, ranks: int) -> Iterator[Iterable]:
    """Of the loader of that name."""
    if loader in (*OURS, SHARDS[0]):
        return our_batches(loader, root, rank, ranks)
    rivals = (torchvision_batches, timm_batches, webdataset_batches)
    make = dict(zip((*RIVALS, SHARDS[1]), rivals, strict=True))[loader]
    return make(root, rank, ranks)


def our_batches(loader: str, root: Path, rank: int, ranks: int) -> Iterator[Iterable]:
    """The batches of each epoch."""
    from cvattn.data import BatchLoader, FolderData, WebDatasetData
    from cvattn.data.images.augment import CropFlip

    if loader == SHARDS[0]:
        parts = {part: f"{root}/shards/{part}-*.tar" for part in ("train", "val", "test")}
        make = partial(WebDatasetData, **parts)
    else:
        make = partial(FolderData, root=root)
    hold = loader.split()[-1]
    data = make(
        image_size=SIZE,
        hold=hold,
        workers=WORKERS,
        random_resized_crop=SHARE,
        mean=MEAN,
        std=STD,
    )
    train = data.split("train")
    for epoch in range(2):
        yield BatchLoader(
            train.images,
            train.labels,
            batch_size=BATCH * ranks,
            mean=MEAN,
            std=STD,
            train=True,
            crop=data._crop(),
            locality=train.locality,
            augment=CropFlip(crop_pad=0, flip="random"),
            epoch=lambda epoch=epoch: epoch,
            rank=rank,
            world_size=ranks,
        )


def torchvision_steps() -> Callable:
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, scale=SHARE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def torchvision_batches(root: Path, rank: int, ranks: int) -> Iterator[Iterable]:
    """As PyTorch's ImageNet example has it."""
    from torch.utils.data import DataLoader, DistributedSampler
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(str(root / "train"), torchvision_steps())
    sampler = DistributedSampler(dataset, ranks, rank) if ranks > 1 else None
    options = {"shuffle": sampler is None, "sampler": sampler, "drop_last": True}
    loader = DataLoader(dataset, BATCH, num_workers=WORKERS, persistent_workers=True, **options)
    for _ in range(2):
        yield loader


def timm_batches(root: Path, rank: int, ranks: int) -> Iterator[Iterable]:
    """As timm's ``train.py`` makes it, on the CPU."""
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", str(root / "train"))
    if ranks > 1:  # its own way asks for a process group
        dataset.reader.samples = dataset.reader.samples[rank::ranks]
    loader = create_loader(
        dataset,
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        scale=SHARE,
        color_jitter=0.0,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=WORKERS,
        device=torch.device("cpu"),
    )
    for _ in range(2):
        yield loader


def webdataset_batches(root: Path, rank: int, ranks: int) -> Iterator[Iterable]:
    """As webdataset's documentation has it; processes and workers take shards of their own."""
    import webdataset

    urls = sorted(map(str, (root / "shards").glob("train-*.tar")))[rank::ranks]
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=100, empty_check=False)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(torchvision_steps(), int)
    )
    options = {"num_workers": WORKERS, "persistent_workers": True, "drop_last": True}
    loader = webdataset.WebLoader(dataset, batch_size=BATCH, **options)
    for _ in range(2):
        yield loader
