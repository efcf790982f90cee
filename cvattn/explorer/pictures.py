"""Pictures for a network, and how to show what the network was given."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cvattn.data.image_files import ImageError, read_picture
from cvattn.inference import InferenceError, find_images
from cvattn.inference.images import read_each

Preprocess = Callable[[Image.Image], Tensor]
Normalisation = tuple[list[float], list[float]]  # mean and std of each channel


def preprocessed(images: Any, preprocess: Preprocess) -> tuple[Tensor, list[str] | None]:
    """Pictures as the network takes them, (B, C, H, W), and the names of their files.

    Args:
        images: paths of files and folders (read as RGB), PIL images, or uint8 (B, C, H, W).
        preprocess: gives (C, H, W), float, of one size.

    Raises:
        InferenceError: something else; a file that is no image; no pictures; other results.
    """
    pictures, names = _pictures(images)
    inputs = []
    for picture in pictures:
        made = preprocess(picture)
        if not (isinstance(made, Tensor) and made.ndim == 3 and made.is_floating_point()):
            raise InferenceError(
                f"preprocess gave {kind_of(made)}{_shape(made)}; expected a float tensor (C, H, W)"
            )
        inputs.append(made)
    sizes = {tuple(each.shape) for each in inputs}
    if len(sizes) > 1:
        raise InferenceError(
            f"preprocess gave images of different sizes, {', '.join(map(str, sorted(sizes)))}; "
            "resize and crop them to one"
        )
    return torch.stack(inputs), names


def _pictures(images: Any) -> tuple[Iterable[Image.Image], list[str] | None]:
    if isinstance(images, Tensor):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise InferenceError(
                f"images of {images.dtype} {tuple(images.shape)}: preprocess takes pictures, "
                "uint8 (B, 1 or 3, H, W)"
            )
        pixels = images.expand(-1, 3, -1, -1).movedim(1, -1).cpu().numpy()
        return [Image.fromarray(np.ascontiguousarray(each)) for each in pixels], None
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, Sequence) and any(isinstance(each, Image.Image) for each in images):
        if not all(isinstance(each, Image.Image) for each in images):
            raise InferenceError("images: give either PIL images or paths, not both")
        return [each.convert("RGB") for each in images], None
    files = read_files(images, lambda path: read_picture(path, 3))
    return [picture for _, picture in files], [path.name for path, _ in files]


def read_files(images: Any, read: Callable[[Path], Any]) -> list[tuple[Path, Any]]:
    """All of the files and what ``read`` gives of them.

    Raises:
        InferenceError: no paths, no file, or one that cannot be read.
    """
    paths: Any = [images] if isinstance(images, str | os.PathLike) else images
    if not isinstance(paths, Sequence) or not all(isinstance(p, str | os.PathLike) for p in paths):
        raise InferenceError(
            f"images: expected paths, PIL images or tensors, got {kind_of(images)}"
        )

    def refuse(path: Path, error: ImageError) -> None:
        raise InferenceError(f"{path}: {error}") from error

    found = list(read_each(find_images(paths, warnings.warn), read, refuse))
    if not found:
        raise InferenceError("no images: name one file at least")
    return found


def as_seen(images: Tensor, normalisation: Normalisation | None) -> np.ndarray:
    """What a network was given, (B, C, H, W), as pictures: uint8 (B, H, W, C), C 1 or 3.

    The normalisation is taken back where it is known and leads into 0..1. Otherwise each image is
    shown from its lowest value, black, to its highest; with other than 1 or 3 channels the mean of
    them.
    """
    values = images.detach().cpu().float()
    if normalisation is not None and len(normalisation[0]) in (1, values.shape[1]):
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in normalisation)
        shares = values * std + mean
        # A hundredth for resampling that overshoots; more means that other steps came after it.
        if shares.shape[1] in (1, 3) and shares.min() >= -0.01 and shares.max() <= 1.01:
            return _bytes(shares.clamp(0, 1))
    if values.shape[1] not in (1, 3):
        values = values.mean(1, keepdim=True)
    low, high = (f(values, (1, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
    return _bytes((values - low) / (high - low).clamp_min(1e-12))


def normalisation_of(preprocess: Any) -> Normalisation | None:
    """Mean and std of the normalising step in it, as torchvision and timm name them.

    None where it does not tell its steps, or normalises twice; a chain of steps without one leaves
    pixels in 0..1.
    """
    steps = list(_steps(preprocess))
    found = [step for step in steps if hasattr(step, "mean") and hasattr(step, "std")]
    if len(found) == 1:
        mean, std = (_floats(value) for value in (found[0].mean, found[0].std))
        return (mean, std) if mean and len(mean) == len(std) else None
    return ([0.0], [1.0]) if not found and len(steps) > 1 else None


def _steps(transform: Any) -> Iterator[Any]:
    """The transform, or the steps inside a ``Compose`` or an ``nn.Sequential``."""
    inside = getattr(transform, "transforms", None)
    if inside is None and isinstance(transform, torch.nn.Sequential):
        inside = list(transform)
    if not isinstance(inside, Sequence):
        yield transform
        return
    for step in inside:
        yield from _steps(step)


def _floats(value: Any) -> list[float]:
    try:
        return torch.as_tensor(value).double().flatten().tolist()
    except (TypeError, ValueError, RuntimeError):
        return []


def _bytes(shares: Tensor) -> np.ndarray:
    return (shares * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def kind_of(images: Any) -> str:
    return str(images.dtype) if isinstance(images, Tensor) else type(images).__name__


def _shape(images: Any) -> str:
    return f" {tuple(images.shape)}" if isinstance(images, Tensor) else ""
