"""bf16 or fp32: measured on this machine with this network, not assumed."""

import copy
import time

import torch
from torch import Tensor, nn

from cvattn.harness.config.decisions import Decision

# bf16 has to be this much faster to be worth its rounding.
GAIN = 1.15
# And its loss within this much of fp32's on the same batch.
TOLERANCE = 0.05


def probe_precision(network: nn.Module, *inputs: Tensor, channels_last: bool) -> Decision:
    """ "bf16-mixed" if a few training steps in bf16 are right and clearly faster, else "32-true".

    Args:
        network: not changed; a copy is stepped on the inputs' device.
        inputs: what it is called with, such as images (B, C, H, W), about a batch of the size that
            will be trained; content is irrelevant.
    """
    if inputs[0].device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return Decision("32-true", "this GPU has no bf16")
    if channels_last:
        inputs = tuple(map(_channels_last, inputs))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        exact, exact_time = _measure(network, *inputs, enabled=False)
        torch.manual_seed(0)
        rounded, rounded_time = _measure(network, *inputs, enabled=True)
    difference = abs(exact - rounded) / max(abs(exact), 1e-6)
    if not difference <= TOLERANCE:
        return Decision(
            "32-true", f"the probe's loss in bf16 was {difference:.0%} off that in fp32"
        )
    gain = exact_time / rounded_time
    choice = "bf16-mixed" if gain >= GAIN else "32-true"
    return Decision(choice, f"bf16 ran at {gain:.1f} times the speed of fp32 in a probe")


def _channels_last(x: Tensor) -> Tensor:
    """Images so; noise, times and labels, which have no channels, as they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _measure(network: nn.Module, *inputs: Tensor, enabled: bool) -> tuple[float, float]:
    """First loss, and the fastest of two steps in seconds."""
    device = inputs[0].device
    network = copy.deepcopy(network).to(device).train()
    loss_value, fastest = 0.0, float("inf")
    for step in range(3):
        begin = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
            logits = network(*inputs)
        loss = logits.float().logsumexp(-1).mean() + logits.float().square().mean()
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if step == 0:
            loss_value = loss.item()  # the first step also warms up
        else:
            fastest = min(fastest, time.perf_counter() - begin)
    return loss_value, fastest
