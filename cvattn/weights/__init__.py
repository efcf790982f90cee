"""Other people's weights into ours and back: one importer for each source.

timm is loaded by the call that needs it, not by importing this.
"""

from cvattn.weights.timm_vit import from_timm
from cvattn.weights.torch_nn import from_torch, to_torch

__all__ = ["from_timm", "from_torch", "to_torch"]
