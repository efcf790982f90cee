"""Loading a state from before the insertion, which has nothing for the block."""

import warnings
from typing import Any

import torch
from torch import nn

from cvattn.blocks.map_attention import MapAttention


class Absence:
    """A pre-hook of ``load_state_dict``: the block's own values fill in for those that are absent.

    Args:
        without_values: the block was made on the meta device. Until a state is loaded, nobody knows
            whether it has values, or memory from ``to_empty``: it begins anew.
    """

    def __init__(self, *, without_values: bool) -> None:
        self.without_values = without_values

    def __call__(
        self,
        block: nn.Module,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *others: object,
    ) -> None:
        without_values, self.without_values = self.without_values, False
        if any(key.startswith(prefix) for key in state_dict):
            return
        name = prefix.removesuffix(".")
        if without_values:
            if local_metadata.get("assign_to_params_buffers"):
                _leave_meta(block)
            _begin_anew(block, name)
        on_meta = any(each.is_meta for each in block.parameters())
        acting = (each for each in block.modules() if isinstance(each, MapAttention))
        first = None if on_meta else next((e for e in acting if not e.is_identity()), None)
        if first is not None:
            gamma = first.gamma
            what = "its projection is not 0" if gamma is None else f"gamma {gamma.item():.3g}"
            warnings.warn(
                f"the state has nothing for {name!r}: it keeps the values that it has ({what})",
                stacklevel=2,
            )
        state_dict.update({prefix + key: value for key, value in block.state_dict().items()})


def _leave_meta(block: nn.Module) -> None:
    if any(tensor.is_meta for tensor in block.state_dict().values()):
        block.to_empty(device=torch.device("cpu"))


def _begin_anew(block: nn.Module, name: str) -> None:
    """Reset all modules, inner ones first."""
    for path, module in reversed(list(block.named_modules())):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif path == "" and not list(module.parameters(recurse=False)):
            continue
        elif list(module.parameters(recurse=False)) and ".parametrizations." not in f".{path}.":
            raise RuntimeError(
                f"the state has nothing for {name!r}, which was made on the meta device, and its "
                f"{type(module).__name__} {path!r} has no reset_parameters() to begin with; load a "
                "state that has its values"
            )
