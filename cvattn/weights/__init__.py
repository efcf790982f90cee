"""Other people's weights into ours and back: one importer for each source.

timm and torchvision are loaded only when they are asked for.
"""

from cvattn.weights.torch_nn import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]
