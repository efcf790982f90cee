"""State dicts of two well-known SAGAN blocks, or of GANs with one, into :class:`SelfAttention2d`.

Both compute ``x + gamma * proj(softmax(q k^T) v)`` as ours does and differ in names, in the shape
of gamma and in where they keep spectral normalisation.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cvattn.blocks import SelfAttention2d
from cvattn.weights.state_dicts import block_of, pointwise, take

SELF_ATTN = {"query": "query_conv", "key": "key_conv", "value": "value_conv"}
BIGGAN = {"query": "theta", "key": "phi", "value": "g", "proj": "o"}


def from_self_attn(state_dict: Mapping[str, Tensor], *, prefix: str = "") -> SelfAttention2d:
    """A :class:`SelfAttention2d` from the weights of ``Self_Attn``, as many repositories have it.

    Its parts are ``query_conv``, ``key_conv``, ``value_conv`` and ``gamma``, with or without
    biases; plain, or under ``torch.nn.utils.spectral_norm`` (``weight_orig``, ``weight_u``,
    ``weight_v``), and then ours is so too.

    Args:
        state_dict: of the block, or of a model that contains it.
        prefix: what stands before the block's names in it, such as "attn1."; other keys are left
            alone.

    Returns:
        A new block in train mode, in the dtype and on the device of the weights. In eval mode its
        output is theirs.

    Raises:
        ValueError: keys that are missing or unknown, by name, with near matches; shapes that do not
            fit.
    """
    spectral = f"{prefix}query_conv.weight_orig" in state_dict
    weights = ["weight_orig", "weight_u", "weight_v"] if spectral else ["weight"]
    biases = ["bias"] if f"{prefix}query_conv.bias" in state_dict else []
    state, layers = _take(state_dict, prefix, SELF_ATTN, [*weights, *biases])
    for name, part in layers.items():
        if spectral:
            state |= _normalised(name, *(part[each] for each in weights))
        else:
            state[f"{name}.weight"] = part["weight"]
        if biases:
            state[f"{name}.bias"] = part["bias"]
    return _block(state, kv_pool=1)


def from_biggan(state_dict: Mapping[str, Tensor], *, prefix: str = "") -> SelfAttention2d:
    """A block of the form :meth:`SelfAttention2d.biggan` from BigGAN-PyTorch's ``Attention``.

    Its parts are ``theta``, ``phi``, ``g``, ``o`` and ``gamma``; plain, or with that code's own
    spectral normalisation (``u0``, ``sv0``), and then ours is so too. Theirs takes one step of the
    power iteration from ``u0`` even in eval mode. The step is taken here, so that the outputs in
    eval mode are equal; ``sv0`` only records what it gave.

    Arguments, result and errors as in :func:`from_self_attn`; a prefix is such as "blocks.3.1.".
    """
    spectral = f"{prefix}theta.u0" in state_dict
    parts = ["weight", "u0", "sv0"] if spectral else ["weight"]
    state, layers = _take(state_dict, prefix, BIGGAN, parts)
    for name, part in layers.items():
        if spectral:
            matrix = part["weight"].flatten(1)
            v = F.normalize(part["u0"].flatten() @ matrix, dim=0)
            state |= _normalised(name, part["weight"], F.normalize(matrix @ v, dim=0), v)
        else:
            state[f"{name}.weight"] = part["weight"]
    return _block(state, kv_pool=2)


def _take(
    state_dict: Mapping[str, Tensor], prefix: str, layers: Mapping[str, str], parts: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """gamma, as the start of our state dict, and the parts of each layer by our name for it."""
    wanted = ["gamma", *(f"{layer}.{part}" for layer in layers.values() for part in parts)]
    tensors = take(state_dict, prefix, wanted, layers=layers.values())
    for name, tensor in tensors.items():
        if name.endswith((".weight", ".weight_orig")):
            pointwise(f"{prefix}{name}", tensor)
    if tensors["gamma"].numel() != 1:
        raise ValueError(
            f"{prefix}gamma has the shape {tuple(tensors['gamma'].shape)}; expected one value"
        )
    return {"gamma": tensors["gamma"].reshape(1)}, {
        ours: {part: tensors[f"{theirs}.{part}"] for part in parts}
        for ours, theirs in layers.items()
    }


def _normalised(layer: str, weight: Tensor, u: Tensor, v: Tensor) -> dict[str, Tensor]:
    """A layer under torch's spectral normalisation, as it stands in our state dict."""
    at = f"{layer}.parametrizations.weight"
    return {f"{at}.original": weight, f"{at}.0._u": u, f"{at}.0._v": v}


def _block(state: dict[str, Tensor], *, kv_pool: int) -> SelfAttention2d:
    """The block that a state dict of ours belongs to, filled with it."""
    spectral = "query.weight" not in state
    weight = "parametrizations.weight.original" if spectral else "weight"
    query, value = state[f"query.{weight}"], state[f"value.{weight}"]

    def make() -> SelfAttention2d:
        block = SelfAttention2d(
            query.shape[1],
            qk_channels=query.shape[0],
            value_channels=value.shape[0] if f"proj.{weight}" in state else None,
            kv_pool=kv_pool,
        )
        for layer in block.projections() if spectral else ():
            torch.nn.utils.parametrizations.spectral_norm(layer)
        return block

    return block_of(make, state, query)
