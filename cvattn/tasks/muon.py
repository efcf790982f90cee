"""Muon: momentum whose steps are orthogonalised, for filters and matrices."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

# Five or so of these steps bring every singular value near 1 (Jordan et al., 2024, who chose the
# coefficients for their slope at 0: the values end in 0.7..1.2 instead of converging).
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(Optimizer):
    """Muon for what lies between input and output, AdamW for the rest, in one optimiser.

    A filter or matrix W, taken as (outputs, everything else), moves by ``lr`` times the nearest
    semi-orthogonal matrix of its Nesterov momentum: all its directions learn at one pace (Jordan et
    al., "Muon: an optimizer for hidden layers in neural networks", 2024). ``torch.optim.Muon``
    takes matrices alone.

    Which is which the groups say, by their ``role`` (:func:`cvattn.tasks.parameter_groups`):
    "hidden" goes to Muon, "head" and "vector" to AdamW. A group without a role is "hidden" if all
    its tensors have 2 dimensions or more.

    Args:
        params: groups, or tensors.
        lr: of the hidden filters and matrices; with it a row moves by about ``lr`` a step.
        momentum: of the hidden ones.
        weight_decay: of the hidden ones and the head, decoupled: they shrink by lr * weight_decay.
        newton_schulz_steps: how far the orthogonalisation goes.
        head_lr, vector_lr: AdamW's, of the head and of biases, norms, gamma and positions.
        betas, eps: AdamW's.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        newton_schulz_steps: int = 5,
        head_lr: float = 3e-3,
        vector_lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        given = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        given |= {"head_lr": head_lr, "vector_lr": vector_lr}
        for name, value in given.items():
            if not value >= 0.0:
                raise ValueError(f"{name}={value} must be 0 or positive")
        if momentum >= 1.0:
            raise ValueError(f"momentum={momentum} must be below 1")
        self._lrs = {"hidden": lr, "head": head_lr, "vector": vector_lr}
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "newton_schulz_steps": newton_schulz_steps,
            "betas": tuple(betas),
            "eps": eps,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        params = param_group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        hidden = all(p.ndim >= 2 for p in params)
        role = param_group.get("role", "hidden" if hidden else "vector")
        if role not in self._lrs:
            raise ValueError(f"role={role!r} of a group: expected one of {sorted(self._lrs)}")
        if role == "hidden" and not hidden:
            shape = next(tuple(p.shape) for p in params if p.ndim < 2)
            raise ValueError(
                f"a hidden tensor has the shape {shape}; Muon needs 2 dimensions or more: give "
                "vectors the role 'vector'"
            )
        super().add_param_group(
            {"lr": self._lrs[role], **param_group, "params": params, "role": role}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["role"] == "hidden":
                for parameter in params:
                    _muon(parameter, self.state[parameter], group)
            elif params:
                _adamw(params, [self.state[p] for p in params], group)
        return loss


def _muon(parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    assert parameter.grad is not None
    if not state:
        state["momentum"] = torch.zeros_like(parameter)
    momentum = state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
    ahead = parameter.grad.add(momentum, alpha=group["momentum"])
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    direction = orthogonalised(ahead.flatten(1), group["newton_schulz_steps"])
    parameter.add_(direction.view_as(parameter), alpha=-group["lr"])


def _adamw(params: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]) -> None:
    for parameter, state in zip(params, states, strict=True):
        if not state:
            state["step"] = torch.zeros(())
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
    adamw(
        params,
        [p.grad for p in params if p.grad is not None],
        [state["mean"] for state in states],
        [state["square"] for state in states],
        [],
        [state["step"] for state in states],
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def orthogonalised(matrix: Tensor, steps: int) -> Tensor:
    """The semi-orthogonal matrix nearest to a (M, N) one, roughly: singular values in 0.7..1.2.

    By a quintic Newton-Schulz iteration, matrix products alone; on a GPU in bfloat16, which is
    exact enough for it. A matrix of zeros stays.
    """
    dtype = torch.bfloat16 if matrix.is_cuda else torch.float32
    x = (matrix / (matrix.norm() + 1e-7)).to(dtype)
    wide = x if matrix.shape[0] <= matrix.shape[1] else x.T
    for _ in range(steps):
        gram = wide @ wide.T
        wide = _A * wide + (_B * gram + _C * gram @ gram) @ wide
    return (wide if matrix.shape[0] <= matrix.shape[1] else wide.T).to(matrix.dtype)
