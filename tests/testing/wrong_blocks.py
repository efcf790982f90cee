"""One right block for tokens, one for maps, and each known fault as one changed line of them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, CHANNELS = 15, 3, 16


class Tokens(nn.Module):
    """A right block, in steps that the wrong ones replace."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(
        self, x: Tensor, *, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> tuple[Tensor, Tensor]:
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        weights = self.shares(self.scores(q, k, v), self.allowed(x.shape[1], attn_mask, is_causal))
        return self.out(self.join(self.drop(weights) @ self.values(k, v))), weights

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def join(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)

    def scores(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q @ k.mT * q.shape[-1] ** -0.5

    def values(self, k: Tensor, v: Tensor) -> Tensor:
        return v

    def drop(self, weights: Tensor) -> Tensor:
        return weights

    def causal(self, n: int) -> Tensor:
        return torch.ones(n, n, dtype=torch.bool).tril()

    def allowed(self, n: int, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        allowed = self.causal(n) if is_causal else torch.ones(n, n, dtype=torch.bool)
        return allowed if attn_mask is None else allowed & attn_mask

    def shares(self, scores: Tensor, allowed: Tensor) -> Tensor:
        empty = ~allowed.any(-1, keepdim=True)
        scores = scores.masked_fill(~allowed, float("-inf")).masked_fill(empty, 0.0)
        return self.softmax(scores).masked_fill(empty, 0.0)

    def softmax(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)


class ChannelSoftmax(nn.Module):
    """A softmax over the channels of a product by elements: no token sees another."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = (self.q(x) * self.k(x)).softmax(-1)
        return weights * self.v(x), weights


class NoQuery(ChannelSoftmax):
    """Keys alone decide: every query gets the same average."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.k(x).mean(-1, keepdim=True).softmax(1).mT.expand(-1, x.shape[1], -1)
        return x + self.q(x) + weights @ self.v(x), weights


class NoKey(Tokens):
    """Weights from the query alone, as long as the sequence is: values are mixed by place."""

    def scores(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q @ torch.ones_like(k).cumsum(-2).mT


class OverQueries(Tokens):
    def softmax(self, scores: Tensor) -> Tensor:
        return scores.softmax(-2)


class OverHeads(Tokens):
    def softmax(self, scores: Tensor) -> Tensor:
        return scores.softmax(1)


class OverBatch(Tokens):
    def softmax(self, scores: Tensor) -> Tensor:
        return scores.softmax(0)


class NoSoftmax(Tokens):
    def softmax(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(scores == float("-inf"), 0.0)


class HeadsMixed(Tokens):
    """Trap 13: .view(B * heads, -1, head_dim) without the transpose, and back the same way."""

    def split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], HEADS, -1, WIDTH // HEADS)

    def join(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, WIDTH)


class HeadsMixedBack(Tokens):
    def join(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, WIDTH)


class FlippedMask(Tokens):
    def allowed(self, n, attn_mask, is_causal):
        return super().allowed(n, None if attn_mask is None else ~attn_mask, is_causal)


class IgnoredMask(Tokens):
    def allowed(self, n, attn_mask, is_causal):
        return super().allowed(n, None, is_causal)


class TransposedMask(Tokens):
    def allowed(self, n, attn_mask, is_causal):
        return super().allowed(n, None if attn_mask is None else attn_mask.mT, is_causal)


class AddedMask(Tokens):
    """Trap 2: the bool is added to the scores, as 0 and 1."""

    def shares(self, scores: Tensor, allowed: Tensor) -> Tensor:
        return (scores + allowed).softmax(-1)


class MaskAfterSoftmax(Tokens):
    def shares(self, scores: Tensor, allowed: Tensor) -> Tensor:
        return scores.softmax(-1) * allowed


class LargeNegativeMask(Tokens):
    """Trap 10: where all scores have -1e9, it cancels out."""

    def shares(self, scores: Tensor, allowed: Tensor) -> Tensor:
        return scores.masked_fill(~allowed, -1e9).softmax(-1)


class EmptyRowsNaN(Tokens):
    def shares(self, scores: Tensor, allowed: Tensor) -> Tensor:
        return scores.masked_fill(~allowed, float("-inf")).softmax(-1)


class RepeatedMasks(Tokens):
    """Trap 9, with the heads of a sample next to each other: the masks are in another order."""

    def shares(self, scores: Tensor, allowed: Tensor) -> Tensor:
        if allowed.ndim == 4:
            allowed = allowed.squeeze(1).repeat(HEADS, 1, 1).unflatten(0, (-1, HEADS))
        return super().shares(scores, allowed)


class CausalSeesNext(Tokens):
    def causal(self, n: int) -> Tensor:
        return torch.ones(n, n, dtype=torch.bool).tril(1)


class CausalHidesItself(Tokens):
    def causal(self, n: int) -> Tensor:
        return torch.ones(n, n, dtype=torch.bool).tril(-1)


class CausalBackwards(Tokens):
    def causal(self, n: int) -> Tensor:
        return torch.ones(n, n, dtype=torch.bool).triu()


class CausalIgnored(Tokens):
    def allowed(self, n, attn_mask, is_causal):
        return super().allowed(n, attn_mask, False)


class CausalDropsMask(Tokens):
    def allowed(self, n, attn_mask, is_causal):
        return super().allowed(n, None if is_causal else attn_mask, is_causal)


class SecondScale(Tokens):
    def scores(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().scores(q, k, v) * q.shape[-1] ** -0.5


class ScaledByWidth(Tokens):
    def scores(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q @ k.mT * WIDTH**-0.5


class ScaledByHeads(Tokens):
    def scores(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().scores(q, k, v) / HEADS


class KeyValueSwapped(Tokens):
    def scores(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().scores(q, v, k)

    def values(self, k: Tensor, v: Tensor) -> Tensor:
        return k


class DropoutInEval(Tokens):
    def drop(self, weights: Tensor) -> Tensor:
        return F.dropout(weights, 0.4)


class OtherInEval(Tokens):
    def drop(self, weights: Tensor) -> Tensor:
        return weights if self.training else weights * 0.9


class WeightsDetached(Tokens):
    def drop(self, weights: Tensor) -> Tensor:
        return weights.detach()


class SecondInput(Tokens):
    """A constant copy of the input in the value: its gradient is missing and nothing is None."""

    def values(self, k: Tensor, v: Tensor) -> Tensor:
        return v * v.detach()


class Map(nn.Module):
    """A right SAGAN block as it is commonly written: (output, attention)."""

    def __init__(self) -> None:
        super().__init__()
        self.query_conv = nn.Conv2d(CHANNELS, CHANNELS // 8, 1)
        self.key_conv = nn.Conv2d(CHANNELS, CHANNELS // 8, 1)
        self.value_conv = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (
            self.flat(layer(x)) for layer in (self.query_conv, self.key_conv, self.value_conv)
        )
        weights = self.softmax(q.mT @ k)
        return self.add(x, self.unflat(v @ weights.mT, x.shape)), weights

    def flat(self, x: Tensor) -> Tensor:
        return x.flatten(2)

    def unflat(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        return tokens.view(shape)

    def softmax(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    def add(self, x: Tensor, out: Tensor) -> Tensor:
        return x + self.gamma * out


class MapOverQueries(Map):
    def softmax(self, scores: Tensor) -> Tensor:
        return scores.softmax(-2)


class SidesSwapped(Map):
    """Breaks on every map that is not square."""

    def unflat(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        batch, channels, height, width = shape
        return tokens.view(batch, channels, width, height)


class SidesSwappedQuietly(Map):
    """Columns first on the way to tokens, rows first on the way back."""

    def flat(self, x: Tensor) -> Tensor:
        return x.mT.flatten(2)


class SidesSwappedNoResidual(SidesSwapped):
    def add(self, x: Tensor, out: Tensor) -> Tensor:
        return self.gamma * out


class TokensByView(Map):
    """(B, C, H, W) read as (B, N, C) without a permute: channels and pixels mixed."""

    def flat(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, x.shape[1]).mT


class GammaUnused(Map):
    def add(self, x: Tensor, out: Tensor) -> Tensor:
        return x + out


class NoResidual(Map):
    def add(self, x: Tensor, out: Tensor) -> Tensor:
        return self.gamma * out


class ResidualInside(Map):
    def add(self, x: Tensor, out: Tensor) -> Tensor:
        return self.gamma * (x + out)


class MapChannelSoftmax(Map):
    """q * k by elements, softmax over the channels: every pixel for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.query_conv, self.key_conv = (nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.query_conv(x) * self.key_conv(x)).softmax(1)
        return self.add(x, weights * self.value_conv(x))
