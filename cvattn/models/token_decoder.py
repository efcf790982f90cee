"""What networks share that answer with tokens: embedding, positions, decoder, logits."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cvattn.core import Decoder, DecoderCache, Rotary, Rotation
from cvattn.core.feed_forward import Activation
from cvattn.core.initial_values import reset_with
from cvattn.core.masks import padding_mask
from cvattn.core.positions import SinusoidalPositions


class TokenDecoder(nn.Module):
    """The half that writes; a subclass adds the half that reads, and ``encode()``.

    Args:
        target_vocab: number of token ids.
        embed_dim, num_heads, ffn_dim, num_layers, dropout, activation, norm_first: of the decoder.
        pad_id: the id of padding.
        tied: the logits' weights are the embedding's (Press and Wolf, "Using the Output Embedding
            to Improve Language Models", 2017).
        rotary_theta: rotary positions of this theta in place of sinusoidal ones that are added.
    """

    def __init__(
        self,
        target_vocab: int,
        *,
        embed_dim: int,
        num_heads: int,
        ffn_dim: int,
        num_layers: int,
        pad_id: int,
        dropout: float,
        activation: Activation,
        norm_first: bool,
        tied: bool,
        rotary_theta: float | None = None,
    ) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.embed_dim = embed_dim
        self.target_embedding = token_embedding(target_vocab, embed_dim, pad_id)
        self.positions = SinusoidalPositions(embed_dim) if rotary_theta is None else None
        self.rotary = (
            None if rotary_theta is None else Rotary(embed_dim // num_heads, theta=rotary_theta)
        )
        self.dropout = nn.Dropout(dropout)
        self.decoder = Decoder(
            embed_dim,
            num_heads,
            ffn_dim,
            num_layers,
            dropout=dropout,
            activation=activation,
            norm_first=norm_first,
        )
        self.head = nn.Linear(embed_dim, target_vocab)
        self.tied = tied
        if tied:
            reset_with(self.head, _fill_bias)  # the weights are for the embedding to fill
            self.register_load_state_dict_post_hook(_tie)  # assign=True unties
            _tie(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        if self.tied:  # from the meta device each would come as a parameter of its own
            _tie(self)
        return self

    def decode(
        self,
        target_ids: Tensor,
        memory: Tensor,
        memory_mask: Tensor,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        """(B, T), the encoder's output and its mask -> logits (B, T, target_vocab).

        Args:
            cache: of the tokens before ``target_ids``, none of which is padding then.
        """
        start = 0 if cache is None else cache.length
        x = self.decoder(
            self._embed(self.target_embedding, target_ids, start),
            memory,
            attn_mask=padding_mask(target_ids, self.pad_id) if cache is None else None,
            memory_mask=memory_mask,
            rotary=None if self.rotary is None else self.rotary(target_ids.shape[1], start=start),
            memory_rotary=self._memory_rotary(memory, memory_mask),
            cache=cache,
        )
        return self.head(x)

    def _memory_rotary(self, memory: Tensor, memory_mask: Tensor) -> Rotation | None:
        """Where the memory's tokens are, counted in target tokens, for a network that knows it."""
        return None

    def _embed(self, embedding: nn.Embedding, ids: Tensor, start: int = 0) -> Tensor:
        x = embedding(ids) * math.sqrt(self.embed_dim)
        return self.dropout(x if self.positions is None else self.positions(x, start=start))


def token_embedding(vocab: int, embed_dim: int, pad_id: int) -> nn.Embedding:
    """Vectors of length 1 or so; padding is 0 and stays 0."""
    embedding = nn.Embedding(vocab, embed_dim, padding_idx=pad_id)
    reset_with(embedding, _fill_embedding)
    embedding.reset_parameters()
    return embedding


def _fill_embedding(embedding: nn.Embedding) -> None:
    # Multiplied by sqrt(embed_dim) in use: tokens then weigh as much as positions.
    nn.init.normal_(embedding.weight, std=embedding.embedding_dim**-0.5)
    nn.init.zeros_(embedding.weight[embedding.padding_idx])


def _fill_bias(layer: nn.Linear) -> None:
    bound = layer.in_features**-0.5
    nn.init.uniform_(layer.bias, -bound, bound)


def _tie(network: TokenDecoder, *_: object) -> None:
    if network.head.weight is not network.target_embedding.weight:
        network.head.weight = network.target_embedding.weight
