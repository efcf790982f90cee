"""A module and its inputs as shapes on any device: all decisions are made, nothing is computed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cvattn.core.copies import copy_with, running_uncompiled
from cvattn.core.memory import shapes_alone


@contextmanager
def as_shapes(
    module: nn.Module, inputs: Sequence[Tensor | None], *, training: bool, device: str
) -> Iterator[tuple[nn.Module, list[Tensor | None]]]:
    """A copy of the module and inputs, on ``device``, to be called inside the ``with``.

    torch's fake tensors say that they are on ``device`` and have its dtype and strides, so that
    code which asks decides as it would there; no such device is needed. The copy is in train or
    eval mode with gradients on or off. The module itself is not touched, nor are its values
    copied.

    Raises:
        ValueError: a device other than "cpu" and "cuda".
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r}; expected 'cpu' or 'cuda'")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        shapes = copy_with(module, lambda tensor: _fake(tensor, device)).train(training)
        fakes = [
            None if given is None else _fake(given, device).requires_grad_(given.requires_grad)
            for given in inputs
        ]
    with running_uncompiled(), shapes_alone(), mode, torch.set_grad_enabled(training):
        yield shapes, fakes


def _fake(tensor: Tensor, device: str) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
