"""MixUp and CutMix: training on two images at once."""

from collections.abc import Callable

from torch import Tensor

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mixing(mixup: float, cutmix: float, num_classes: int) -> Mixing | None:
    """torchvision's MixUp (Zhang et al., 2017), CutMix (Yun et al., 2019), or one of both by lot.

    Args:
        mixup, cutmix: the parameter of the Beta distribution that the share of the second image is
            drawn from, once a batch; 0: not done.

    Returns:
        images (B, C, H, W) and labels (B,) -> mixed images and class probabilities
        (B, num_classes); None if neither is asked for.
    """
    for name, value in (("mixup", mixup), ("cutmix", cutmix)):
        if value < 0:
            raise ValueError(f"{name}={value} must be 0 (not done) or positive")
    if not mixup and not cutmix:
        return None
    from torchvision.transforms import v2

    chosen = [
        make(alpha=alpha, num_classes=num_classes)
        for make, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        if alpha
    ]
    return chosen[0] if len(chosen) == 1 else v2.RandomChoice(chosen)
