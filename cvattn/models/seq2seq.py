"""The Transformer: sequence in, sequence out."""

import math

from torch import Tensor, nn

from cvattn.core import Decoder, DecoderCache, Encoder
from cvattn.core.feed_forward import Activation
from cvattn.core.masks import padding_mask
from cvattn.core.positions import SinusoidalPositions


class Transformer(nn.Module):
    """Token embedding, positions, encoder, decoder, logits.

    Vaswani et al., "Attention Is All You Need" (2017). Differences: pre-norm unless told otherwise,
    separate embeddings for source and target, and an output layer of its own. Padding is masked in
    the source, in the target and in the cross-attention; the target is causal.

    Args:
        source_vocab, target_vocab: number of token ids.
        embed_dim, num_heads, ffn_dim: of both stacks.
        num_encoder_layers, num_decoder_layers: depth.
        pad_id: the id of padding, in source and target.
        dropout, activation, norm_first: as in the layers.

    Shape:
        source ids (B, S), target ids (B, T) -> logits (B, T, target_vocab); logits at t say what
        follows the target's tokens 0..t.
    """

    def __init__(
        self,
        source_vocab: int,
        target_vocab: int,
        *,
        embed_dim: int = 128,
        num_heads: int = 4,
        ffn_dim: int = 256,
        num_encoder_layers: int = 2,
        num_decoder_layers: int = 2,
        pad_id: int = 0,
        dropout: float = 0.1,
        activation: Activation = "relu",
        norm_first: bool = True,
    ) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.embed_dim = embed_dim
        self.source_embedding = nn.Embedding(source_vocab, embed_dim, padding_idx=pad_id)
        self.target_embedding = nn.Embedding(target_vocab, embed_dim, padding_idx=pad_id)
        for embedding in (self.source_embedding, self.target_embedding):
            # Multiplied by sqrt(embed_dim) below: tokens then weigh as much as positions.
            nn.init.normal_(embedding.weight, std=embed_dim**-0.5)
            nn.init.zeros_(embedding.weight[pad_id])
        self.positions = SinusoidalPositions(embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.encoder = Encoder(
            embed_dim,
            num_heads,
            ffn_dim,
            num_encoder_layers,
            dropout=dropout,
            activation=activation,
            norm_first=norm_first,
        )
        self.decoder = Decoder(
            embed_dim,
            num_heads,
            ffn_dim,
            num_decoder_layers,
            dropout=dropout,
            activation=activation,
            norm_first=norm_first,
        )
        self.head = nn.Linear(embed_dim, target_vocab)

    def encode(self, source_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) -> memory (B, S, D) and its mask (B, 1, 1, S)."""
        mask = padding_mask(source_ids, self.pad_id)
        return self.encoder(self._embed(self.source_embedding, source_ids), attn_mask=mask), mask

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
            cache=cache,
        )
        return self.head(x)

    def forward(self, source_ids: Tensor, target_ids: Tensor) -> Tensor:
        memory, memory_mask = self.encode(source_ids)
        return self.decode(target_ids, memory, memory_mask)

    def _embed(self, embedding: nn.Embedding, ids: Tensor, start: int = 0) -> Tensor:
        x = embedding(ids) * math.sqrt(self.embed_dim)
        return self.dropout(self.positions(x, start=start))
