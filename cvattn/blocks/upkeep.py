"""How an inserted block runs, and how its loss is noticed."""

from typing import Any

from torch import Tensor, nn

CHILD = "inserted_attention"


def attend(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
    """The forward hook of a layer that does not run its children by itself.

    Not a closure, so that models with it can be pickled and it is found again. Without a child it
    was moved to another layer (fusion does that), which is for :class:`Upkeep` to say.
    """
    block = layer._modules.get(CHILD)
    return output if block is None else block(output)


def is_watched(layer: nn.Module) -> bool:
    """Whether the hook is there."""
    return attend in layer._forward_hooks.values()


class Upkeep:
    """Raises, before the model runs, if one of its blocks would not: a forward pre-hook.

    A tool that replaces or rebuilds a layer after the insertion (an adapter around a convolution,
    another activation) leaves the block, its hook or both behind, and the model would run without
    attention and without a word.
    """

    def __init__(self) -> None:
        self.by_hook: dict[str, bool] = {}  # name of the layer -> whether a hook runs its block

    def __call__(self, model: nn.Module, args: Any) -> None:
        for name, by_hook in self.by_hook.items():
            layer = _submodule(model, name)
            if layer is None or CHILD not in layer._modules or (by_hook and not is_watched(layer)):
                raise RuntimeError(
                    f"the attention behind {name!r} does not run any more: the layer was replaced "
                    "or rebuilt after insert_attention. Do that first, then insert "
                    "(remove_attention(model) takes out what is left)"
                )

    @classmethod
    def of(cls, model: nn.Module) -> "Upkeep | None":
        found = (hook for hook in model._forward_pre_hooks.values() if isinstance(hook, cls))
        return next(found, None)

    @classmethod
    def watch(cls, model: nn.Module, by_hook: dict[str, bool]) -> None:
        """Watch these layers of the model from now on, beside earlier ones."""
        upkeep = cls.of(model)
        if upkeep is None:
            upkeep = cls()
            model.register_forward_pre_hook(upkeep)
        upkeep.by_hook.update(by_hook)

    @classmethod
    def forget(cls, model: nn.Module) -> None:
        """Watch only what is still there."""
        for key, hook in list(model._forward_pre_hooks.items()):
            if isinstance(hook, cls):
                hook.by_hook = {
                    name: by_hook
                    for name, by_hook in hook.by_hook.items()
                    if (layer := _submodule(model, name)) is not None and CHILD in layer._modules
                }
                if not hook.by_hook:
                    del model._forward_pre_hooks[key]


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    found: nn.Module | None = model
    for part in name.split("."):
        found = found._modules.get(part) if found is not None else None
    return found
