"""Peak memory of a pass, predicted from shapes: what lives at each operator, and its workspace."""

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cvattn.cost.shapes import as_shapes
from cvattn.cost.workspace import WORKSPACE

# What MKL, oneDNN and OpenMP keep for themselves after the first large call on a CPU, measured as 3
# to 10 MiB on two cores.
LIBRARIES = 8 * 2**20


def predict_peak(
    module: nn.Module, *inputs: Tensor | None, training: bool, device: str = "cpu"
) -> int:
    """Bytes that one pass needs at its peak, above parameters, buffers and inputs.

    Args:
        module: any; its device does not matter.
        inputs: what it is called with; only shape, strides, dtype and requires_grad are read
            (``torch.empty(..., device="meta")`` will do).
        training: forward and backward of the output's sum, with the gradients of all parameters
            (and of inputs that require one), in train mode; else forward without gradients, in
            eval mode.
        device: "cpu" or "cuda"; torch cannot trace a CUDA pass where there is no GPU.

    Returns:
        Peak bytes. On a CPU within 15 % of what a fresh process is seen to use, for peaks of 64 MiB
        and more, where freed memory goes back at once (MALLOC_MMAP_THRESHOLD_=65536). glibc alone
        keeps some of it, which differs from run to run and can add a third or more.

    Raises:
        ValueError: a device other than "cpu" and "cuda".
        RuntimeError: "cuda" without a GPU.
        Whatever the module raises itself.
    """
    if not can_trace(device):
        raise RuntimeError(
            "device='cuda': torch finds no GPU here, and without one it can trace neither its "
            "kernels nor a backward pass; explain_attention gives the plan alone"
        )
    with as_shapes(module, inputs, training=training, device=device) as (shapes, fakes):
        given = [fake for fake in fakes if fake is not None]
        tracker = PeakTracker([*shapes.parameters(), *shapes.buffers(), *given])
        with tracker:
            output = shapes(*fakes)
            if training:
                total(output).backward()
    return tracker.peak + (LIBRARIES if device == "cpu" else 0)


def can_trace(device: str) -> bool:
    """Whether :func:`predict_peak` can answer for this device here."""
    return device != "cuda" or torch.cuda.is_available()


def total(output: Any) -> Tensor:
    """The sum of all float tensors in a module's output that have a gradient."""
    sums = [
        leaf.sum()
        for leaf in tree_leaves(output)
        if isinstance(leaf, Tensor) and leaf.requires_grad
    ]
    if not sums:
        raise ValueError("no output has a gradient: nothing can be trained here")
    return torch.stack([each.float() for each in sums]).sum() if len(sums) > 1 else sums[0]


class PeakTracker(TorchDispatchMode):
    """Adds each storage when an operator returns it and takes it away when it is freed.

    Args:
        baseline: tensors that are there before and are not counted.

    Attributes:
        live, peak: bytes now and at most, the operators' workspace included.
    """

    def __init__(self, baseline: Sequence[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref] = {}
        for tensor in baseline:
            storage = tensor.untyped_storage()
            self._known[id(storage)] = weakref.ref(storage)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        for tensor in made:
            self._add(tensor)
        workspace = 0
        if made and made[0].device.type == "cpu":
            needs = WORKSPACE.get(str(func.overloadpacket))
            workspace = 0 if needs is None else needs(*args)
        self.peak = max(self.peak, self.live + workspace)
        return output

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes()
        if tensor.device.type == "cuda":
            size = -(-size // 512) * 512  # the unit of torch's allocator

        def gone(_: weakref.ref) -> None:
            self.live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
