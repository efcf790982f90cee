"""What a point of an image, the class token or an answer looks at, as heat over the image."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.maps.answer import Target, capture_answer
from cvattn.maps.attention_maps import AttentionMaps
from cvattn.maps.capture import capture_attention
from cvattn.maps.rollout import (
    attention_relevance,
    attention_rollout,
    gradient_weighted,
    tokens_read,
)

Point = tuple[float, float]


def attention_heat(
    model: nn.Module,
    images: Tensor,
    *,
    at: Point | None = None,
    target: Target | None = None,
    layers: str | Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """Where one query looks in each block: ``{module name: (B, heads, H, W)}`` over the images.

    The model runs as it is (call ``eval()`` first). Weights are interpolated from the block's grid
    to the pixels, so they no longer sum to 1.

    With a target it is what the logit of that class took from where: (dA * A)^+ of the weights A
    and the logit's gradient dA, as in :func:`attention_relevance`, summed over all queries or of
    the one at the point. In the last layer of a ViT only the class token's row counts by itself.
    That takes the weights of all rows and a backward pass; parameters may be frozen, and no
    ``.grad`` is written.

    Args:
        model: with blocks whose positions lie on a grid (feature maps, ViTs); others are left out,
            unless they are asked for by name.
        images: (B, C, H, W), as the model takes them.
        at: the point (y, x) in pixels that looks; None = the class token, or another first prefix
            token; with a target all queries.
        target: of a classifier (its output is (B, classes)): a class, or one for each image; None
            = the weights themselves, without gradients.
        layers: names of the blocks; None = all.

    Raises:
        ValueError: a point outside the images; neither a prefix token nor a target; no attention
            at all; none whose positions lie on a grid, or one of the layers asked for; a
            class that is not there, an output of another shape, ``torch.inference_mode`` with a
            target.
    """
    size = (images.shape[-2], images.shape[-1])
    _check_point(at, size)
    if target is not None:
        maps, gradients = capture_answer(model, images, target, layers)
        found = _on_grid(maps, strict=layers is not None)
        for name in found:
            taken = gradient_weighted(maps[name], gradients[name])
            if at is None:
                maps[name] = taken.sum(2, keepdim=True)
            else:
                maps[name] = taken[:, :, [_row(maps, name, at, size)]]
        return {name: heat_on_image(maps.on_grid(name)[:, :, 0], size) for name in found}
    with torch.no_grad(), capture_attention(model, layers, rows=[0]) as probe:
        model(images[:1])
    found = _on_grid(probe, strict=layers is not None)
    asked = [name for name in found if at or probe.layout[name].num_prefix_tokens]
    if not asked or (layers is not None and len(asked) < len(probe)):
        without = ", ".join(name for name in found if name not in asked)
        raise ValueError(
            f"{type(model).__name__} has no class token ({without}); say which point looks, "
            "at=(y, x)"
        )
    wanted: dict[int, list[str]] = {}
    for name in asked:
        row = 0 if at is None else _row(probe, name, at, size)
        wanted.setdefault(row, []).append(name)
    heats: dict[str, Tensor] = {}
    for row, names in wanted.items():
        with torch.no_grad(), capture_attention(model, names, rows=[row]) as maps:
            model(images)
        heats |= {name: heat_on_image(maps.on_grid(name)[:, :, 0], size) for name in names}
    return {name: heats[name] for name in probe if name in heats}


def rollout_heat(
    model: nn.Module,
    images: Tensor,
    *,
    at: Point | None = None,
    target: Target | None = None,
    layers: str | Iterable[str] | None = None,
) -> Tensor:
    """Where one query looks through all layers of a stack, as heat over the images: (B, H, W).

    Rows of :func:`attention_rollout`, or with a target of :func:`attention_relevance`, without what
    lies on prefix tokens; the rest is as in :func:`attention_heat`.

    Args:
        model, images, layers: as there; the layers have to attend from the same tokens to the same.
        at: the point (y, x) in pixels that looks; None = the class token, or another first prefix
            token, or where there is none the mean over all; with a target the mean over those that
            the answer reads behind the last layer (a class token, all positions of a mean).
        target: a class, or one for each image; None = rollout.

    Raises:
        ValueError: as :func:`attention_heat` and :func:`attention_rollout`.
    """
    size = (images.shape[-2], images.shape[-1])
    _check_point(at, size)
    if target is None:
        with torch.no_grad(), capture_attention(model, layers) as maps:
            model(images)
        through = attention_rollout(maps)
        found = _on_grid(maps, strict=True)
        read = torch.ones_like(through[..., 0])
        if maps.layout[found[0]].num_prefix_tokens:
            read[:, 1:] = 0.0
    else:
        maps, gradients = capture_answer(model, images, target, layers)
        through = attention_relevance(maps, gradients)
        found = _on_grid(maps, strict=True)
        read = tokens_read(gradients[found[-1]])
    first = found[0]
    if at is not None:
        read = torch.zeros_like(read)
        read[:, _row(maps, first, at, size)] = 1.0
    read = read / read.sum(-1, keepdim=True).clamp_min(1.0)
    maps[first] = (read[:, None] @ through)[:, None]
    return heat_on_image(maps.on_grid(first)[:, 0, 0], size)


def _check_point(at: Point | None, size: tuple[int, int]) -> None:
    if at is not None and not (0 <= at[0] < size[0] and 0 <= at[1] < size[1]):
        raise ValueError(f"at={at} is not inside images of {size[0]} x {size[1]} (y, x)")


def _on_grid(maps: AttentionMaps, *, strict: bool) -> Sequence[str]:
    """Names of the blocks that lie on a grid; where it is strict, that is all of them."""
    found = [
        name
        for name, layout in maps.layout.items()
        if layout.query_grid is not None and layout.key_grid is not None
    ]
    lost = [name for name in maps if name not in found]
    if lost and (strict or not found):
        raise ValueError(
            f"{', '.join(lost)}: the tokens of these images lie on no grid that is known; "
            "capture_attention gives the weights themselves"
        )
    return [name for name in maps if name in found]


def _row(maps: AttentionMaps, name: str, at: Point, size: tuple[int, int]) -> int:
    """The query of a block that the point (y, x) of images of that size lies in."""
    layout = maps.layout[name]
    assert layout.query_grid is not None
    (h, w), (y, x) = layout.query_grid, at
    return layout.num_prefix_tokens + int(y * h / size[0]) * w + int(x * w / size[1])


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
