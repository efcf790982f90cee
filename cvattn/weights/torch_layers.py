"""Weights of ``torch.nn``'s Transformer layers into ours and back."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cvattn.core import DecoderLayer, EncoderLayer
from cvattn.core.feed_forward import Activation, FeedForward
from cvattn.weights.copying import copy_parameters
from cvattn.weights.torch_attention import attention_from, attention_to


def activation_from(activation: Any) -> Activation:
    """Its name among ours; ValueError if it is none of them."""
    if activation is F.relu or type(activation) is nn.ReLU:
        return "relu"
    exact = isinstance(activation, nn.GELU) and activation.approximate == "none"
    if activation is F.gelu or exact:
        return "gelu"
    raise ValueError(f"activation is {activation}; expected relu or gelu (exact)")


def _one_dropout(**rates: float) -> float:
    if len(set(rates.values())) > 1:
        raise ValueError(f"the dropouts of a layer differ: {rates}; ours has one rate a layer")
    return next(iter(rates.values()))


def _layer_options_from(theirs: Any, dropouts: Sequence[str]) -> dict[str, Any]:
    rates = {name: getattr(theirs, name).p for name in dropouts}
    return {
        "dropout": _one_dropout(self_attn=theirs.self_attn.dropout, **rates),
        "activation": activation_from(theirs.activation),
        "norm_first": theirs.norm_first,
        "bias": theirs.linear1.bias is not None,
    }


def encoder_layer_from(theirs: nn.TransformerEncoderLayer) -> EncoderLayer:
    """Our layer with a copy of the weights; ValueError for an option that ours does not have."""
    options = _layer_options_from(theirs, ("dropout", "dropout1", "dropout2"))
    attention = attention_from(theirs.self_attn)
    with torch.device("meta"):
        ours = EncoderLayer(
            attention.embed_dim, attention.num_heads, theirs.linear1.out_features, **options
        )
    ours.self_attn = attention
    _copy_norms_and_ffn(ours, theirs, norms=2)
    return ours


def decoder_layer_from(theirs: nn.TransformerDecoderLayer) -> DecoderLayer:
    """As :func:`encoder_layer_from`."""
    options = _layer_options_from(theirs, ("dropout", "dropout1", "dropout2", "dropout3"))
    _one_dropout(self_attn=options["dropout"], multihead_attn=theirs.multihead_attn.dropout)
    attention = attention_from(theirs.self_attn)
    with torch.device("meta"):
        ours = DecoderLayer(
            attention.embed_dim, attention.num_heads, theirs.linear1.out_features, **options
        )
    ours.self_attn = attention
    ours.cross_attn = attention_from(theirs.multihead_attn)
    _copy_norms_and_ffn(ours, theirs, norms=3)
    return ours


def _copy_norms_and_ffn(ours: Any, theirs: Any, *, norms: int) -> None:
    for name in (f"norm{index + 1}" for index in range(norms)):
        copy_parameters(getattr(ours, name), getattr(theirs, name))
    copy_parameters(ours.ffn.fc1, theirs.linear1)
    copy_parameters(ours.ffn.fc2, theirs.linear2)


def _layer_to(ours: Any, kind: type[nn.Module], *, norms: int) -> Any:
    ffn: FeedForward = ours.ffn
    if ffn.gate is not None or ffn.norm is not None:
        raise ValueError("its feed-forward network has a gate or a norm, which torch's has not")
    activation = activation_from(ffn.activation)
    with torch.device("meta"):
        theirs: Any = kind(
            ours.self_attn.embed_dim,
            ours.self_attn.num_heads,
            ffn.fc1.out_features,
            dropout=ours.self_attn.dropout,
            activation=F.relu if activation == "relu" else F.gelu,
            norm_first=ours.norm_first,
            bias=ffn.fc1.bias is not None,
            batch_first=True,
        )
    theirs.self_attn = attention_to(ours.self_attn)
    for name in (f"norm{index + 1}" for index in range(norms)):
        copy_parameters(getattr(theirs, name), getattr(ours, name))
    copy_parameters(theirs.linear1, ffn.fc1)
    copy_parameters(theirs.linear2, ffn.fc2)
    return theirs


def encoder_layer_to(ours: EncoderLayer) -> nn.TransformerEncoderLayer:
    """The inverse; ValueError for a part that torch's layer has not."""
    for part in (*ours.branch1.children(), *ours.branch2.children()):
        if not isinstance(part, nn.Dropout):
            raise ValueError(
                f"this layer has {type(part).__name__}, which nn.TransformerEncoderLayer has not"
            )
    return _layer_to(ours, nn.TransformerEncoderLayer, norms=2)


def decoder_layer_to(ours: DecoderLayer) -> nn.TransformerDecoderLayer:
    """The inverse of :func:`decoder_layer_from`."""
    theirs = _layer_to(ours, nn.TransformerDecoderLayer, norms=3)
    theirs.multihead_attn = attention_to(ours.cross_attn)
    return theirs
