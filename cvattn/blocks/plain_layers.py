"""Whether a layer's weights may be used without calling the layer."""

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as of_all_modules
from torch.nn.utils import parametrize

# Tensor: what torch.func puts in place of a parameter. FakeTensor: a trace sees what would run.
_PARAMETERS = (nn.Parameter, Tensor, FakeTensor)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_GLOBAL_HOOKS = (
    of_all_modules._global_forward_pre_hooks,
    of_all_modules._global_forward_hooks,
    of_all_modules._global_backward_pre_hooks,
    of_all_modules._global_backward_hooks,
)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def is_plain(layer: nn.Module) -> bool:
    """True if nothing but its weights decides what the convolution gives, and nobody watches it.

    Adapters (LoRA) and quantisation replace the layer or its class; pruning, the older
    ``spectral_norm`` and ``weight_norm``, offloading and profilers hook it or replace its
    ``forward``; sharding gives it another kind of parameters. Parametrizations
    (``torch.nn.utils.parametrize``) act wherever the weight is read.
    """
    return (
        parametrize.type_before_parametrizations(layer) in _CONVOLUTIONS
        and "forward" not in vars(layer)
        and not any(getattr(layer, hooks) for hooks in _HOOKS)
        and all(_only_watches(hook) for hooks in _GLOBAL_HOOKS for hook in hooks.values())
        and all(type(parameter) in _PARAMETERS for parameter in layer.parameters())
    )


def _only_watches(hook: object) -> bool:
    """Whether a hook on all modules is of those (cvattn.maps) that miss no call of the layer."""
    return getattr(hook, "only_watches", False)
