"""What attention accepts: shapes and dtypes checked once, masks brought to one form."""

from typing import overload

import torch
from torch import Tensor


def check_inputs(query: Tensor, key: Tensor, value: Tensor | None = None) -> None:
    """Raise ValueError/TypeError unless q, k and v are (B, heads, L or S, E) and fit each other."""
    named = {"query": query, "key": key} | ({} if value is None else {"value": value})
    for name, tensor in named.items():
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; expected 4 dimensions "
                "(batch, heads, tokens, head_dim). Add the missing ones with .unsqueeze()."
            )
        if tensor.shape[:2] != query.shape[:2]:
            raise ValueError(
                f"{name} has (batch, heads) = {tuple(tensor.shape[:2])}, query has "
                f"{tuple(query.shape[:2])}; they must be equal (use .expand() to share keys)."
            )
        # Autocast brings the three to one dtype itself.
        if tensor.dtype != query.dtype and not torch.is_autocast_enabled(query.device.type):
            raise TypeError(
                f"{name} is {tensor.dtype}, query is {query.dtype}; cast them to one dtype."
            )
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query is {query.shape[-1]} wide, key is {key.shape[-1]} wide; their last dimensions "
            "are multiplied and must be equal (only the value may have another width)."
        )
    if value is not None and value.shape[-2] != key.shape[-2]:
        raise ValueError(
            f"key has {key.shape[-2]} tokens, value has {value.shape[-2]}; each key needs a value."
        )


def check_terms(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, attn_bias: Tensor | None
) -> None:
    """Raise unless ``attn_mask`` is bool, ``attn_bias`` float, and both broadcast to the scores."""
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        raise TypeError(
            f"attn_mask is {attn_mask.dtype}; expected bool with True = may attend. A float that "
            "is added to the scores goes in attn_bias=; masks of other conventions are turned by "
            "cvattn.core.masks (from_torch_masks, from_zero_one, from_additive)."
        )
    if attn_bias is not None and not attn_bias.is_floating_point():
        raise TypeError(
            f"attn_bias is {attn_bias.dtype}; expected a float tensor that is added to the scores. "
            "A bool mask (True = may attend) goes in attn_mask=."
        )
    scores = (*query.shape[:3], key.shape[2])
    for name, term in (("attn_mask", attn_mask), ("attn_bias", attn_bias)):
        if term is None:
            continue
        fits = term.ndim in (2, 4) and all(
            size in (1, wanted)
            for size, wanted in zip(term.shape, scores[-term.ndim :], strict=True)
        )
        if not fits:
            hint = (
                "A 3-D mask is ambiguous: use .unsqueeze(1) for one per sample, .unsqueeze(0) for "
                "one per head."
                if term.ndim == 3
                else "A mask per key (batch, keys) comes from masks.length_mask, "
                "masks.padding_mask or mask[:, None, None, :]."
            )
            raise ValueError(
                f"{name} has shape {tuple(term.shape)}; expected (L, S) or (B, heads, L, S) "
                f"broadcastable to the scores {scores}. {hint}"
            )


def check_maps(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> None:
    """Raise ValueError/TypeError unless q, k and v are (B, heads, H, W, E) and fit each other."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 5:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; expected 5 dimensions (batch, heads, "
                "height, width, head_dim)"
            )
        if tensor.shape[:4] != query.shape[:4]:
            raise ValueError(
                f"{name} has (batch, heads, height, width) = {tuple(tensor.shape[:4])}, query has "
                f"{tuple(query.shape[:4])}; local attention is that of a map to itself, so they "
                "must be equal"
            )
        if tensor.dtype != query.dtype and not torch.is_autocast_enabled(query.device.type):
            raise TypeError(
                f"{name} is {tensor.dtype}, query is {query.dtype}; cast them to one dtype."
            )
    if query.shape[2] == 0 or query.shape[3] == 0:
        raise ValueError(f"query has shape {tuple(query.shape)}: a map without positions")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query is {query.shape[-1]} wide, key is {key.shape[-1]} wide; their last dimensions "
            "are multiplied and must be equal (only the value may have another width)"
        )
    if key_mask is None:
        return
    if key_mask.dtype != torch.bool:
        raise TypeError(f"key_mask is {key_mask.dtype}; expected bool with True = may be attended")
    wanted = (query.shape[0], *query.shape[2:4])
    if tuple(key_mask.shape) != wanted:
        raise ValueError(
            f"key_mask has shape {tuple(key_mask.shape)}; expected (B, H, W) = {wanted}"
        )


def check_rows_wanted(need_weights: bool, rows: object) -> None:
    """Raise ValueError where rows of weights are chosen that nobody asked for."""
    if rows is not None and not need_weights:
        raise ValueError("rows= chooses rows of the weights: pass need_weights=True with it")


def causal_rows(length: int, key_length: int, rows: Tensor) -> Tensor:
    """Rows of the bottom-right aligned causal mask: query i sees the keys up to i + (S - L)."""
    keys = torch.arange(key_length, device=rows.device)
    return keys <= rows[:, None] + (key_length - length)


def merge_allowed(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None,
    attn_bias: Tensor | None,
    is_causal: bool,
    rows: Tensor | None = None,
) -> Tensor | None:
    """One bool mask (True = may attend) from mask, causality and -inf in the bias; None = all."""
    length, key_length = query.shape[2], key.shape[2]
    allowed = take_rows(attn_mask, length, rows)
    if attn_bias is not None:
        bias = take_rows(attn_bias, length, rows)
        seen = torch.ne(bias, float("-inf"))
        allowed = seen if allowed is None else allowed & seen
    if is_causal:
        chosen = torch.arange(length, device=query.device) if rows is None else rows
        causal = causal_rows(length, key_length, chosen)
        allowed = causal if allowed is None else allowed & causal
    return allowed


def hidden_part(allowed: Tensor | None) -> Tensor | None:
    """The mask, or None where it is known to hide nothing: what is hidden has to be guarded."""
    return None if allowed is None or known(allowed) else allowed


def known(condition: Tensor) -> bool:
    """Whether all of it is True. False also where one cannot ask, or must wait for the answer."""
    return can_ask(condition.device) and value_of(condition.all()) == 1.0


def refuse_if(condition: Tensor, message: str, given: Tensor) -> None:
    """Raise ValueError where any of ``condition`` is True, showing the range of what was given.

    Compiled functions raise RuntimeError, and CUDA an assertion of the device, when they run: to
    wait for the answer would cost more than the call.
    """
    if can_ask(condition.device):
        if value_of(condition.any()) == 1.0:
            raise ValueError(f"{message}, got {given.min().item()}..{given.max().item()}")
    elif torch.compiler.is_compiling() or condition.device.type == "cuda":
        torch._assert_async(~condition.any(), message)


def can_ask(device: torch.device) -> bool:
    """Whether a decision may rest on values: not while tracing, and not where one has to wait."""
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return device.type == "cpu" and not tracing


def value_of(scalar: Tensor) -> float | None:
    """What a tensor of one element holds; None where that is not at hand."""
    try:
        return float(scalar)
    except RuntimeError:  # torch.func.vmap, fake tensors
        return None


@overload
def take_rows(term: Tensor, length: int, rows: Tensor | None) -> Tensor: ...
@overload
def take_rows(term: None, length: int, rows: Tensor | None) -> None: ...
def take_rows(term: Tensor | None, length: int, rows: Tensor | None) -> Tensor | None:
    """The chosen query rows of a mask or bias; one that is shared by all rows stays as it is."""
    if term is None or rows is None or term.shape[-2] != length:
        return term
    return term.index_select(-2, rows)
