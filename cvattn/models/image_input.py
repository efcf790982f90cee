"""One check for all networks that take images."""

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
