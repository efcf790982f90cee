"""Checks of images that all networks share."""

from torch import Tensor


def check_images(images: Tensor, in_channels: int) -> None:
    """Raise ValueError unless images are (B, in_channels, H, W)."""
    if images.ndim != 4:
        raise ValueError(
            f"expected a batch of images (batch, channels, height, width), got shape "
            f"{tuple(images.shape)}; add the batch dimension with .unsqueeze(0)"
        )
    if images.shape[1] != in_channels:
        raise ValueError(
            f"the model was built for {in_channels} channels, the images have {images.shape[1]}"
        )


def check_image_size(images: Tensor, image_size: tuple[int, int]) -> None:
    """Raise ValueError, naming both sizes, unless images are (..., *image_size)."""
    if tuple(images.shape[-2:]) != image_size:
        raise ValueError(
            f"the model was built for images of {image_size} (height, width), these are "
            f"{tuple(images.shape[-2:])}; resize them, or build the model with that image_size"
        )
