"""Transforms of torchvision that draw from a generator: image by image, each from its own state."""

from collections.abc import Callable

import torch
from torch import Tensor


def one_by_one(transform: Callable[[Tensor], Tensor], images: Tensor, keys: Tensor) -> Tensor:
    """``transform`` of each image of a batch, with torch's generators seeded by its key.

    Unlike what is done to a whole batch, this costs some tenths of a millisecond an image on a CPU.

    Args:
        transform: (C, H, W) -> the same shape.
        images: (B, C, H, W); they may be written over.
        keys: int64 (B,), from :func:`cvattn.data.counter.bits`.
    """
    done = []
    # torchvision draws on the CPU, and noise where the image is; other generators are left alone.
    place = images.device if images.is_cuda else None
    with torch.random.fork_rng(devices=[] if place is None else [place]):
        for image, key in zip(images, keys.tolist(), strict=True):
            torch.default_generator.manual_seed(key)
            if place is not None:
                with torch.cuda.device(place):
                    torch.cuda.manual_seed(key)
            done.append(transform(image))
    return torch.stack(done)
