"""CNNs that were made for images of 224 pixels, for images of 32."""

import torch
from torch import Tensor, nn

from cvattn.core.modes import in_eval_mode

_SIZE = (64, 96)  # of the image that is passed through
_EARLY = 4  # layers see this part of the image's side or more where they are changed


def keep_early_size(cnn: nn.Module, in_channels: int) -> None:
    """Let the layers that halve the map first, to a quarter, keep its size, in place.

    Such a convolution gets stride 1; such a pool is taken out. No weight changes its shape, so
    pretrained ones still load. A ResNet whose last map is 1/32 of the image (1 pixel of 32) has one
    of 1/8 then, as the ResNets for CIFAR-10 have (He et al., 2016, with a 3x3 stem in place of the
    7x7 one). Works for ResNets and their kin, RegNet, EfficientNet, MobileNet, DenseNet, VGG; not
    where a stem cuts the image into patches (ConvNeXt).

    Raises:
        ValueError: a layer that would not keep the size, by name; a network that does not take
            images of 64 x 96 pixels.
    """
    example = next(cnn.parameters()).new_zeros(1, in_channels, *_SIZE)
    halving = [
        name
        for name, (before, after) in _sides(cnn, example).items()
        if after <= before * 0.6 and before * _EARLY > _SIZE[0] and _strides(cnn, name)
    ]
    for name in halving:
        layer = cnn.get_submodule(name)
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
        elif not list(layer.parameters()):
            cnn.set_submodule(name, nn.Identity())
    sides = _sides(cnn, example)
    for name in halving:
        before, after = sides[name]
        if before != after:
            raise ValueError(
                f"{type(cnn).__name__} cannot have a stem for small images: {name}, "
                f"{cnn.get_submodule(name)}, does not keep the size of the map at stride 1. Set "
                "small_images=False and use larger images, or choose another network"
            )


def _strides(cnn: nn.Module, name: str) -> bool:
    return getattr(cnn.get_submodule(name), "stride", 1) not in (1, (1, 1))


@torch.no_grad()
def _sides(cnn: nn.Module, example: Tensor) -> dict[str, tuple[int, int]]:
    """Height of the map before and behind each layer without children, in one pass."""
    found: dict[str, tuple[int, int]] = {}

    def note(name: str, given: tuple, output: Tensor) -> None:
        if given and all(isinstance(x, Tensor) and x.ndim == 4 for x in (given[0], output)):
            found[name] = given[0].shape[2], output.shape[2]

    handles = [
        layer.register_forward_hook(lambda _, given, output, name=name: note(name, given, output))
        for name, layer in cnn.named_modules()
        if not list(layer.children())
    ]
    try:
        with in_eval_mode(cnn):
            cnn(example)
    except Exception as error:  # networks complain about sizes in many ways
        raise ValueError(
            f"{type(cnn).__name__} cannot have a stem for small images: it does not take one of "
            f"{_SIZE} ({error})"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return found
