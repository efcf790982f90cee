"""Masks to try on a module, and which tokens then have effect on which outputs."""

from typing import Any

import torch
from torch import Tensor

from cvattn.testing.subject import BATCH, ModuleRaised, Subject

MOST_TOKENS = 12  # that are changed, one after the other


def random_mask(subject: Subject, count: int) -> Tensor:
    """(count, N, N), each another; a query sees some other token, and some it does not."""
    n = subject.tokens
    allowed = torch.rand(count, n, n, generator=subject.generator) < 0.6
    rows = torch.arange(n)
    allowed[:, rows, (rows + 1) % n] = True
    allowed[:, rows, (rows + 2) % n] = False
    return allowed.to(subject.device)


def hand_over(subject: Subject, allowed: Tensor) -> Tensor | str:
    """The mask (B, N, N) in the first shape that the module takes, or what it says to all."""
    x = subject.draw()
    alike = bool((allowed == allowed[:1]).all())
    said = []
    for mask in (allowed[:, None], allowed, *([allowed[0]] if alike else [])):
        mask = mask.contiguous()
        try:
            shape = subject(x, attn_mask=mask).shape
        except ModuleRaised as error:
            said.append(str(error))
            continue
        if shape == x.shape:
            return mask
        said.append(f"with attn_mask {tuple(mask.shape)} the output is {tuple(shape)}")
    return "; ".join(said)


def reach(
    subject: Subject, wanted: Tensor, *, each_sample: bool = False, **terms: Any
) -> tuple[Tensor, Tensor]:
    """(seen, looked): does changing token j change output i, (N, N) or (B, N, N), and was it tried.

    A token's own output always changes with it, so the diagonal is not looked at. Where not all
    that is ``wanted`` is seen, smaller inputs are tried too: large trained weights make a softmax
    that hides keys by itself.
    """
    n = subject.tokens
    seen = torch.zeros(BATCH, n, n, dtype=torch.bool, device=subject.device)
    looked = torch.zeros(n, n, dtype=torch.bool, device=subject.device)
    changed = range(0, n, max(1, n // MOST_TOKENS))
    looked[:, list(changed)] = True
    looked.fill_diagonal_(False)
    for size in (1.0, 0.1, 0.01):
        x = size * subject.draw()
        before = subject.rows(subject(x, **terms))
        for j in changed:
            moved = subject.with_tokens(x, [j], size * subject.draw())
            after = subject.rows(subject(moved, **terms))
            seen[:, :, j] |= subject.differ(after, before).any(-1)
        found = seen if each_sample else seen.any(0)
        if not (wanted & looked & ~found).any():
            break
    return found, looked
