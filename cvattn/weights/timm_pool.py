"""timm's ``AttentionPoolLatent``, the head of SigLIP, into our ``AttentionPool``."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from cvattn.weights.copying import copy_parameters, set_parameter
from cvattn.weights.timm_layers import copy_ffn, ffn_options, foreign_norms, present
from cvattn.weights.vit import refuse_if


def check_pool(pool: Any, encoder: Mapping[str, Any]) -> None:
    """Refuse, by name, what ours has not: it has the heads and the network of the encoder.

    Args:
        encoder: arguments of our encoder.
    """
    from timm.layers.attention_pool import AttentionPoolLatent
    from timm.layers.mlp import Mlp

    where = " in attn_pool"
    refuse_if({type(pool).__name__: type(pool) is not AttentionPoolLatent}, where)
    refuse_if({f"mlp_layer={type(pool.mlp).__name__}": type(pool.mlp) is not Mlp}, where)
    options = ffn_options(pool.mlp)
    rates = (pool.proj_drop.p, pool.mlp.drop1.p, pool.mlp.drop2.p)
    layers = (pool.q, pool.kv, pool.proj, pool.mlp.fc1, pool.mlp.fc2)
    refuse_if(
        {
            f"latent_len={pool.latent_len}": pool.latent_len != 1,
            f"pool_type={pool.pool!r}": pool.pool not in ("token", "avg"),
            "pos_embed": pool.pos_embed is not None,
            "qk_norm=True": present(pool.q_norm) or present(pool.k_norm),
            "q_proj=False, or no bias": any(getattr(each, "bias", None) is None for each in layers),
            "another scale of the scores": pool.scale != pool.head_dim**-0.5,
            **foreign_norms({"norm": pool.norm}),
            f"dropout rates {rates}": any(rates),
            f"attn_pool_num_heads={pool.num_heads} (the blocks have {encoder['num_heads']})": (
                pool.num_heads != encoder["num_heads"]
            ),
            f"attn_pool_mlp_ratio for a width of {options['ffn_dim']} (the blocks have "
            f"{encoder['ffn_dim']})": options["ffn_dim"] != encoder["ffn_dim"],
            f"activation {options['activation']!r} (the blocks have {encoder['activation']!r})": (
                options["activation"] != encoder["activation"]
            ),
            "a norm as attn_pool.mlp.norm": options["ffn_norm"],
        },
        where,
    )


def copy_pool(ours: Any, pool: Any) -> None:
    """The weights of ``pool`` into our ``AttentionPool``."""
    query = pool.latent[0, 0].detach().requires_grad_(pool.latent.requires_grad)
    set_parameter(ours, "query", query)
    copy_parameters(ours.attn.q_proj, pool.q)
    for part, layer in enumerate((ours.attn.k_proj, ours.attn.v_proj)):
        for kind in ("weight", "bias"):
            set_parameter(layer, kind, getattr(pool.kv, kind), part=part, parts=2)
    copy_parameters(ours.attn.out_proj, pool.proj)
    copy_parameters(ours.norm, pool.norm)
    copy_ffn(ours.ffn, pool.mlp)


# Types of its layers, for check_plain.
PLACES: dict[str, tuple[type[nn.Module], ...]] = {
    r"attn_pool\.(q|kv|proj|mlp\.fc[12])": (nn.Linear,),
    r"attn_pool\.(proj_drop|mlp\.drop[12])": (nn.Dropout,),
}
