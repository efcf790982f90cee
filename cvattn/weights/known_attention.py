"""Which modules of other libraries are known, and ours to put in their place."""

import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from cvattn.weights.diffusers_attention import from_diffusers
from cvattn.weights.diffusers_checks import fused_processors, plain_processors, scale_of
from cvattn.weights.drop_ins import DiffusersDropIn, MonaiDropIn
from cvattn.weights.gan_drop_ins import (
    drop_in_for_gan,
    has_parts_of_biggan,
    has_parts_of_self_attn,
)
from cvattn.weights.monai_attention import from_monai


def drop_in_maker(module: nn.Module) -> Callable[[nn.Module], nn.Module] | None:
    """What makes ours for that place, of a module that is known; raises ValueError, TypeError."""
    if _is(module, "diffusers.models.attention_processor", "Attention"):
        return _of_diffusers
    if _is(module, "monai.networks.blocks.spatialattention", "SpatialAttentionBlock"):
        return from_monai  # both are called with the map alone
    if _is(module, "monai.networks.blocks.selfattention", "SABlock"):
        return _of_monai
    if has_parts_of_self_attn(module) or has_parts_of_biggan(module):
        return drop_in_for_gan
    return None


def _is(module: nn.Module, library: str, name: str) -> bool:
    """Without loading the library: there are none of its modules before it is loaded."""
    loaded = sys.modules.get(library)
    return loaded is not None and isinstance(module, getattr(loaded, name))


def _of_diffusers(module: nn.Module) -> nn.Module:
    theirs: Any = module
    attention = from_diffusers(module)
    plain, fused = plain_processors(), fused_processors()
    own = plain if type(theirs.processor) in plain else fused
    # Where scale_qk or qk_norm are other than usual, the two kinds differ.
    alike = scale_of(theirs) is None and theirs.scale_qk and theirs.norm_q is None
    accepted = plain + fused if alike else own
    return DiffusersDropIn(attention, theirs.processor, accepted).train(module.training)


def _of_monai(module: nn.Module) -> nn.Module:
    theirs: Any = module
    attention: Any = from_monai(module)
    ours = MonaiDropIn(attention, takes_scores_mask=theirs.use_flash_attention)
    return ours.train(module.training)
