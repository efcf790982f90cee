"""The heats that are compared: several ways to say where the answer of a classifier comes from.

All are (B, H, W) over the images, at the resolution of a grid, interpolated. "attention" is of the
last block that lies on the grid, mean over heads; of the class token, or without one the mean over
all queries. Grad-CAM is the package ``grad-cam`` (Selvaraju et al., "Grad-CAM", 2017): on the map
that the attention block gives, and on the last map before pooling where that is another; of ViTs
before the last block, as its README says.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cvattn import SAGANClassifier, VisionTransformer
from cvattn.maps import attention_heat, attention_rollout, capture_attention, rollout_heat
from cvattn.maps.answer import capture_answer
from cvattn.maps.heat import heat_on_image

Heat = Callable[[nn.Module, Tensor, Tensor], Tensor]
PLAIN, WEIGHTED = "attention", "attention x gradient"
ROLLOUT, WEIGHTED_ROLLOUT = "rollout", "gradient-weighted rollout"
RELEVANCE = "relevance"
GRAD_CAM, GRAD_CAM_LAST = "Grad-CAM", "Grad-CAM, last map"
NEEDS = {GRAD_CAM: "pytorch_grad_cam", GRAD_CAM_LAST: "pytorch_grad_cam"}


def methods_of(model: nn.Module) -> dict[str, Heat]:
    """Those that apply: with a single block, rollout and relevance are that block's heat again."""
    if isinstance(model, VisionTransformer):
        return {
            PLAIN: plain,
            WEIGHTED: weighted,
            ROLLOUT: lambda model, images, _: rollout_heat(model, images),
            WEIGHTED_ROLLOUT: weighted_rollout,
            RELEVANCE: lambda model, images, classes: rollout_heat(model, images, target=classes),
            GRAD_CAM: lambda *given: grad_cam(*given, given[0].encoder.layers[-1].norm1),
        }
    if isinstance(model, SAGANClassifier):
        return {
            PLAIN: plain,
            WEIGHTED: weighted,
            GRAD_CAM: lambda *given: grad_cam(*given, last_block(given[0])),
            GRAD_CAM_LAST: lambda *given: grad_cam(*given, given[0].layers["stage3"]),
        }
    raise TypeError(f"{type(model).__name__}: expected a VisionTransformer or a SAGANClassifier")


def last_block(model: nn.Module) -> nn.Module:
    return list(model.attention.values())[-1]  # type: ignore[union-attr,operator]


def plain(model: nn.Module, images: Tensor, _: Tensor) -> Tensor:
    with torch.no_grad(), capture_attention(model) as maps:
        model(images)
    name = list(maps.layout)[-1]
    pictures = maps.on_grid(name).mean(1)
    read = pictures[:, 0] if maps.layout[name].num_prefix_tokens else pictures.mean(1)
    return heat_on_image(read, (images.shape[-2], images.shape[-1]))


def weighted(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    return list(attention_heat(model, images, target=classes).values())[-1].mean(1)


def weighted_rollout(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    maps, gradients = capture_answer(model, images, classes)
    through = attention_rollout(maps, gradients)
    name = next(iter(maps))
    has_class_token = maps.layout[name].num_prefix_tokens > 0
    maps[name] = (through[:, :1] if has_class_token else through.mean(1, keepdim=True))[:, None]
    return heat_on_image(maps.on_grid(name)[:, 0, 0], (images.shape[-2], images.shape[-1]))


def grad_cam(model: nn.Module, images: Tensor, classes: Tensor, layer: nn.Module) -> Tensor:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def as_map(tokens: Tensor) -> Tensor:
        if tokens.ndim == 4:
            return tokens
        prefix, grid = model.num_prefix_tokens, model.grid
        return tokens[:, prefix:].mT.unflatten(2, grid)  # type: ignore[arg-type,misc]

    with GradCAM(model, [layer], reshape_transform=as_map) as cam:
        found = cam(images, [ClassifierOutputTarget(int(each)) for each in classes])
    model.zero_grad()
    return torch.from_numpy(found)
