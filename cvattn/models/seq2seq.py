"""The Transformer: sequence in, sequence out."""

from torch import Tensor

from cvattn.core import Encoder
from cvattn.core.feed_forward import Activation
from cvattn.core.masks import padding_mask
from cvattn.models.token_decoder import TokenDecoder, token_embedding


class Transformer(TokenDecoder):
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
        super().__init__(
            target_vocab,
            embed_dim=embed_dim,
            num_heads=num_heads,
            ffn_dim=ffn_dim,
            num_layers=num_decoder_layers,
            pad_id=pad_id,
            dropout=dropout,
            activation=activation,
            norm_first=norm_first,
            tied=False,
        )
        self.source_embedding = token_embedding(source_vocab, embed_dim, pad_id)
        self.encoder = Encoder(
            embed_dim,
            num_heads,
            ffn_dim,
            num_encoder_layers,
            dropout=dropout,
            activation=activation,
            norm_first=norm_first,
        )

    def encode(self, source_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) -> memory (B, S, D) and its mask (B, 1, 1, S)."""
        mask = padding_mask(source_ids, self.pad_id)
        return self.encoder(self._embed(self.source_embedding, source_ids), attn_mask=mask), mask

    def forward(self, source_ids: Tensor, target_ids: Tensor) -> Tensor:
        memory, memory_mask = self.encode(source_ids)
        return self.decode(target_ids, memory, memory_mask)
