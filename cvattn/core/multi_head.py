"""Multi-head attention on tokens, for self-attention and cross-attention."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.core.attention import attention, attention_weights
from cvattn.core.attention.inputs import check_rows_wanted, check_terms
from cvattn.core.cache import KeyValues
from cvattn.core.initial_values import reset_with
from cvattn.core.masks import causal_mask, combine_masks
from cvattn.core.multi_head_inputs import (
    append_columns,
    check_heads,
    check_tokens,
    rotation_of_keys,
)
from cvattn.core.norms import Norm, make_norm
from cvattn.core.observed import Observed, Observers
from cvattn.core.rotary import Rotation

# Which projections have a bias: all, none, or all but the key's.
QKVBias = bool | Literal["qv"]

# Checks and decisions about shapes: torch.fx keeps each of these as one call in its graphs.
for _name in (
    *("attention", "attention_weights", "causal_mask", "check_terms", "combine_masks"),
    *("append_columns", "check_tokens"),
):
    torch.fx.wrap(_name)


class MultiHeadAttention(nn.Module):
    """softmax(Q_h K_h^T / sqrt(head_dim)) V_h for each head h, concatenated and projected.

    Vaswani et al., "Attention Is All You Need" (2017), section 3.2.2. Same arithmetic as
    ``nn.MultiheadAttention`` (``cvattn.weights`` copies weights both ways) with these differences:
    batch first always; masks are True = may attend (adapters: ``cvattn.core.masks``); a query with
    nothing to attend to gives the output bias, never NaN; query, key and value projections are
    separate layers; weights come one set a head and only when asked for.

    Args:
        embed_dim: width of query and output, divisible by ``num_heads``.
        num_heads: number of heads.
        kdim, vdim: widths of key and value input; None = ``embed_dim``.
        bias: biases in all four projections.
        qkv_bias: biases in the first three, if other than ``bias``; "qv" = in those of query and
            value alone (EVA, DINOv3).
        dropout: probability of dropping an attention weight, in training only.
        add_bias_kv: append one learned key and value that every query may attend to.
        add_zero_attn: append a key and a value of zeros.
        qk_norm: a norm on query and key of each head before they are multiplied, its weights shared
            by the heads: "layer" (Dehghani et al., "Scaling Vision Transformers to 22 Billion
            Parameters", 2023; timm's ``qk_norm=True``) or "rms". What ``add_bias_kv`` and
            ``add_zero_attn`` append is taken as it is.
        norm_eps: epsilon of these norms.
        device, dtype: of the parameters.

    Raises:
        ValueError: ``embed_dim`` not divisible by ``num_heads``; dropout out of [0, 1); an unknown
            norm or ``qkv_bias``.
    """

    observers: Observers = ()

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        qkv_bias: QKVBias | None = None,
        qk_norm: Norm | None = None,
        norm_eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(embed_dim, num_heads)
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout={dropout} is not a probability in [0, 1)")
        self.embed_dim = embed_dim
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.num_heads = num_heads
        self.dropout = dropout
        self.add_zero_attn = add_zero_attn
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        qkv_bias = bias if qkv_bias is None else qkv_bias
        if qkv_bias not in (True, False, "qv"):
            raise ValueError(f"qkv_bias={qkv_bias!r}; expected true, false, 'qv' or none")
        qv_bias, k_bias = qkv_bias is not False, qkv_bias is True
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=qv_bias, **made)
        self.k_proj = nn.Linear(self.kdim, embed_dim, bias=k_bias, **made)
        self.v_proj = nn.Linear(self.vdim, embed_dim, bias=qv_bias, **made)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, **made)
        self.q_norm, self.k_norm = (
            None
            if qk_norm is None
            else make_norm(qk_norm, embed_dim // num_heads, eps=norm_eps, **made)
            for _ in "qk"
        )
        self.bias_k, self.bias_v = (
            nn.Parameter(torch.empty(1, 1, embed_dim, **made)) if add_bias_kv else None
            for _ in "kv"
        )
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            reset_with(layer, _fill_projection)
        self.reset_parameters()

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not to be decayed (also what timm's optimisers ask for)."""
        return set() if self.bias_k is None else {"bias_k", "bias_v"}

    def reset_parameters(self) -> None:
        """Draw all projections anew."""
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            layer.reset_parameters()
        for extra in (self.bias_k, self.bias_v):
            if extra is not None:
                nn.init.xavier_normal_(extra)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        attn_mask: Tensor | None = None,
        attn_bias: Tensor | None = None,
        is_causal: bool = False,
        rotary: Rotation | None = None,
        key_rotary: Rotation | None = None,
        cache: KeyValues | None = None,
        need_weights: bool = False,
        rows: Sequence[int] | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend from ``query`` to ``key`` and ``value``.

        Args:
            query: (B, L, embed_dim).
            key: (B, S, kdim); None = query (self-attention).
            value: (B, S, vdim); None = key.
            attn_mask: bool, True = may attend; (L, S) or broadcastable to (B, heads, L, S).
            attn_bias: float added to the scores; same shapes.
            is_causal: query i sees the keys up to i + (S - L).
            rotary: where the queries are, by which they are turned after the norm
                (:mod:`cvattn.core.rotary`), and the keys of self-attention with them.
            key_rotary: where other keys are, in the same units. With a cache both are of the new
                tokens; keys are kept as turned.
            cache: of earlier calls; S then counts the keys kept in it too.
            need_weights: return ``(output, weights)``, weights (B, heads, L, S), before dropout
                (S is larger by one for each of add_bias_kv and add_zero_attn).
            rows: with ``need_weights``, the queries whose weights are wanted, in 0..L-1 (a ViT's
                class token: [0]); None = all. Memory is linear in S for each row.

        Returns:
            (B, L, embed_dim), or the pair. The output is the same, bit for bit, with and without
            weights.
        """
        check_rows_wanted(need_weights, rows)
        is_self = key is None or key is query
        key_rotary = rotation_of_keys(rotary, key_rotary, is_self=is_self)
        q, k, v, terms = self._project(
            query, key, value, attn_mask, attn_bias, is_causal, (rotary, key_rotary), cache
        )
        dropout = self.dropout if self.training else 0.0
        finite = cache is not None and cache.finite
        heads = attention(q, k, v, dropout_p=dropout, keys_are_finite=finite, **terms)
        for observe in self.observers:
            observe(Observed(q, k, v, heads, terms, is_self=is_self))
        output = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not need_weights:
            return output
        return output, attention_weights(q, k, rows=rows, **terms)

    def _project(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        attn_mask: Tensor | None,
        attn_bias: Tensor | None,
        is_causal: bool,
        rotary: tuple[Rotation | None, Rotation | None],
        cache: KeyValues | None,
    ) -> tuple[Tensor, Tensor, Tensor, dict]:
        key = query if key is None else key
        value = key if value is None else value
        check_tokens("query", query, self.embed_dim)
        check_tokens("key", key, self.kdim)
        check_tokens("value", value, self.vdim)

        def keys_values() -> tuple[Tensor, Tensor]:
            return self._placed(self.k_proj(key), self.k_norm, rotary[1]), self.v_proj(value)

        k, v = keys_values() if cache is None else cache.take(key, value, keys_values)
        given_keys = k.shape[1]
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.to(k.dtype).expand(k.shape[0], -1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.to(v.dtype).expand(v.shape[0], -1, -1)], dim=1)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        extra = (self.bias_k is not None) + self.add_zero_attn
        q = self._split(self._placed(self.q_proj(query), self.q_norm, rotary[0]))
        if extra:
            # Before they are widened: a message must speak of the shapes that the caller gave.
            check_terms(q, self._split(k[:, :-extra]), attn_mask, attn_bias)
            # The appended keys are for everyone: causality is about the given ones.
            if is_causal:
                causal = causal_mask(query.shape[1], given_keys, device=query.device)
                attn_mask, is_causal = combine_masks(attn_mask, causal), False
            attn_mask = append_columns(attn_mask, extra, given_keys, fill=True)
            attn_bias = append_columns(attn_bias, extra, given_keys, fill=0.0)
        terms = {"attn_mask": attn_mask, "attn_bias": attn_bias, "is_causal": is_causal}
        return q, self._split(k), self._split(v), terms

    def _placed(self, x: Tensor, norm: nn.Module | None, rotary: Rotation | None) -> Tensor:
        """(B, N, D) of query or key, each head normalised and turned; the dtype stays."""
        if norm is None and rotary is None:
            return x
        heads = x.unflatten(-1, (self.num_heads, -1))
        if norm is not None:
            heads = norm(heads).to(x.dtype)  # under autocast a layer norm gives float32
        if rotary is not None:
            heads = rotary.turn(heads)
        return heads.flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, heads, N, head_dim); unflatten first: a view alone would mix tokens."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, num_heads={self.num_heads}, dropout={self.dropout}"


def _fill_projection(layer: nn.Linear) -> None:
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
