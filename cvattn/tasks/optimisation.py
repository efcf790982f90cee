"""Parameter groups and the learning-rate schedule that every task uses."""

import math
from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cvattn.blocks import split_parameters

# A partial optimiser, as `_partial_: true` makes it: takes the groups, returns the optimiser.
OptimizerFactory = Callable[[list[dict]], Optimizer]


def parameter_groups(network: nn.Module) -> list[dict]:
    """Groups, each with a ``role`` that an optimiser may go by (:class:`Muon` does).

    - "vector", with ``weight_decay = 0``: everything with fewer than 2 dimensions (biases, norms,
      gamma, class token), and what a module lists in ``no_weight_decay`` (positions);
    - "head": the other tensors of ``network.head``, and embeddings;
    - "hidden": the filters and matrices in between.

    Those of inserted attention blocks are apart from the others of their role, with ``inserted =
    True``.
    """
    new = {id(parameter) for parameter in split_parameters(network)[0]}
    found: dict[tuple[bool, str], list[nn.Parameter]] = {
        (inserted, role): [] for inserted in (False, True) for role in ("hidden", "head", "vector")
    }
    seen: set[int] = set()
    for path, module in network.named_modules():
        exempt = getattr(module, "no_weight_decay", ())
        exempt = exempt() if callable(exempt) else exempt  # a method in timm's networks
        ends = path.partition(".")[0] == "head" or isinstance(module, nn.Embedding)
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            vector = parameter.ndim < 2 or name in exempt
            role = "vector" if vector else "head" if ends else "hidden"
            found[id(parameter) in new, role].append(parameter)
    groups = []
    for (inserted, role), parameters in found.items():
        group: dict = {"params": parameters, "role": role}
        group |= {"weight_decay": 0.0} if role == "vector" else {}
        group |= {"inserted": True} if inserted else {}
        groups.append(group)
    return [group for group in groups if group["params"]]


def scale_inserted(optimizer: Optimizer, factor: float) -> Optimizer:
    """Multiply the learning rates of inserted attention blocks, in place."""
    for group in optimizer.param_groups:
        if group.get("inserted"):
            group["lr"] *= factor
    return optimizer


def check_schedule(warmup: float, final: float) -> None:
    """ValueError unless :func:`warmup_cosine` has a meaning with them."""
    if not 0.0 <= warmup < 1.0 or not 0.0 <= final <= 1.0:
        raise ValueError(f"warmup={warmup} must be in [0, 1) and final={final} in [0, 1]")


def warmup_cosine(optimizer: Optimizer, *, steps: int, warmup: float, final: float) -> LambdaLR:
    """Per step: linear rise over the first ``warmup`` share of ``steps``, then cosine to ``final``.

    Args:
        steps: optimiser steps of the whole training.
        warmup: share of the steps, in [0, 1).
        final: factor on the learning rate at the end, in [0, 1].
    """
    check_schedule(warmup, final)
    rise = max(1, round(warmup * steps)) if warmup else 0

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        done = min(1.0, (step - rise) / max(1, steps - rise))
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)
