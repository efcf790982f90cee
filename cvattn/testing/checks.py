"""check_attention: is this module self-attention, and does it do what its arguments say?"""

from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from cvattn.testing.mask_checks import (
    check_causal,
    check_causal_mask,
    check_empty_rows,
    check_mask,
    check_sample_masks,
)
from cvattn.testing.projections import check_dot_product
from cvattn.testing.report import AttentionCheckError, Finding, Report, failed, not_applicable
from cvattn.testing.sizes import check_sizes, runs
from cvattn.testing.structure_checks import (
    check_mixing,
    check_permutation,
    check_samples,
    check_transpose,
    check_weights,
)
from cvattn.testing.subject import ModuleRaised, Subject
from cvattn.testing.training_checks import check_eval, check_gamma, check_gradients

CHECKS: dict[str, Callable[[Subject], Finding]] = {
    "eval": check_eval,
    "weights": check_weights,
    "mixing": check_mixing,
    "dot_product": check_dot_product,
    "permutation": check_permutation,
    "transpose": check_transpose,
    "samples": check_samples,
    "mask": check_mask,
    "sample_masks": check_sample_masks,
    "empty_rows": check_empty_rows,
    "causal": check_causal,
    "causal_mask": check_causal_mask,
    "gamma": check_gamma,
    "gradients": check_gradients,
}
# Where these fail, so would the check: one fault should be named once.
BASE = ("weights", "mixing", "permutation", "samples")
NEEDS = {
    "dot_product": ("weights",),
    "mask": BASE,
    "causal": BASE,
    "sample_masks": (*BASE, "mask"),
    "empty_rows": (*BASE, "mask"),
    "causal_mask": (*BASE, "mask", "causal"),
}


def check_attention(
    module: nn.Module,
    example: Tensor,
    *,
    call: Callable[..., Any] | None = None,
    positions: bool = False,
    projections: Sequence[str] | None = None,
    skip: Collection[str] = (),
    seed: int = 0,
) -> Report:
    """Check a self-attention module: one's own, a copied one, or one of cvattn.

    ::

        check_attention(SelfAttention2d(16), torch.empty(1, 16, 5, 7))
        check_attention(MultiHeadAttention(12, 3), torch.empty(1, 7, 12))
        check_attention(
            nn.MultiheadAttention(12, 3, batch_first=True),
            torch.empty(1, 7, 12),
            call=lambda module, x: module(x, x, x, average_attn_weights=False),
        )

    The checks run on a copy in float64 and eval mode, in which parameters that stand at one value
    (gamma = 0, biases of 0, norms of 1) get others, so that x is not compared with x. The module
    and torch's random state stay as they are.

    Args:
        module: (B, C, H, W) -> (B, C, H, W) or (B, N, D) -> (B, N, D). It may give
            ``(output, weights)``, weights (B, N, keys) or (B, heads, N, keys), always or with
            ``need_weights=True``.
        example: an input; its shape (without the batch) and device are used, its values are not.
            Unequal H and W see more than equal ones. A few tokens are enough: memory grows with
            the square of their number.
        call: ``call(module, x)`` for modules that want something else than ``module(x)``; it must
            call the module that it is given, which is the copy. Masks and causality are checked
            where it (or ``module.forward``) names ``attn_mask`` (bool, True = may attend; handed
            over as (B, 1, N, N), or (B, N, N) or (N, N) where that is refused) or ``is_causal``.
        positions: the module knows where its tokens are (embedding, relative bias, convolution);
            the order of tokens is then not checked.
        projections: names of the submodules that give q, k and v, where they are not found by name.
        skip: names of checks to leave out, for what differs on purpose.
        seed: of the numbers that are drawn.

    Returns:
        :class:`Report`: what passed, and what was not applicable and why. ``print`` it.

    Raises:
        AttentionCheckError: an AssertionError that lists every failed check: what was found, what
            was expected, and the likely cause. Its ``report`` has the rest.
        ValueError: an example of another shape or too small; an unknown name in ``skip``.
    """
    _check_arguments(module, example, projections, skip)
    devices = [example.device] if example.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.default_generator.manual_seed(seed)  # not manual_seed: it reaches all devices
        subject = Subject(
            module, example, call=call, positions=positions, projections=projections, seed=seed
        )
        findings = {"sizes": _run(check_sizes, subject)}
        for name, check in CHECKS.items() if runs(subject, subject.sizes) else ():
            if name in skip:
                continue
            missing = [need for need in NEEDS.get(name, ()) if _failed(findings, need)]
            if subject.random:
                findings[name] = not_applicable("nothing can be compared: its outputs are random")
            elif missing:
                findings[name] = not_applicable(f"not made, since {missing[0]!r} failed")
            else:
                findings[name] = _run(check, subject)
    report = Report(type(module).__name__, findings)
    if report.failed:
        raise AttentionCheckError(report)
    return report


def _failed(findings: dict[str, Finding], name: str) -> bool:
    return name in findings and findings[name].outcome == "failed"


def _run(check: Callable[[Subject], Finding], subject: Subject) -> Finding:
    try:
        return check(subject)
    except ModuleRaised as error:
        how = "module(x)" if subject.call is None else "call(module, x)"
        return failed(
            f"{how}: {error}",
            "a tensor of the input's shape, or (output, weights)",
            "the module wants other arguments: call=lambda module, x: ... hands them over",
        )


def _check_arguments(
    module: nn.Module, example: Tensor, projections: Sequence[str] | None, skip: Collection[str]
) -> None:
    if example.ndim not in (3, 4):
        raise ValueError(
            f"example has shape {tuple(example.shape)}; expected tokens (B, N, D) or a feature map "
            "(B, C, H, W)"
        )
    tokens = example.shape[1] if example.ndim == 3 else example.shape[2] * example.shape[3]
    if tokens < 4 or (example.ndim == 4 and min(example.shape[2:]) < 2):
        raise ValueError(
            f"example {tuple(example.shape)} has too few tokens to show anything; expected at "
            "least 4 (and 2 rows and columns of a map), 7 or 5x7 are good"
        )
    if isinstance(skip, str):
        raise ValueError(f"skip={skip!r} is a string; expected names: skip=({skip!r},)")
    for name in skip:
        if name not in CHECKS:
            near = get_close_matches(name, CHECKS) or list(CHECKS)
            raise ValueError(f"there is no check {name!r} to skip; there are: {', '.join(near)}")
    if projections is not None:
        known = {name for name, _ in module.named_modules()}
        wrong = [name for name in projections if name not in known]
        if wrong or len(projections) not in (1, 3):
            raise ValueError(
                f"projections={list(projections)}: expected the names of three submodules, for q, "
                "k and v, or of one that gives all three"
                + (f"; there is no {', '.join(wrong)}" if wrong else "")
            )
