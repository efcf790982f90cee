"""Norms, activations and feed-forward networks of timm's, in our words."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from cvattn.core.feed_forward import Activation
from cvattn.core.norms import Norm
from cvattn.weights.copying import copy_parameters, set_parameter


def present(part: Any) -> bool:
    """Whether a layer that may be left out is there."""
    return part is not None and not isinstance(part, nn.Identity)


def norm_kind(part: Any) -> Norm | None:
    """What ours calls it, or None. timm's differ from torch's in how they compute, not in what."""
    from timm.layers.norm import LayerNorm, LayerNormFp32, RmsNorm, RmsNormFp32

    if getattr(part, "weight", None) is None or getattr(part, "eps", None) is None:
        return None
    if type(part) in (nn.LayerNorm, LayerNorm, LayerNormFp32):
        return "layer"
    return "rms" if type(part) in (nn.RMSNorm, RmsNorm, RmsNormFp32) else None


def foreign_norms(parts: Mapping[str, Any]) -> dict[str, bool]:
    """For ``refuse_if``: norms, by name, that ours has not."""
    return {
        f"norm_layer={type(part).__name__} ({name})": norm_kind(part) is None
        for name, part in parts.items()
    }


def ffn_options(mlp: Any) -> dict[str, Any]:
    """Arguments of ours for one of timm's feed-forward networks, whose kind was checked.

    Raises:
        ValueError: an activation that ours has not.
    """
    return {
        "ffn_dim": mlp.fc2.in_features,
        "activation": _activation(mlp),
        "ffn_norm": present(mlp.norm),
    }


def _activation(mlp: Any) -> Activation:
    from timm.layers.activations import GELU, GELUTanh, QuickGELU
    from timm.layers.mlp import Mlp

    act = mlp.act
    if type(mlp) is not Mlp:
        if type(act) is nn.SiLU:
            return "swiglu"
        raise ValueError(f"timm's {type(mlp).__name__} uses act_layer={act}; expected SiLU")
    if type(act) is nn.GELU:
        return "gelu" if act.approximate == "none" else "gelu_tanh"
    known: dict[type, Activation] = {
        nn.ReLU: "relu",
        GELU: "gelu",
        GELUTanh: "gelu_tanh",
        QuickGELU: "quick_gelu",
    }
    if type(act) in known:
        return known[type(act)]
    raise ValueError(
        f"timm's model uses act_layer={act}; expected GELU (exact or by tanh), QuickGELU or ReLU, "
        "or SiLU in a gated network"
    )


def copy_ffn(ours: Any, mlp: Any) -> None:
    """The weights of ``mlp`` into our ``FeedForward``."""
    from timm.layers.mlp import GluMlp, SwiGLU

    if type(mlp) is GluMlp:
        gate = 1 if mlp.gate_last else 0
        for layer, part in ((ours.gate, gate), (ours.fc1, 1 - gate)):
            for kind in ("weight", "bias"):
                set_parameter(layer, kind, getattr(mlp.fc1, kind), part=part, parts=2)
    elif type(mlp) is SwiGLU:
        copy_parameters(ours.gate, mlp.fc1_g)
        copy_parameters(ours.fc1, mlp.fc1_x)
    else:
        copy_parameters(ours.fc1, mlp.fc1)
    copy_parameters(ours.fc2, mlp.fc2)
    if ours.norm is not None:
        copy_parameters(ours.norm, mlp.norm)
