"""First values, at construction and again: what ``reset_parameters`` and the meta device need."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)


def reset_with(layer: Layer, fill: Callable[[Layer], None]) -> None:
    """Let ``layer.reset_parameters()`` be ``fill(layer)``; nothing is filled yet.

    For one of torch's layers that begins with other values than torch's: whoever resets all modules
    one by one, as FSDP does after ``to_empty``, then finds them too. An attribute of the instance,
    because tools ask for the exact class (``quantize_dynamic``, counters of operations).

    Args:
        fill: a function of a module, so that copies and pickles find it.
    """
    vars(layer)["reset_parameters"] = partial(fill, layer)


def start_at_zero(layer: nn.Module) -> None:
    """Let all parameters of one of torch's layers be 0, now and when it resets itself."""
    reset_with(layer, _fill_zeros)
    _fill_zeros(layer)


def replace_values(parameter: nn.Parameter, values: Tensor) -> None:
    """Give a parameter values of another shape; it stays the object that optimisers hold."""
    parameter.data = values
    parameter.grad = None


class ComputedTable(nn.Module):
    """A module with a buffer that a formula gives and no state holds.

    It is right whenever the module is: on the meta device it is kept as real numbers, since loading
    a state would not bring them, and where memory comes without values (``to_empty``) it is
    computed again. A subclass calls :meth:`_register_table` when it knows what the formula needs.
    """

    _table_name = "table"

    def _compute_table(self) -> Tensor:
        raise NotImplementedError

    def _register_table(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        table = self._computed(device)
        table = table if dtype is None else table.to(dtype)
        self.register_buffer(self._table_name, table, persistent=False)

    def _computed(self, device: torch.device | str | None = None) -> Tensor:
        with torch.device("cpu"):  # where float64 exists
            table = self._compute_table()
        device = torch.get_default_device() if device is None else torch.device(device)
        return table if device.type == "meta" else table.to(device)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Compute the table again, in place."""
        table = self._buffers.get(self._table_name)
        if table is not None:
            table.copy_(self._computed())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = self._buffers.get(self._table_name)
        super()._apply(fn, recurse)
        if self._buffers.get(self._table_name) is not before:
            ComputedTable.reset_parameters(self)
        return self

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)
        table = self._buffers.get(self._table_name)
        if table is not None and table.is_meta and local_metadata["assign_to_params_buffers"]:
            self._buffers[self._table_name] = self._computed()


def _fill_zeros(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
