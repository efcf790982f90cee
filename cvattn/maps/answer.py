"""One pass of a classifier with the weights of its attention and what an answer makes of them."""

import operator
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from cvattn.maps.attention_maps import AttentionMaps
from cvattn.maps.capture import capture_attention

Target = int | Sequence[int] | Tensor


def capture_answer(
    model: nn.Module,
    images: Tensor,
    target: Target,
    layers: str | Iterable[str] | None = None,
) -> tuple[AttentionMaps, dict[str, Tensor]]:
    """Weights of all rows, and the gradients of the target's logits with respect to them.

    Nothing else is left behind: no graph, no ``.grad``. Parameters may be frozen, since a copy of
    the images requires gradients. Samples are taken to be apart, as they are in eval mode.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "a target needs gradients, which torch.inference_mode rules out; leave it, or use "
            "torch.no_grad in its place, where gradients can be switched on for this call"
        )
    with torch.enable_grad(), capture_attention(model, layers, detach=False) as maps:
        # A copy: images may come out of inference mode.
        given = images.detach().clone()
        output = model(given.requires_grad_(given.is_floating_point()))
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(images):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"the output of {type(model).__name__} is {shape}; a target needs logits "
                f"(B, classes), here ({len(images)}, classes)"
            )
        classes = _classes(target, *output.shape).to(output.device)
        gradients = maps.gradients(output.gather(1, classes[:, None]).sum())
    for name, weights in maps.items():
        maps[name] = weights.detach()
    for runs in maps.runs.values():
        runs[:] = [weights.detach() for weights in runs]
    maps.sources.clear()
    return maps, gradients


def _classes(target: Target, batch: int, classes: int) -> Tensor:
    """(B,) of class indices."""
    given = target.tolist() if isinstance(target, Tensor) else target
    try:
        if isinstance(given, Sequence):
            indices = [operator.index(each) for each in given]
        else:
            indices = [operator.index(given)] * batch
    except TypeError:
        raise TypeError(
            f"target={target!r}; expected a class index, or one for each image"
        ) from None
    if len(indices) != batch:
        raise ValueError(
            f"target has {len(indices)} classes for {batch} images; expected one for each, or one "
            "number for all"
        )
    outside = [each for each in indices if not 0 <= each < classes]
    if outside:
        raise ValueError(
            f"target={outside[0]} is none of the {classes} classes, 0 to {classes - 1}"
        )
    return torch.tensor(indices)
