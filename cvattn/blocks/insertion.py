"""Attention into any CNN: inserted after a layer, in place, and out again."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from cvattn.blocks.absence import Absence
from cvattn.blocks.dry_run import Call
from cvattn.blocks.layer_names import find_layers
from cvattn.blocks.map_attention import CONVOLUTIONS, MapAttention
from cvattn.blocks.placement import check_unchanged, find_places
from cvattn.blocks.self_attention2d import SelfAttention2d
from cvattn.blocks.upkeep import CHILD, Upkeep, attend
from cvattn.blocks.wrapped import check_changeable, check_initialised, check_unwrapped

Model = TypeVar("Model", bound=nn.Module)

# Of the dry run's input; not square, so that a (B, H, W, C) layer shows.
_SIZES = {1: (4096,), 2: (64, 96), 3: (24, 32, 40)}


def insert_attention(
    model: Model,
    *,
    after: str | Iterable[str],
    block: Callable[[int], nn.Module] = SelfAttention2d,
    example: Any = None,
) -> Model:
    """Put a block behind layers of a CNN, in place; the model is returned too.

    A new block is the identity (gamma = 0), so the outputs stay what they were, bit for bit. It
    becomes a child of its layer, ``<layer>.inserted_attention``: the names of all other parameters
    stay, and a state dict from before the insertion still loads (the block then keeps its values).

    A few passes of ``example`` through the model in eval mode find the channels, and that the block
    runs once in each pass, on the layer's output, and changes nothing yet. If the example cannot
    pass the model whole, this is known only up to where it fails: give one that can.

    In a model on the meta device a block begins anew when a state from before the insertion is
    loaded, with ``to_empty`` before or ``assign=True``.

    Insert after tools that replace layers (SyncBatchNorm, adapters, fusion, quantisation), and
    before DistributedDataParallel, FSDP, ``torch.compile`` and TorchScript. A model one of whose
    layers has lost its block raises when it is called. The layer is watched by a forward hook,
    which acts when the layer is called as a module, as it is everywhere but in hand-written
    ``layer.forward(x)``.

    Behind an ``nn.Sequential`` the block is its last child: ``model.layer3[-1]`` is the block then,
    and ``model.layer3.append(...)`` lands behind it. Tools that are given ``layer3[-1]`` for the
    last residual block (Grad-CAM's ``target_layers``) want ``layer3[-2]``, or ``layer3``.

    Args:
        model: any module whose chosen layers give feature maps (B, C, H, W); sequences (B, C, L) or
            volumes (B, C, D, H, W) for blocks of one or three dimensions.
        after: name of a layer as in ``model.named_modules()``, several, or patterns, in which * and
            ? stand for parts of one name: "layer3", "layer[34]", "features.*.block". No norm, and
            no convolution whose norm follows: other tools rebuild these.
        block: channels -> module; ``SelfAttention2d.biggan``, ``WindowAttention2d``, a
            ``functools.partial``, or your own.
        example: what the model takes: a tensor; a tuple of positional inputs, ``(x, t)``; a dict of
            keyword inputs; anything else is the one input, ``[image]`` for torchvision's detectors.
            None: zeros (1, C, 64, 96), with the C of the model's first convolution (of the block's
            dimensions: 4096 long, or 24 x 32 x 40).

    Raises:
        ValueError: no such layer (with near matches), one that has attention already, one that does
            not give a feature map or that no block can follow (with a place near it that works); a
            pass that needs an example; a model that is wrapped, compiled, scripted or lazy.
    """
    check_unwrapped(model)  # first: the wrapper's names are others than the caller's
    names = find_layers(model, after, besides=CHILD)
    check_changeable(model, names)
    check_initialised(model)
    layers = {name: model.get_submodule(name) for name in names}
    for name, layer in layers.items():
        if CHILD in layer._modules:
            raise ValueError(
                f"{name!r} has attention already; remove_attention(model) takes it out"
            )
    dimensions = _dimensions(block)
    call = Call.of(_zeros_for(model, dimensions) if example is None else example, dimensions)
    places = find_places(model, layers, call)
    # All are made before the first is put in: one that fails leaves the model as it was.
    blocks = {name: block(place.map.shape[1]).to(place.map) for name, place in places.of.items()}
    for name, layer in layers.items():
        layer.add_module(CHILD, blocks[name].train(layer.training))
        if places.of[name].by_hook:
            layer.register_forward_hook(attend, prepend=True)  # other hooks see what comes out
    try:
        check_unchanged(model, blocks, call, places)
    except ValueError:
        for layer in layers.values():
            _take_out(layer)
        raise
    for name, place in places.of.items():
        blocks[name].register_load_state_dict_pre_hook(Absence(without_values=place.map.is_meta))
    Upkeep.watch(model, {name: place.by_hook for name, place in places.of.items()})
    return model


def remove_attention(model: Model, *, after: str | Iterable[str] | None = None) -> Model:
    """Take out, in place, what :func:`insert_attention` put in; the model is as it was before.

    Args:
        after: the layers to take it from, named as in :func:`insert_attention`; None = all.

    Raises:
        ValueError: no such layer, or one without attention.
    """
    if after is None:
        chosen = list(model.modules())
    else:
        names = find_layers(model, after, besides=CHILD)
        chosen = [model.get_submodule(name) for name in names]
        without = [n for n, layer in zip(names, chosen, strict=True) if CHILD not in layer._modules]
        if without:
            raise ValueError(f"there is no attention after {', '.join(map(repr, without))}")
    for layer in chosen:
        _take_out(layer)
    for module in model.modules():
        Upkeep.forget(module)
    return model


def _take_out(layer: nn.Module) -> None:
    layer._modules.pop(CHILD, None)
    for key, hook in list(layer._forward_hooks.items()):
        if hook is attend:
            del layer._forward_hooks[key]


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(of the inserted blocks, all others): for optimisers that treat what is new differently."""
    new: list[nn.Parameter] = []
    old: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (new if CHILD in name.split(".") else old).append(parameter)
    return new, old


def _dimensions(block: Callable[[int], nn.Module]) -> int:
    """Of the maps that a block of ours takes; 2 for what others make."""
    while isinstance(block, partial):
        block = block.func
    owner: Any = getattr(block, "__self__", block)  # of SelfAttention3d.unet
    ours = isinstance(owner, type) and issubclass(owner, MapAttention)
    return owner.dimensions if ours else 2


def _zeros_for(model: nn.Module, dimensions: int) -> Tensor:
    kind: Any = CONVOLUTIONS[dimensions]
    first = next((m for m in model.modules() if isinstance(m, kind)), None)
    if first is None:
        raise ValueError(
            f"{type(model).__name__} has no convolution ({kind.__name__}) to tell the channels of "
            "its input; give example= an input"
        )
    return first.weight.new_zeros(1, first.in_channels, *_SIZES[dimensions])
