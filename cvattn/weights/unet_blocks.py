"""State dicts of the attention blocks that diffusion and segmentation networks copied.

Each becomes a :class:`SelfAttention2d` of the form that the block has: :meth:`SelfAttention2d.unet`
of guided diffusion's and CompVis's, :meth:`SelfAttention2d.non_local` of mmcv's.
"""

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from cvattn.blocks import SelfAttention2d
from cvattn.weights.state_dicts import block_of, pointwise, take

_WEIGHTS = ("weight", "bias")


def from_guided_diffusion(
    state_dict: Mapping[str, Tensor],
    *,
    num_heads: int | None = None,
    num_head_channels: int | None = None,
    new_order: bool = False,
    norm_groups: int = 32,
    prefix: str = "",
) -> SelfAttention2d:
    """A :class:`SelfAttention2d` from ``AttentionBlock`` of OpenAI's guided-diffusion.

    Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2021). Its parts are
    ``norm``, ``qkv`` (one convolution of one dimension for all three) and ``proj_out``. Theirs
    multiplies q and k by 1/sqrt(sqrt(d)) each, ours their product by 1/sqrt(d), which is the same.
    improved-diffusion's block is this one too; blocks with ``encoder_kv`` (GLIDE) are refused.

    Args:
        state_dict: of the block, or of a model that contains it.
        num_heads, num_head_channels: how many heads, or how wide each is: one of the two.
        new_order: ``use_new_attention_order``: all of q, then all of k, then all of v in ``qkv``;
            else each head's q, k and v together (``QKVAttentionLegacy``).
        norm_groups: groups of the norm, 32 in their code.
        prefix: what stands before the block's names, such as "middle_block.1."; other keys are left
            alone.

    Returns:
        A new block in train mode, in the dtype and on the device of ``qkv``'s weights: the norm's
        too, which their half-precision networks keep in float32.

    Raises:
        ValueError: keys that are missing or unknown, by name, with near matches; shapes or heads
            that do not fit.
    """
    layers = ("norm", "qkv", "proj_out")
    wanted = [f"{layer}.{part}" for layer in layers for part in _WEIGHTS]
    theirs = take(state_dict, prefix, wanted, layers=layers)
    qkv = pointwise(f"{prefix}qkv.weight", theirs["qkv.weight"], (1, 2))
    channels = qkv.shape[1]
    heads = _heads(channels, num_heads, num_head_channels)
    if qkv.shape[0] != 3 * channels:
        raise ValueError(
            f"{prefix}qkv.weight has {qkv.shape[0]} outputs of {channels} channels; expected "
            f"{3 * channels}, those of q, k and v"
        )
    groups = (3, heads) if new_order else (heads, 3)
    state = _normed(theirs, f"{prefix}proj_out.weight", (1, 2))
    for part, packed in (("weight", qkv), ("bias", theirs["qkv.bias"])):
        split = packed.unflatten(0, (*groups, -1)).movedim(0 if new_order else 1, 0)
        for name, own in zip(("query", "key", "value"), split, strict=True):
            state[f"{name}.{part}"] = own.flatten(0, 1)
    return _unet(state, num_heads=heads, groups=norm_groups, eps=1e-5)


def from_compvis(
    state_dict: Mapping[str, Tensor], *, norm_groups: int = 32, prefix: str = ""
) -> SelfAttention2d:
    """A :class:`SelfAttention2d` from ``AttnBlock`` of taming-transformers and latent diffusion.

    Esser et al., "Taming Transformers for High-Resolution Image Synthesis" (2021), and Rombach et
    al. (2022). Its parts are ``norm`` (epsilon 1e-6), ``q``, ``k``, ``v`` and ``proj_out``; it has
    one head.

    Args:
        state_dict: of the block, or of a model that contains it.
        norm_groups: groups of the norm, 32 in their code.
        prefix: such as "decoder.mid.attn_1.".

    Result and errors as in :func:`from_guided_diffusion`.
    """
    layers = {"query": "q", "key": "k", "value": "v"}
    every = (*layers.values(), "norm", "proj_out")
    wanted = [f"{layer}.{part}" for layer in every for part in _WEIGHTS]
    theirs = take(state_dict, prefix, wanted, layers=every)
    state = _normed(theirs, f"{prefix}proj_out.weight", (2,))
    for ours, name in layers.items():
        state[f"{ours}.weight"] = pointwise(f"{prefix}{name}.weight", theirs[f"{name}.weight"])
        state[f"{ours}.bias"] = theirs[f"{name}.bias"]
    return _unet(state, num_heads=1, groups=norm_groups, eps=1e-6)


def from_mmseg(
    state_dict: Mapping[str, Tensor],
    *,
    use_scale: bool = True,
    sub_sample: bool = False,
    prefix: str = "",
) -> SelfAttention2d:
    """A :class:`SelfAttention2d` from ``NonLocal2d`` of mmcv, as mmsegmentation's heads have it.

    Wang et al., "Non-local Neural Networks" (2018), as an embedded Gaussian (``mode=
    "embedded_gaussian"``); the other modes have other parts and are refused by these. Its parts are
    ``g``, ``theta``, ``phi`` and ``conv_out``, each a ``conv`` with or without bias, and behind
    ``conv_out`` a batch norm ``bn`` or none. A ``SyncBatchNorm``'s state is a batch norm's.

    Args:
        state_dict: of the block, or of a model that contains it.
        use_scale: scores are divided by the root of the width of theta.
        sub_sample: keys and values are max-pooled 2x2 (their names are then ``phi.0``, ``g.0``).
            Theirs leaves out the last row or column of odd maps, ours pools it.
        prefix: such as "decode_head.nl_block.".

    Result and errors as in :func:`from_guided_diffusion`; in eval mode the outputs are equal, in
    train mode too, but for what their batch norm synchronises across processes.
    """
    inner = ".0" if sub_sample else ""
    layers = {
        "query": "theta.conv",
        "key": f"phi{inner}.conv",
        "value": f"g{inner}.conv",
        "out": "conv_out.conv",
    }
    has_norm = f"{prefix}conv_out.bn.weight" in state_dict
    wanted = []
    for layer in layers.values():
        has_bias = f"{prefix}{layer}.bias" in state_dict
        wanted += [f"{layer}.{part}" for part in (_WEIGHTS if has_bias else ("weight",))]
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    wanted += [f"conv_out.bn.{part}" for part in statistics if has_norm]
    theirs = take(state_dict, prefix, wanted, layers=layers.values())
    names = {layer: ours for ours, layer in layers.items()}
    names["conv_out.conv"] = "proj.0" if has_norm else "proj"
    names["conv_out.bn"] = "proj.1"
    state = {}
    for key, tensor in theirs.items():
        layer, _, part = key.rpartition(".")
        if layer.endswith(".conv") and part == "weight":
            tensor = pointwise(f"{prefix}{key}", tensor)
        state[f"{names[layer]}.{part}"] = tensor
    query, value = state["query.weight"], state["value.weight"]
    make = partial(
        SelfAttention2d.non_local,
        query.shape[1],
        batch_norm=has_norm,
        qk_channels=query.shape[0],
        value_channels=value.shape[0],
        kv_pool=2 if sub_sample else 1,
        scale=None if use_scale else 1.0,
    )
    return block_of(make, state, query)


def _heads(channels: int, num_heads: int | None, num_head_channels: int | None) -> int:
    if num_heads is not None and num_head_channels is None and num_heads > 0:
        heads, rest = num_heads, channels % num_heads
    elif num_heads is None and num_head_channels is not None and num_head_channels > 0:
        heads, rest = divmod(channels, num_head_channels)
    else:
        raise ValueError(
            f"num_heads={num_heads} and num_head_channels={num_head_channels}; expected one of the "
            "two, as the network was built with"
        )
    if rest:
        raise ValueError(
            f"num_heads={num_heads}, num_head_channels={num_head_channels}: heads of one width do "
            f"not fill the {channels} channels"
        )
    return heads


def _normed(
    theirs: Mapping[str, Tensor], name: str, dimensions: tuple[int, ...]
) -> dict[str, Tensor]:
    """The state of the norm before and of the projection behind."""
    return {
        "norm.weight": theirs["norm.weight"],
        "norm.bias": theirs["norm.bias"],
        "proj.weight": pointwise(name, theirs["proj_out.weight"], dimensions),
        "proj.bias": theirs["proj_out.bias"],
    }


def _unet(
    state: Mapping[str, Tensor], *, num_heads: int, groups: int, eps: float
) -> SelfAttention2d:
    query = state["query.weight"]
    width, channels = query.shape[:2]

    def make() -> SelfAttention2d:
        block = SelfAttention2d.unet(
            channels, groups=groups, qk_channels=width, value_channels=width, num_heads=num_heads
        )
        assert block.norm is not None
        block.norm.eps = eps
        return block

    return block_of(make, state, query)
