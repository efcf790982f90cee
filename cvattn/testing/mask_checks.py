"""Masks and causality: what a token may not see must not reach it, and what it may see must."""

import torch
from torch import nn

from cvattn.testing.reach import hand_over, random_mask, reach
from cvattn.testing.report import Finding, failed, not_applicable, passed
from cvattn.testing.subject import BATCH, ModuleRaised, Subject

# Their statistics are of all positions, so that each has effect on each.
_OVER_POSITIONS = (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


def check_mask(subject: Subject) -> Finding:
    """One mask for all samples: True = may attend."""
    if reason := _takes_no(subject, "attn_mask"):
        return not_applicable(reason)
    allowed = random_mask(subject, 1)[0]
    handed = hand_over(subject, allowed.expand(BATCH, -1, -1))
    if isinstance(handed, str):
        return failed(
            f"attn_mask is taken in no shape: {handed}",
            "(B, 1, L, S), (B, L, S) or (L, S), bool",
            "it wants another shape or dtype: write call= that converts",
        )
    seen, looked = reach(subject, allowed, attn_mask=handed)
    wanted = allowed & looked
    hidden = ~allowed & looked
    shape = f"mask {tuple(handed.shape)}"
    if not (seen & hidden).any():
        if (wanted & ~seen).any():
            return failed(
                f"{int((wanted & ~seen).sum())} of {int(wanted.sum())} pairs that the mask allows "
                "have no effect",
                "True = may attend",
                "the mask is applied twice, transposed, or hides more than it says",
            )
        return passed(f"what the mask hides has no effect, what it allows has ({shape})")
    expected = "a token that a query may not see (False) has no effect on it"
    if not (seen & wanted).any():
        return failed(
            "what the mask hides (False) has effect and what it allows (True) has none",
            expected,
            "the polarity is flipped: True = may attend; use masked_fill(~attn_mask, -inf), and "
            "give nn.MultiheadAttention ~attn_mask",
        )
    if not (looked & ~seen).any():
        return failed(
            "all tokens have effect, whatever the mask says",
            expected,
            "the mask is ignored, is applied after the softmax, or is added to the scores as 0 "
            "and 1",
        )
    if bool((seen == allowed.mT)[looked & looked.mT].all()):
        return failed(
            "the mask works with queries and keys exchanged",
            expected,
            "the mask or the softmax has queries and keys the wrong way round: scores are "
            "(..., queries, keys)",
        )
    return failed(
        f"{int((seen & hidden).sum())} of {int(hidden.sum())} pairs that it hides have effect",
        expected,
        "only some heads or samples follow the mask",
    )


def check_sample_masks(subject: Subject) -> Finding:
    """A mask for each sample: the samples must not see each other's."""
    if reason := _takes_no(subject, "attn_mask"):
        return not_applicable(reason)
    allowed = random_mask(subject, BATCH)
    handed = hand_over(subject, allowed)
    if isinstance(handed, str) or handed.ndim == 2:
        return not_applicable("it takes one mask for all samples only")
    seen, looked = reach(subject, allowed, attn_mask=handed, each_sample=True)
    leaks = seen & ~allowed & looked
    if not leaks.any():
        return passed("each sample follows its own mask")
    return failed(
        f"with a mask for each sample, hidden tokens have effect in "
        f"{int(leaks.flatten(1).any(1).sum())} of {BATCH} samples",
        "each sample follows its own mask",
        "samples see each other's masks: for scores of (B * heads, L, S) "
        "the mask needs .repeat_interleave(heads, 0), not .repeat(heads, 1, 1)",
    )


def check_empty_rows(subject: Subject) -> Finding:
    """A query that may attend to nothing: finite output and gradients, from nothing hidden."""
    if reason := _takes_no(subject, "attn_mask"):
        return not_applicable(reason)
    allowed = torch.ones(subject.tokens, subject.tokens, dtype=torch.bool, device=subject.device)
    allowed[1] = False
    handed = hand_over(subject, allowed.expand(BATCH, -1, -1))
    if isinstance(handed, str):
        return not_applicable(f"attn_mask is taken in no shape: {handed}")
    x = subject.draw()
    with torch.enable_grad():
        given = x.clone().requires_grad_()
        output = subject(given, attn_mask=handed)
        (gradient,) = torch.autograd.grad(output.sum(), given)
        output = subject.rows(output.detach())
    if not (torch.isfinite(output).all() and torch.isfinite(gradient).all()):
        where = "output" if not torch.isfinite(output).all() else "gradient"
        return failed(
            f"a query with no key to attend to makes the {where} NaN or infinite",
            "finite numbers (attention gives 0 there)",
            "a softmax over -inf alone is 0/0: fill such rows with 0 before the softmax, and their "
            "weights with 0 after it",
        )
    others = subject.with_tokens(x, [0, 2], subject.draw())
    if not subject.same(subject.rows(subject(others, attn_mask=handed))[:, 1], output[:, 1]):
        return failed(
            "a query with no key to attend to attends to hidden ones",
            "no effect of hidden tokens",
            "a large negative number instead of -inf: where all scores have it, it cancels out",
        )
    return passed("a query with no key to attend to is finite and sees nothing")


def check_causal(subject: Subject) -> Finding:
    """With ``is_causal`` a token's output is made of itself and the earlier ones, all of them."""
    if reason := _takes_no(subject, "is_causal"):
        return not_applicable(reason)
    pairs = torch.ones(subject.tokens, subject.tokens, dtype=torch.bool, device=subject.device)
    pairs = pairs.tril()
    seen, looked = reach(subject, pairs, is_causal=True)
    early, late = seen & ~pairs & looked, pairs & ~seen & looked
    expected = "query i sees the keys up to i"
    if not (looked & ~seen).any():
        return failed(
            "later tokens have effect on all earlier outputs", expected, "is_causal is ignored"
        )
    if early.any():
        ahead = (torch.arange(subject.tokens) - torch.arange(subject.tokens)[:, None]).to(
            seen.device
        )
        if int(ahead[early].max()) == 1:
            return failed(
                "outputs depend on the next token, one step ahead",
                expected,
                "the causal mask is off by one: .tril() or .triu(1), not .tril(1) or .triu(2)",
            )
        return failed(
            f"{int(early.sum())} later tokens have effect on earlier outputs",
            expected,
            "the causal mask has queries and keys exchanged, or True and False",
        )
    if late.any():
        return failed(
            f"{int(late.sum())} earlier tokens have no effect",
            expected,
            "the causal mask hides too much: off by one, or joined with another mask",
        )
    x = subject.draw()
    first, alone = subject(x, is_causal=True)[:, :1], subject(x[:, :1].contiguous())
    if not subject.same(first, alone):
        return failed(
            "the first token's output is not what it gives alone",
            "it sees itself and nothing else",
            "the causal mask is off by one and hides the token itself: .tril(), not .tril(-1)",
        )
    return passed("outputs depend on no later token and on all earlier ones")


def check_causal_mask(subject: Subject) -> Finding:
    """A mask together with ``is_causal``: a query sees what both allow."""
    if reason := _takes_no(subject, "attn_mask") or _takes_no(subject, "is_causal"):
        return not_applicable(reason)
    n = subject.tokens
    allowed = random_mask(subject, 1)[0]
    allowed = allowed | torch.eye(n, dtype=torch.bool, device=allowed.device)  # no empty row
    handed = hand_over(subject, allowed.expand(BATCH, -1, -1))
    if isinstance(handed, str):
        return not_applicable(f"attn_mask is taken in no shape: {handed}")
    try:
        seen, looked = reach(subject, allowed.tril(), attn_mask=handed, is_causal=True)
    except ModuleRaised as error:
        return not_applicable(f"it refuses the two together: {error}")
    wrong = (seen != allowed.tril()) & looked
    if not wrong.any():
        return passed("with a mask and is_causal a query sees what both allow")
    expected = "a query sees the keys that the mask and causality both allow"
    for name, other in (("the mask", torch.ones_like(allowed).tril()), ("is_causal", allowed)):
        if not ((seen != other) & looked).any():
            return failed(
                f"with both given, {name} is ignored",
                expected,
                "one of the two replaces the other: join them, attn_mask & causal",
            )
    return failed(
        f"with both given, {int(wrong.sum())} of {int(looked.sum())} pairs are wrong",
        expected,
        "the two are joined with 'or' instead of 'and'",
    )


def _takes_no(subject: Subject, term: str) -> str | None:
    if term in subject.terms:
        if any(isinstance(each, _OVER_POSITIONS) for each in subject.module.modules()):
            return "it has a norm over all positions, by which every token reaches every other"
        weights = subject.weights(subject.draw())
        if weights is not None and weights.shape[-1] < subject.tokens:
            return "its keys are no tokens (they are pooled), of which a mask would be"
        return None
    hint = f" (it has {subject.other_mask}=)" if subject.other_mask else ""
    return f"it takes no {term}={hint}; call=lambda module, x, {term}=None: ... can pass one on"
