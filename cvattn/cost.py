"""What a network costs: multiply-accumulates and parameters."""

import sys

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cvattn.core.attention import plan


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def count_macs(module: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulates of one forward pass: convolutions, linear layers, attention products.

    Attention is counted on its reference products with true widths, whatever kernel will run. Each
    submodule's mode and the buffers are left as they are.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    counter = FlopCounterMode(display=False)
    # Zero columns that a fused kernel would need on large maps are no work of the network's.
    bound, plan.SCORES_BOUND = plan.SCORES_BOUND, sys.maxsize
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            module(*inputs)
    finally:
        plan.SCORES_BOUND = bound
        for part, mode in modes:
            part.training = mode
    return counter.get_total_flops() // 2


def training_pflop(macs_per_image: int, images: int) -> float:
    """Cost of training in PFLOP: 6 x MACs x images / 1e15.

    A multiply-accumulate is 2 operations, and the backward pass costs about twice the forward.
    """
    return 6 * macs_per_image * images / 1e15
