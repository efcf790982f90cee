"""What every self-attention has in common: mixing, equivariance, independent samples."""

import torch
from torch import Tensor, nn

from cvattn.testing.projections import find_projections
from cvattn.testing.report import Finding, failed, not_applicable, passed
from cvattn.testing.subject import ModuleRaised, Subject


def check_weights(subject: Subject) -> Finding:
    """Rows of the weights are shares: not negative, with sum 1 over the keys."""
    x = subject.draw()
    weights = subject.weights(x)
    if weights is None:
        return _constant_values(subject, x)
    batch, tokens = x.shape[0], subject.tokens
    shape = tuple(weights.shape)
    # Some blocks append a key or two that all may see; none has many more keys than tokens.
    fits = weights.ndim in (3, 4) and shape[-2] == tokens and shape[-1] <= tokens + 2
    if not fits or shape[0] % batch:
        return failed(
            f"the weights have shape {shape}, for {batch} samples of {tokens} tokens",
            "(batch, tokens, keys) or (batch, heads, tokens, keys): one number for each pair",
            "a softmax over channels without a dot product of queries and keys, or a second result "
            "that is no weights (then give call= without it)",
        )
    if weights.min() < -subject.tolerance:
        return failed(
            f"a weight of {weights.min().item():.3g}", "shares, none negative", "no softmax at all"
        )
    if subject.same(weights.sum(-1), torch.ones_like(weights[..., 0])):
        return passed(f"rows of the weights {shape} sum to 1, none negative")
    found = f"rows sum to {weights.sum(-1).min():.3g}..{weights.sum(-1).max():.3g}"
    axes = {-2: "queries", 0: "batch"} | ({1: "heads"} if weights.ndim == 4 else {})
    for axis, name in axes.items():
        if subject.same(weights.sum(axis), torch.ones_like(weights.sum(axis))):
            return failed(
                f"{found}, and the sums over the {name} are 1",
                "sums of 1 over the keys, the last axis",
                f"the softmax runs over the {name}: use softmax(dim=-1) on scores (..., queries, "
                "keys)",
            )
    return failed(found, "sums of 1 over the keys", "a softmax over another axis, or none")


def _constant_values(subject: Subject, x: Tensor) -> Finding:
    """Without weights to look at: shares of values that are all alike do not depend on the shares.

    So with such values, a token's output does not see a change of the others.
    """
    names = find_projections(subject)
    if isinstance(names, str) or len(names) != 3:
        return not_applicable("it gives no weights; return (output, weights) from call=")
    kept: list[Tensor] = []

    def hold(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        if not kept:
            axes = (2, 3) if output.ndim == 4 else (1 if output.shape[1] == subject.tokens else 2)
            kept.append(output.mean(axes, keepdim=True).expand_as(output))
        return kept[0]

    count = max(1, subject.tokens // 4)
    handle = subject.module.get_submodule(names[2]).register_forward_hook(hold)
    try:
        before = subject.rows(subject(x))[:, count:]
        changed = subject.with_tokens(x, range(count), 3 * subject.draw())
        after = subject.rows(subject(changed))[:, count:]
    finally:
        handle.remove()
    if subject.same(after, before):
        return passed("where all values are alike the weights do not matter: rows sum to 1")
    return failed(
        "where all values are alike, a token's output still changes with the others",
        "no change, since each row of weights sums to 1",
        "the softmax runs over the queries and not over the keys, or there is none, or key "
        "and value are exchanged, or tokens and heads mixed (then 'permutation' fails too)",
    )


def check_mixing(subject: Subject) -> Finding:
    """Tokens take from others, by what is in the queries and in the keys."""
    x = subject.draw()
    count = max(1, subject.tokens // 4)
    before = subject.rows(subject(x))
    changed = subject.with_tokens(x, range(count), 3 * subject.draw())
    change = (subject.rows(subject(changed)) - before)[:, count:]
    if subject.same(before[:, count:] + change, before[:, count:]):
        return failed(
            f"changing {count} tokens changes no other token's output",
            "every token's output is made of all tokens",
            "a softmax over channels without a dot product of queries and keys, a weight of 0 on "
            "the attention branch, or no attention at all",
        )
    if subject.same(change, change[:, :1].expand_as(change)):
        return failed(
            "changing some tokens changes all the others by the same amount",
            "an amount that depends on who looks: weights from queries and keys",
            "weights that do not depend on the query: no dot product of queries and keys, or "
            "constant scores",
        )
    weights, after = subject.weights(x), subject.weights(changed)
    if weights is None or after is None or weights.shape[-2:-1] != (subject.tokens,):
        return passed("outputs depend on other tokens, differently for each query")
    if subject.same(weights, weights[..., :1, :].expand_as(weights)):
        return failed(
            "all queries have the same weights",
            "weights from the content of query and key",
            "no dot product of queries and keys",
        )
    if subject.same(after[..., count:, :], weights[..., count:, :]):
        return failed(
            "changing some tokens leaves the weights of the others as they were",
            "weights from the content of query and key",
            "weights from the query alone: no dot product of queries and keys",
        )
    return passed("outputs and weights depend on other tokens, differently for each query")


def check_permutation(subject: Subject) -> Finding:
    """Without positions, tokens in another order give the same outputs in that order."""
    if subject.positions:
        return not_applicable("positions=True: the order of the tokens matters to it")
    x = subject.draw()
    grids = [1, 2, 3, 4] if subject.is_map else [1]
    for side in grids:
        order = _window_order(subject, side)
        if order is None:
            continue
        flat = subject.rows(x)[:, order]
        moved = flat.mT.unflatten(2, x.shape[2:]) if subject.is_map else flat
        # The order in memory of a usual map: a .view() in the module must not fail on ours.
        moved = moved.contiguous()
        if subject.same(subject.rows(subject(moved)), subject.rows(subject(x))[:, order]):
            how = "tokens" if side == 1 else f"{side}x{side} windows (its keys seem to be pooled)"
            return passed(f"{how} in another order give the same outputs in that order")
    return failed(
        "tokens in another order give other outputs",
        "the same outputs in that order",
        "tokens, channels and heads mixed by a reshape: split heads with "
        ".view(B, N, heads, head_dim).transpose(1, 2), never .view(B * heads, -1, head_dim) alone, "
        "and join them the same way; or H and W swapped; or it knows positions "
        "(then positions=True)",
    )


def _window_order(subject: Subject, side: int) -> Tensor | None:
    """An order of the tokens that moves whole windows; those cut at the border stay."""
    if side == 1:
        # Never the identity, and never one that a transposed map would also give.
        order = torch.randperm(subject.tokens, generator=subject.generator)
        return order.roll(1) if bool((order == torch.arange(subject.tokens)).all()) else order
    _, height, width = subject.sizes
    down, across = height // side, width // side
    if down * across < 2:
        return None
    grid = torch.arange(height * width).view(height, width)
    whole = grid[: down * side, : across * side].unflatten(0, (down, side)).unflatten(2, (-1, side))
    windows = whole.transpose(1, 2).flatten(0, 1)
    moved = windows.roll(1, 0).unflatten(0, (down, across)).transpose(1, 2).flatten(2).flatten(0, 1)
    grid = grid.clone()
    grid[: down * side, : across * side] = moved
    return grid.flatten()


def check_transpose(subject: Subject) -> Finding:
    """The transposed map gives the transposed output: no axis of the map is special."""
    if not subject.is_map:
        return not_applicable("tokens have no H and W")
    if subject.positions:
        return not_applicable("positions=True: rows and columns differ to it")
    if subject.sizes[1] == subject.sizes[2]:
        return not_applicable("only square maps work, on which swapped sides do not show")
    x = subject.draw()
    try:
        turned = subject(x.mT.contiguous())
    except ModuleRaised as error:
        return not_applicable(f"it does not take the transposed map: {error}")
    if turned.shape == x.mT.shape and subject.same(turned.mT, subject(x)):
        return passed("the transposed map gives the transposed output")
    return failed(
        "the transposed map does not give the transposed output",
        "the same numbers, transposed",
        "H and W swapped where the map becomes tokens or tokens become a map: "
        ".flatten(2) and .view(B, C, H, W) with H, W = x.shape[-2:]",
    )


def check_samples(subject: Subject) -> Finding:
    """A sample's output depends on that sample alone."""
    x = subject.draw()
    before = subject(x)
    for b in range(x.shape[0]):
        other = x.clone()
        other[b] = subject.draw()[b]
        after = subject(other)
        kept = [n for n in range(x.shape[0]) if n != b]
        if not subject.same(after[kept], before[kept]):
            return failed(
                f"changing sample {b} of the batch changes other samples",
                "samples are independent",
                "the batch mixed into another axis by a reshape, a softmax over the batch "
                "(dim=0), or an input that is batch second (batch_first=False)",
            )
    return passed("changing one sample of a batch changes no other")
