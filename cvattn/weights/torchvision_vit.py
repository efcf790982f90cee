"""Weights of torchvision's ``VisionTransformer`` into ours."""

from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from cvattn.models import VisionTransformer
from cvattn.weights.copying import copy_parameters, filled
from cvattn.weights.plain import check_plain
from cvattn.weights.torch_attention import attention_from
from cvattn.weights.torch_layers import activation_from
from cvattn.weights.vit import copy_positions, empty_vit, one_for_all, refuse_if


def from_torchvision(module: nn.Module) -> VisionTransformer:
    """Our ``VisionTransformer`` with a copy of the weights of torchvision's, same logits.

    Taken are models with a patch stem, a head of one layer and one dropout rate (``vit_b_16`` and
    its like). Dtype, device, train/eval mode and ``requires_grad`` follow. torchvision is loaded by
    this call, not before.

    For images of another size, also such as are not square, call ``resample((H, W))`` on the
    result. It interpolates as timm does, with antialiasing; torchvision's
    ``interpolate_embeddings`` aligns the corners of the two grids and differs from both.

    Raises:
        TypeError: not torchvision's ``VisionTransformer``; a subclass may compute something else.
        ValueError: an option that ours does not have, by name; a layer that is not plain (an
            adapter, a parametrization, hooks), by name.
    """
    from torchvision.models.vision_transformer import VisionTransformer as Source

    if type(module) is not Source:
        raise TypeError(
            f"from_torchvision() got a {type(module).__qualname__}; expected torchvision's "
            "VisionTransformer"
        )
    theirs: Any = module
    _check(theirs)
    blocks = list(theirs.encoder.layers)
    ours: Any = empty_vit(
        theirs.heads.head.out_features,
        theirs.conv_proj.weight,
        in_channels=theirs.conv_proj.in_channels,
        image_size=(theirs.image_size, theirs.image_size),
        patch_size=theirs.patch_size,
        embed_dim=theirs.hidden_dim,
        num_heads=one_for_all("num_heads", [b.self_attention.num_heads for b in blocks]),
        ffn_dim=one_for_all("mlp_dim", [b.mlp[0].out_features for b in blocks]),
        num_layers=len(blocks),
        pool="cls",
        dropout=_dropout(theirs, blocks),
        activation=one_for_all("the activations", [activation_from(b.mlp[1]) for b in blocks]),
    )
    copy_parameters(ours.stem, theirs.conv_proj)
    copy_positions(ours, theirs.class_token, theirs.encoder.pos_embedding)
    for layer, block in zip(ours.encoder.layers, blocks, strict=True):
        layer.self_attn = attention_from(block.self_attention)
        copy_parameters(layer.norm1, block.ln_1)
        copy_parameters(layer.norm2, block.ln_2)
        copy_parameters(layer.ffn.fc1, block.mlp[0])
        copy_parameters(layer.ffn.fc2, block.mlp[3])
    copy_parameters(ours.encoder.norm, theirs.encoder.ln)
    copy_parameters(ours.head, theirs.heads.head)
    filled(ours)
    return ours.train(module.training)


def _check(theirs: Any) -> None:
    from torchvision.models.vision_transformer import Encoder, EncoderBlock, MLPBlock

    # The options first: what they say is more exact.
    refuse_if(
        {
            "conv_stem_configs": isinstance(theirs.conv_proj, nn.Sequential),
            "representation_size": isinstance(theirs.heads, nn.Sequential)
            and len(theirs.heads) != 1,
        }
    )
    check_plain(
        theirs,
        ("torchvision.models.vision_transformer", "torchvision.ops.misc", "torch.nn.modules"),
        {
            r"conv_proj": (nn.Conv2d,),
            r"encoder": (Encoder,),
            r"encoder\.layers": (nn.Sequential,),
            r"encoder\.layers\.[^.]+\.self_attention": (nn.MultiheadAttention,),
            r".*\.out_proj": (NonDynamicallyQuantizableLinear,),
            r".*\.mlp\.[03]": (nn.Linear,),
            r".*\.mlp\.[24]|.*\.dropout": (nn.Dropout,),
            r"heads": (nn.Sequential,),
            r"heads\.head": (nn.Linear,),
        },
    )
    blocks = list(theirs.encoder.layers)
    if not blocks:
        raise ValueError("torchvision's model has no layers (num_layers=0)")
    refuse_if(
        {
            f"norm_layer={type(theirs.encoder.ln).__name__}": type(theirs.encoder.ln)
            is not nn.LayerNorm,
        },
    )
    for name, block in theirs.encoder.layers.named_children():
        where = f" in encoder.layers.{name}"
        refuse_if({type(block).__name__: type(block) is not EncoderBlock}, where)
        norms = {type(norm).__name__ for norm in (block.ln_1, block.ln_2)} - {"LayerNorm"}
        refuse_if(
            {
                f"norm_layer={', '.join(sorted(norms))}": bool(norms),
                type(block.mlp).__name__: type(block.mlp) is not MLPBlock or len(block.mlp) != 5,
            },
            where,
        )


def _dropout(theirs: Any, blocks: list[Any]) -> float:
    rates = [theirs.encoder.dropout.p]
    for block in blocks:
        rates += [block.self_attention.dropout, block.dropout.p, block.mlp[2].p, block.mlp[4].p]
    return one_for_all("dropout and attention_dropout", rates)
