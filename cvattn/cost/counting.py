"""Multiply-accumulates and parameters of a module."""

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cvattn.core.copies import copy_with, running_uncompiled


def count_parameters(module: nn.Module, *, frozen: bool = False) -> int:
    """Number of parameters that are trained; with ``frozen``, of those that are not, too."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or frozen)


def count_macs(module: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulates of one forward pass: convolutions, linear layers, attention products.

    Attention is counted on its reference products with true widths, whatever kernel will run.
    Nothing is computed: shapes alone pass through a copy of the module, so that large inputs cost
    no memory.
    """
    shapes = copy_with(module, lambda tensor: tensor.to("meta")).eval()
    # Without gradients a view of a parameter (a learned query that a layer is given) still says
    # that it wants some, and the counter asks where they go.
    shapes.requires_grad_(False)
    counter = FlopCounterMode(display=False)
    with running_uncompiled(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        shapes(*(given.to("meta") for given in inputs))
    return counter.get_total_flops() // 2


def training_pflop(macs_per_image: int, images: int) -> float:
    """Cost of training in PFLOP: 6 x MACs x images / 1e15.

    A multiply-accumulate is 2 operations, and the backward pass costs about twice the forward.
    """
    return 6 * macs_per_image * images / 1e15
