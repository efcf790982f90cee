"""The module under test: a copy in float64 that can be called in one way, whatever it is."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvattn.core.copies import copy_with
from cvattn.core.devices import widest_float

BATCH = 3  # samples in every check
TERMS = ("attn_mask", "is_causal", "need_weights")


class ModuleRaised(Exception):
    """The module itself raised; the text says what and on which shape."""


class Subject:
    """A copy of a module, in eval mode, with what the checks need to know about it.

    Args:
        module: any module from tokens to tokens or from maps to maps. It is not touched.
        example: (B, N, D) or (B, C, H, W); gives the sizes and the device.
        call: ``call(module, x, **terms)``, or None for ``module(x, **terms)``.
        positions: it knows where its tokens are.
        projections: names of the submodules that give q, k and v, or None.
        seed: of all numbers that are drawn.
    """

    def __init__(
        self,
        module: nn.Module,
        example: Tensor,
        *,
        call: Callable[..., Any] | None,
        positions: bool,
        projections: Sequence[str] | None,
        seed: int,
    ) -> None:
        self.call = call
        self.positions = positions
        self.projections = projections
        # The checks need the digits of float64, which not every device has.
        exact = widest_float(example.device) is torch.float64
        self.device = example.device if exact else torch.device("cpu")
        self.is_map = example.ndim == 4
        self.sizes = tuple(example.shape[1:])
        self.generator = torch.Generator().manual_seed(seed)
        self.terms, self.other_mask = _takes(module.forward if call is None else call)
        self.random = False  # found out by check_eval
        self.given = copy_of(module)
        self.dtype = torch.float64
        self.module = self._prepared(self.dtype)

    def use(self, dtype: torch.dtype) -> None:
        """Start again in another dtype, for modules that cast to float32 by themselves."""
        self.dtype = dtype
        self.module = self._prepared(dtype)

    def _prepared(self, dtype: torch.dtype) -> nn.Module:
        module = copy_of(self.given).to(self.device, dtype).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                # What stands at one value hides faults: gamma = 0 compares x with x, biases of 0
                # and norms of 1 do nothing. The other weights stay as they are, as does a frozen
                # factor such as 1/sqrt(d).
                one_value = parameter.numel() > 0 and bool(
                    (parameter == parameter.flatten()[0]).all()
                )
                frozen = not parameter.requires_grad and bool(parameter.any())
                if parameter.is_floating_point() and one_value and not frozen:
                    noise = self._noise(parameter)
                    parameter.copy_(torch.where(parameter == 0, noise, parameter * (1 + noise)))
        return module

    def _noise(self, parameter: Tensor) -> Tensor:
        shape = parameter.shape
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        if fan_in > 1:
            drawn = torch.randn(shape, generator=self.generator) / fan_in**0.5
        else:
            drawn = 0.2 + 0.3 * torch.rand(shape, generator=self.generator)
        return drawn.to(parameter)

    @property
    def tolerance(self) -> float:
        """Half the digits of the dtype: more than rounding takes, less than a fault leaves."""
        return torch.finfo(self.dtype).eps ** 0.5

    @property
    def tokens(self) -> int:
        return self.sizes[1] * self.sizes[2] if self.is_map else self.sizes[0]

    def draw(self, sizes: Sequence[int] | None = None) -> Tensor:
        """(3, N, D) or (3, C, H, W) of normal numbers."""
        sizes = self.sizes if sizes is None else sizes
        x = torch.randn(BATCH, *sizes, generator=self.generator, dtype=torch.float64)
        return x.to(device=self.device, dtype=self.dtype)

    def draw_like(self, tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=self.generator).to(tensor)

    def rows(self, x: Tensor) -> Tensor:
        """Tokens in the second dimension: (B, N, D), from tokens or from a map."""
        return x.flatten(2).mT if self.is_map else x

    def with_tokens(self, x: Tensor, tokens: Sequence[int], new: Tensor) -> Tensor:
        """``x`` with the chosen tokens taken from ``new``, an input of the same shape."""
        chosen = torch.zeros(self.tokens, dtype=torch.bool, device=x.device)
        chosen[list(tokens)] = True
        return torch.where(chosen.view(x.shape[2:]) if self.is_map else chosen[:, None], new, x)

    def same(self, a: Tensor, b: Tensor) -> bool:
        """Apart by rounding at most."""
        return not bool(self.differ(a, b).any())

    def differ(self, a: Tensor, b: Tensor) -> Tensor:
        """Where they are apart by more than rounding; NaN differs from everything."""
        size = max(b.abs().nan_to_num().max().item(), 1e-3) if b.numel() else 1.0
        return ~((a - b).abs() <= self.tolerance * size)

    def __call__(self, x: Tensor, *, module: nn.Module | None = None, **terms: Any) -> Tensor:
        """The output alone, of the copy or of ``module``."""
        result = self._run(x, self.module if module is None else module, terms)
        output = result[0] if isinstance(result, (tuple, list)) and result else result
        if not isinstance(output, Tensor):
            raise ModuleRaised(f"gave a {type(output).__name__}, not a tensor or (output, weights)")
        return output

    def weights(self, x: Tensor) -> Tensor | None:
        """The weights as the module gives them, or None where it gives none."""
        terms = {"need_weights": True} if "need_weights" in self.terms else {}
        result = self._run(x, self.module, terms)
        second = result[1] if isinstance(result, (tuple, list)) and len(result) > 1 else None
        return second.detach() if isinstance(second, Tensor) and second.ndim > 2 else None

    def _run(self, x: Tensor, module: nn.Module, terms: dict[str, Any]) -> Any:
        try:
            return module(x, **terms) if self.call is None else self.call(module, x, **terms)
        except Exception as error:
            name, what = type(error).__name__, str(error).strip().split("\n")[0]
            given = "".join(
                f", {k} {tuple(v.shape)}" if isinstance(v, Tensor) else f", {k}={v}"
                for k, v in terms.items()
            )
            raise ModuleRaised(f"{name} on an input {tuple(x.shape)}{given}: {what}") from error


def copy_of(module: nn.Module) -> nn.Module:
    """A deep copy, also of modules that keep a computed tensor (the older spectral_norm does)."""
    return copy_with(module, Tensor.clone)


def _takes(function: Callable[..., Any]) -> tuple[frozenset[str], str | None]:
    """Which of TERMS a function names, and an argument that looks like a mask of another name."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return frozenset(), None
    named = [
        name
        for name, each in parameters.items()
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]
    other = next((name for name in named if "mask" in name and name not in TERMS), None)
    return frozenset(named) & frozenset(TERMS), other
