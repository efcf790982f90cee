"""What one point of an image, or the class token, looks at, as heat over the image."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.maps.capture import capture_attention


def attention_heat(
    model: nn.Module,
    images: Tensor,
    *,
    at: tuple[float, float] | None = None,
    layers: str | Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """Where one query looks in each block: ``{module name: (B, heads, H, W)}`` over the images.

    The model runs as it is (call ``eval()`` first), without gradients. Weights are interpolated
    from the block's grid to the pixels, so they no longer sum to 1.

    Args:
        model: with blocks whose positions lie on a grid (feature maps, ViTs); others are left out,
            unless they are asked for by name.
        images: (B, C, H, W), as the model takes them.
        at: the point (y, x) in pixels that looks; None = the class token, or another first prefix
            token.
        layers: names of the blocks; None = all.

    Raises:
        ValueError: a point outside the images; no prefix token; no attention at all; none whose
            keys lie on a grid, or one of the layers asked for.
    """
    height, width = images.shape[-2:]
    if at is not None and not (0 <= at[0] < height and 0 <= at[1] < width):
        raise ValueError(f"at={at} is not inside images of {height} x {width} (y, x)")
    with torch.no_grad(), capture_attention(model, layers, rows=[0]) as probe:
        model(images[:1])
    on_grid = {
        name: layout
        for name, layout in probe.layout.items()
        if layout.query_grid is not None and layout.key_grid is not None
    }
    lost = [name for name in probe if name not in on_grid]
    if lost and (layers is not None or not on_grid):
        raise ValueError(
            f"{', '.join(lost)}: the tokens of these images lie on no grid that is known; "
            "capture_attention gives the weights themselves"
        )
    asked = [name for name in on_grid if at or on_grid[name].num_prefix_tokens]
    if not asked or (layers is not None and len(asked) < len(probe)):
        without = ", ".join(name for name in on_grid if name not in asked)
        raise ValueError(
            f"{type(model).__name__} has no class token ({without}); say which point looks, "
            "at=(y, x)"
        )
    wanted: dict[int, list[str]] = {}
    for name in asked:
        layout, row = on_grid[name], 0
        if at is not None:
            (h, w), (y, x) = layout.query_grid, at
            row = layout.num_prefix_tokens + int(y * h / height) * w + int(x * w / width)
        wanted.setdefault(row, []).append(name)
    heats: dict[str, Tensor] = {}
    for row, names in wanted.items():
        with torch.no_grad(), capture_attention(model, names, rows=[row]) as maps:
            model(images)
        heats |= {
            name: heat_on_image(maps.on_grid(name)[:, :, 0], (height, width)) for name in names
        }
    return {name: heats[name] for name in probe if name in heats}


def heat_on_image(weights: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Weights on a grid (..., h, w) -> (..., H, W) over the image, interpolated between middles."""
    flat = weights.to(torch.promote_types(weights.dtype, torch.float32)).reshape(
        1, -1, *weights.shape[-2:]
    )
    over = F.interpolate(flat, size=image_size, mode="bilinear", align_corners=False)
    return over.reshape(*weights.shape[:-2], *image_size)


def overlay(picture: np.ndarray, heat: Tensor, *, strength: float = 0.65) -> np.ndarray:
    """Heat over a picture, as a picture: black where there is least, yellow where there is most.

    Args:
        picture: (H, W, 3) or (H, W), uint8.
        heat: (H, W), any range; it is stretched from its least to its most.
        strength: share of the heat in the result, the rest is the picture in grey.

    Returns:
        (H, W, 3) uint8, for ``PIL.Image.fromarray`` or ``imshow``.

    Raises:
        ValueError: sizes that differ, or a strength outside 0..1.
    """
    from matplotlib import colormaps

    if tuple(heat.shape) != picture.shape[:2]:
        raise ValueError(
            f"heat of {tuple(heat.shape)} does not lie on a picture of {picture.shape[:2]}; "
            "cvattn.maps.heat_on_image makes it so"
        )
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength={strength} must be in 0..1")
    values = heat.detach().cpu().double().numpy()
    values = (values - values.min()) / max(values.max() - values.min(), 1e-300)
    colours = colormaps["inferno"](values)[..., :3] * 255
    grey = (picture if picture.ndim == 2 else picture.mean(-1))[..., None]
    return ((1 - strength) * grey + strength * colours).round().astype(np.uint8)
