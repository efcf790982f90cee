"""Other people's weights into ours and back: one importer for each source.

timm, torchvision, diffusers and MONAI are loaded by the call that needs them, not by importing
this.
"""

from cvattn.weights.diffusers_attention import from_diffusers
from cvattn.weights.diffusers_export import to_diffusers
from cvattn.weights.monai_attention import from_monai, to_monai
from cvattn.weights.sagan_blocks import from_biggan, from_self_attn
from cvattn.weights.sagan_networks import from_biggan_gan, from_mimicry
from cvattn.weights.timm_vit import from_timm
from cvattn.weights.torch_nn import from_torch, to_torch
from cvattn.weights.torchvision_vit import from_torchvision
from cvattn.weights.unet_blocks import from_compvis, from_guided_diffusion, from_mmseg

__all__ = [
    "from_biggan",
    "from_biggan_gan",
    "from_compvis",
    "from_diffusers",
    "from_guided_diffusion",
    "from_mimicry",
    "from_mmseg",
    "from_monai",
    "from_self_attn",
    "from_timm",
    "from_torch",
    "from_torchvision",
    "to_diffusers",
    "to_monai",
    "to_torch",
]
