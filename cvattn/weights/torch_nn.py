"""Weights of ``torch.nn``'s attention and Transformer modules into ours and back, exactly.

Theirs are sources of weights here, never base classes. ``batch_first`` touches no weight: ours are
always batch first, and what goes back is built with ``batch_first=True``. Masks differ in meaning:
:func:`cvattn.core.masks.from_torch_masks` turns them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from cvattn.core import Decoder, DecoderLayer, Encoder, EncoderLayer, MultiHeadAttention
from cvattn.core.feed_forward import FeedForward
from cvattn.core.residual import DropPath, LayerScale
from cvattn.weights.copying import copy_parameters, filled
from cvattn.weights.plain import check_plain
from cvattn.weights.torch_attention import attention_from, attention_to
from cvattn.weights.torch_layers import (
    decoder_layer_from,
    decoder_layer_to,
    encoder_layer_from,
    encoder_layer_to,
)


def from_torch(module: nn.Module) -> nn.Module:
    """Our module with a copy of ``module``'s weights.

    =============================  ===========================
    ``torch.nn``                   ours
    =============================  ===========================
    ``MultiheadAttention``         ``MultiHeadAttention``
    ``TransformerEncoderLayer``    ``EncoderLayer``
    ``TransformerEncoder``         ``Encoder``
    ``TransformerDecoderLayer``    ``DecoderLayer``
    ``TransformerDecoder``         ``Decoder``
    =============================  ===========================

    Dtype, device, train/eval mode and ``requires_grad`` follow. A stack's final norm is taken as it
    is: ``norm=None`` becomes ``nn.Identity``, also after pre-norm layers. Draws no random number.

    Raises:
        TypeError: another type; a subclass too, since it may compute something else.
        ValueError: an option that ours does not have, by name; a layer that is not plain (an
            adapter, a parametrization, hooks), by name.
    """
    return _convert(
        module,
        "from_torch",
        _PLACES,
        {
            nn.MultiheadAttention: attention_from,
            nn.TransformerEncoderLayer: encoder_layer_from,
            nn.TransformerEncoder: _encoder_from,
            nn.TransformerDecoderLayer: decoder_layer_from,
            nn.TransformerDecoder: _decoder_from,
        },
    )


def to_torch(module: nn.Module) -> nn.Module:
    """The inverse of :func:`from_torch`, built with ``batch_first=True``; same errors.

    LayerScale and DropPath have no place in torch's layers and are refused. Query, key and value
    weights of one width become torch's one packed tensor, trainable if any of the three is.
    """
    return _convert(
        module,
        "to_torch",
        _OUR_PLACES,
        {
            MultiHeadAttention: attention_to,
            EncoderLayer: encoder_layer_to,
            Encoder: _encoder_to,
            DecoderLayer: decoder_layer_to,
            Decoder: _decoder_to,
        },
    )


# What may stand where; activations and final norms are looked at by those who take them over.
_PLACES: dict[str, tuple[type[nn.Module], ...]] = {
    r"(.*\.)?out_proj": (NonDynamicallyQuantizableLinear,),
    r"(.*\.)?(self|multihead)_attn": (nn.MultiheadAttention,),
    r"(.*\.)?norm[123]": (nn.LayerNorm,),
    r"(.*\.)?linear[12]": (nn.Linear,),
    r"(.*\.)?dropout[123]?": (nn.Dropout,),
    r"layers": (nn.ModuleList,),
    r"layers\.\d+": (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
}
_OUR_PLACES: dict[str, tuple[type[nn.Module], ...]] = {
    r"(.*\.)?[qkv]_proj|(.*\.)?out_proj": (nn.Linear,),
    r"(.*\.)?(self|cross)_attn": (MultiHeadAttention,),
    r"(.*\.)?norm[123]": (nn.LayerNorm,),
    r"(.*\.)?ffn": (FeedForward,),
    r"(.*\.)?fc[12]": (nn.Linear,),
    r"(.*\.)?activation": (nn.ReLU, nn.GELU),
    r"(.*\.)?dropout": (nn.Dropout,),
    r"(.*\.)?branch[12]": (nn.Sequential,),
    r"(.*\.)?branch[12]\.\d+": (nn.Dropout, LayerScale, DropPath),
    r"layers": (nn.ModuleList,),
    r"layers\.\d+": (EncoderLayer, DecoderLayer),
}


def _convert(
    module: nn.Module,
    caller: str,
    places: Mapping[str, tuple[type[nn.Module], ...]],
    table: dict[type, Callable],
) -> nn.Module:
    if type(module) not in table:
        known = ", ".join(kind.__name__ for kind in table)
        raise TypeError(f"{caller}() got a {type(module).__qualname__}; expected one of: {known}")
    check_plain(module, ("torch.nn.modules", "cvattn.core"), places)
    return filled(table[type(module)](module)).train(module.training)


def _final_norm(norm: nn.Module | None, absent: nn.Module | None) -> nn.Module | None:
    """A stack's last norm, copied; what stands for "none" differs between the two sides."""
    if norm is None or isinstance(norm, nn.Identity):
        return absent
    if type(norm) is not nn.LayerNorm:
        raise ValueError(f"final norm is a {type(norm).__name__}; expected LayerNorm or none")
    with torch.device("meta"):
        copy = nn.LayerNorm(
            norm.normalized_shape,
            eps=norm.eps,
            elementwise_affine=norm.elementwise_affine,
            bias=norm.bias is not None,
        )
    copy_parameters(copy, norm)
    return copy


# Stacks: a shell whose layers and final norm are then replaced by the converted ones.


def _encoder_from(theirs: nn.TransformerEncoder) -> Encoder:
    return _fill_stack(Encoder(1, 1, 1, 0), theirs, encoder_layer_from, nn.Identity())


def _decoder_from(theirs: nn.TransformerDecoder) -> Decoder:
    return _fill_stack(Decoder(1, 1, 1, 0), theirs, decoder_layer_from, nn.Identity())


def _encoder_to(ours: Encoder) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(1, 1, 1, batch_first=True, device="meta")
    # Nested tensors would change the shape of what comes out, and warn.
    shell = nn.TransformerEncoder(layer, 0, enable_nested_tensor=False)
    return _fill_stack(shell, ours, encoder_layer_to, None)


def _decoder_to(ours: Decoder) -> nn.TransformerDecoder:
    layer = nn.TransformerDecoderLayer(1, 1, 1, batch_first=True, device="meta")
    return _fill_stack(nn.TransformerDecoder(layer, 0), ours, decoder_layer_to, None)


def _fill_stack(shell: Any, source: Any, layer: Callable, absent: nn.Module | None) -> Any:
    shell.layers = nn.ModuleList(layer(each) for each in source.layers)
    if hasattr(shell, "num_layers"):
        shell.num_layers = len(shell.layers)
    shell.norm = _final_norm(source.norm, absent)
    return shell
