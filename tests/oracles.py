"""What tests compare with, and how near is near: the one place that says it.

Two measures, and no third. A number that some processor happened to meet is none: another one's
kernels sum in another order and meet another number.

- float64: :func:`assert_near`. Every processor is the same to within rounding, which is far below
  all that a test looks for. The fixture ``float64`` makes a whole test run in it.
- float32 and half precision, where they are what is tested: :func:`assert_accurate`. How much is
  lost depends on the formula, its numbers and the processor, so it is measured in place.

The loop is the one that the library ships for others' tests; it shares no code with what it is
compared with. pytest puts this folder on the path (it holds a conftest.py), so tests say
``from oracles import ...``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvattn.testing import slow_attention as loop_attention
from cvattn.testing.subject import copy_of

__all__ = [
    "FEW",
    "ROUNDING",
    "assert_accurate",
    "assert_hides",
    "assert_near",
    "call",
    "fill",
    "in_float64",
    "loop_attention",
    "outcome",
    "scalar",
]

# Midway between the eps of float64 and of float32, 23,000 times away from either: nothing that is
# float64 throughout comes near it, nothing that was float32 somewhere stays below it.
ROUNDING = (torch.finfo(torch.float64).eps * torch.finfo(torch.float32).eps) ** 0.5
FEW = 4  # eps of the largest value: what a last rounding or two may cost anyone
ENOUGH = 64  # numbers of which the largest error is no accident, as a rule
MOST_RUNS = 8


def assert_near(actual: Tensor, expected: Tensor, what: str = "") -> None:
    """Finite, of one shape, and in float64 apart by rounding at most."""
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)} {tuple(expected.shape)}"
    assert torch.isfinite(actual).all(), f"{what}: not finite"
    assert actual.dtype == expected.dtype == torch.float64, (
        f"{what}: {actual.dtype} and {expected.dtype}; assert_near is for float64 (the fixture "
        "float64 makes it the default), assert_accurate in others"
    )
    size = expected.abs().max().item()
    assert size > 1e-6, f"{what}: the expected values are all 0, which compares nothing"
    error = (actual - expected).abs().max().item()
    assert error <= ROUNDING * size, f"{what}: off by {error:.3g}, largest value {size:.3g}"


def assert_accurate(
    actual: Any,
    formula: Callable[..., Any],
    *given: Any,
    what: str = "",
    **terms: Any,
) -> None:
    """As accurate as a formula in the same dtype is: off by at most twice its error, or a few eps.

    ``formula(*given, **terms)`` runs as given and again with all tensors and modules in float64;
    the difference is its own error, the float64 result what ``actual`` is measured against.
    Its error may be small by accident, where there are few numbers or one of them lies at a kink:
    then it is the largest of several runs, each on neighbours of what was given (every number moved
    by up to one eps) and against the float64 result of those. What is given in float64 is held to
    its rounding, as by :func:`assert_near`.

    After attention-gym, which holds fused kernels to twice the error of the plain formula.

    Args:
        actual: a tensor, or tensors in the structure in which the formula gives them. The tensors
            of a mapping (gradients by name) are parts of one whole: "a few eps" is of the largest
            value of all, since some, as a key bias's gradient, are 0 but for rounding.
        formula: an independent one, or, for another form of the same (compiled, exported, another
            memory layout), the thing itself.
    """
    with torch.random.fork_rng(devices=[]):
        state = torch.get_rng_state()

        def run(arguments: Any) -> list[dict[str, Tensor]]:
            torch.set_rng_state(state)
            return _groups(formula(*arguments[0], **arguments[1]))

        arguments = (given, terms)
        own, exact = run(arguments), run(in_float64(arguments))
        errors = _errors(own, exact)
        fewest = min(sum(tensor.numel() for tensor in group.values()) for group in exact)
        generator = torch.Generator().manual_seed(0)
        for count in range(1, MOST_RUNS):
            # Neighbours cost as much as the formula: where one run is enough they are not asked.
            if count * fewest >= ENOUGH and _complaint(actual, own, exact, errors, what) is None:
                break
            moved = _neighbour(arguments, generator)
            more = _errors(run(moved), run(in_float64(moved)))
            errors = [max(pair) for pair in zip(errors, more, strict=True)]
    complaint = _complaint(actual, own, exact, errors, what)
    assert complaint is None, complaint


def _complaint(
    actual: Any,
    own: list[dict[str, Tensor]],
    exact: list[dict[str, Tensor]],
    errors: list[float],
    what: str,
) -> str | None:
    """What is less accurate than the formula, whose errors these are; None = nothing."""
    found = _groups(actual)
    assert [each.keys() for each in found] == [each.keys() for each in exact], what
    limits = iter(errors)
    for got, lower, want in zip(found, own, exact, strict=True):
        size = max(tensor.abs().max().item() for tensor in want.values())
        assert size > 1e-6, f"{what}: the expected values are all 0, which compares nothing"
        for name, limit in zip(want, limits, strict=False):
            label = f"{what} {name}".strip()
            assert got[name].shape == want[name].shape, f"{label}: {got[name].shape}"
            assert torch.isfinite(got[name]).all(), f"{label}: not finite"
            dtype, error = lower[name].dtype, _apart(got[name], want[name])
            few = ROUNDING if dtype == torch.float64 else FEW * torch.finfo(dtype).eps
            if not error <= 2 * limit + few * size:
                return (
                    f"{label}: off by {error:.3g}; the formula itself in {dtype} by {limit:.3g}, "
                    f"the least that is allowed is {few * size:.3g}"
                )
    return None


def outcome(module: Callable[..., Tensor], *inputs: Tensor, **terms: Any) -> tuple[Any, ...]:
    """Output, and the gradients of inputs and parameters (by name) of :func:`scalar` of it."""
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    output = module(*inputs, **terms)
    named = dict(module.named_parameters()) if isinstance(module, nn.Module) else {}
    found = torch.autograd.grad(scalar(output), [*inputs, *named.values()])
    slopes, own = found[: len(inputs)], dict(zip(named, found[len(inputs) :], strict=True))
    return (output.detach(), *slopes, own) if own else (output.detach(), *slopes)


def call(module: Callable[..., Any], *inputs: Any, **terms: Any) -> Any:
    """``module(*inputs, **terms)``: the formula that is a module or a function itself."""
    return module(*inputs, **terms)


def in_float64(value: Any) -> Any:
    """A copy of tensors and modules, in any nesting, whose floating-point numbers are float64."""
    return _mapped(value, lambda tensor: tensor.double())


def _neighbour(value: Any, generator: torch.Generator) -> Any:
    def moved(tensor: Tensor) -> Tensor:
        steps = torch.randint(-1, 2, tensor.shape, generator=generator).to(tensor)
        return tensor * (1 + steps * torch.finfo(tensor.dtype).eps)

    return _mapped(value, moved)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            return value
        return change(value.detach()).requires_grad_(value.requires_grad)
    if isinstance(value, nn.Module):
        module = copy_of(value)
        module._apply(lambda tensor: change(tensor) if tensor.is_floating_point() else tensor)
        return module
    if isinstance(value, Mapping):
        return {key: _mapped(each, change) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(each, change) for each in value)
    return value


def _groups(result: Any) -> list[dict[str, Tensor]]:
    if isinstance(result, Tensor):
        return [{"": result.detach()}]
    if isinstance(result, Mapping):
        return [{str(name): tensor.detach() for name, tensor in result.items()}]
    assert isinstance(result, Sequence), type(result)
    return [group for each in result for group in _groups(each)]


def _apart(actual: Tensor, expected: Tensor) -> float:
    return (actual.double() - expected.double()).abs().max().item()


def _errors(own: list[dict[str, Tensor]], exact: list[dict[str, Tensor]]) -> list[float]:
    """The largest error of each tensor, in order."""
    pairs = zip(own, exact, strict=True)
    return [_apart(group[name], want[name]) for group, want in pairs for name in want]


def assert_hides(mask: Tensor) -> Tensor:
    """The mask, which must hide something and show something for a test to mean anything."""
    assert mask.dtype == torch.bool
    assert mask.any()
    assert not mask.all()
    return mask


def fill(module: nn.Module) -> nn.Module:
    """Every parameter at random: biases and norms that start at 0 or 1 would hide faults."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    return module


def scalar(output: Tensor) -> Tensor:
    """One number to differentiate; the uneven weights show swapped columns, as a sum would not."""
    # Steps of 1/32 from -1 to 2: exact in every dtype, so that all differentiate the same.
    steps = torch.arange(output.numel(), device=output.device) * 37 % 97 - 32
    return (output * (steps / 32).to(output.dtype).view_as(output)).sum()
