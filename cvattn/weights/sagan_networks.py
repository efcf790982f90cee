"""State dicts of whole GANs with attention, a generator's and a discriminator's, into a SAGAN.

Both codes have the networks that :class:`cvattn.models.SAGAN` has for images of 32x32. They differ
in names, in where attention sits, in how a class's gain is stored and in where they keep spectral
normalisation.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cvattn.models import SAGAN
from cvattn.weights.sagan_blocks import BIGGAN
from cvattn.weights.state_dicts import take

# What a layer has under a spectral norm, by the second of it: torch's older one, BigGAN-PyTorch's
# own, mimicry's own.
_SPECTRAL = {
    "weight_u": ("weight_orig", "weight_u", "weight_v"),
    "u0": ("weight", "u0", "sv0"),
    "sn_u": ("weight", "sn_u", "sn_sigma"),
}
_BASE = 4  # side of the map that theirs begin with
_ORIGINAL = "parametrizations.weight.original"


def from_biggan_gan(generator: Mapping[str, Tensor], discriminator: Mapping[str, Tensor]) -> SAGAN:
    """A :class:`cvattn.models.SAGAN` from the weights of BigGAN-PyTorch's two networks.

    Those of Brock et al.'s released code in the form of SAGAN, for 32x32: the noise enters once
    (``hier=False``), each norm has a gain and a bias of each class (``G_shared=False``) and stored
    moments, its epsilon is 1e-5; spectral norms in the generator, or none (``G_param``). ``G_attn``
    is 16, 8 or 0. ``D_attn=16`` puts a block behind each of the discriminator's four, since that
    code takes all of their maps for 16x16: ours then has them there, too.

    Args:
        generator, discriminator: their state dicts; with ``module.`` before every name, too.

    Returns:
        A new network in train mode, in the dtype and on the device of the weights. In eval mode
        both networks give what theirs do: images in [-1, 1], normalised with 0.5, and scores.
        (Theirs takes one step of the power iteration even in eval mode; it is taken here.)

    Raises:
        ValueError: keys that are missing or unknown, by name, with near matches; networks of
            another form, tensors that do not fit each other.
    """
    generator, discriminator = _unwrapped(generator), _unwrapped(discriminator)
    if "shared.weight" in generator:
        raise ValueError(
            "shared.weight: the generator's norms share one embedding (G_shared=True); expected a "
            "gain and a bias of each class in each norm (G_shared=False)"
        )
    layers = {"linear": "linear", "head": "output_layer.2"}
    copies: dict[str, str] = {}
    for number in (1, 2, 3):
        ours, theirs = f"block{number}", f"blocks.{number - 1}.0"
        layers |= _convolutions(ours, theirs, "conv1", "conv2", "conv_sc")
        layers |= _attention(generator, f"attention{number}", f"blocks.{number - 1}.1")
        for norm, name in (("norm1", "bn1"), ("norm2", "bn2")):
            copies |= _moments(f"{ours}.{norm}.norm", f"{theirs}.{name}", "stored_")
            for part in ("gain", "bias"):
                copies[f"{ours}.{norm}.{part}.weight"] = f"{theirs}.{name}.{part}.weight"
    copies |= _moments("norm", "output_layer.0", "stored_")
    copies |= {"norm.weight": "output_layer.0.gain", "norm.bias": "output_layer.0.bias"}
    made = _converted(generator, layers, copies, "linear")

    layers = {"linear": "linear", "label": "embed"}
    for number in (1, 2, 3, 4):
        names = ("conv1", "conv2", "conv_sc")[: 3 if number < 3 else 2]
        layers |= _convolutions(f"block{number}", f"blocks.{number - 1}.0", *names)
        layers |= _attention(discriminator, f"attention{number}", f"blocks.{number - 1}.1")
    return _network(made, _converted(discriminator, layers, {}, "linear"))


def from_mimicry(generator: Mapping[str, Tensor], discriminator: Mapping[str, Tensor]) -> SAGAN:
    """A :class:`cvattn.models.SAGAN` from the weights of mimicry's two networks.

    ``SAGANGenerator32`` and ``SAGANDiscriminator32`` of Lee and Town, "Mimicry: Towards the
    Reproducibility of GAN Research" (2020): maps are doubled bilinearly, attention is on 16x16 in
    the generator and on 8x8 in the discriminator, whose ReLUs work in place, so that shortcuts
    begin behind them. A class's gain is stored as it is there, and without the 1 here. Networks
    without classes, and those of other sizes, have other names and are refused by these.

    Args:
        generator, discriminator: their state dicts, what their checkpoints have under
            "model_state_dict"; spectral norms are torch's (``weight_orig``) or that code's own
            (``sn_u``), of which a step is taken here.

    Result and errors as in :func:`from_biggan_gan`.
    """
    generator, discriminator = _unwrapped(generator), _unwrapped(discriminator)
    layers = {"linear": "l1", "head": "c5"}
    copies: dict[str, str] = {}
    layers |= _attention(generator, "attention2", "attn_block", needed=True)
    for number in (1, 2, 3):
        ours, theirs = f"block{number}", f"block{number + 1}"
        layers |= _convolutions(ours, theirs, "c1", "c2", "c_sc")
        for norm, name in (("norm1", "b1"), ("norm2", "b2")):
            copies |= _moments(f"{ours}.{norm}.norm", f"{theirs}.{name}.bn", "running_")
            copies[f"{ours}.{norm}.both"] = f"{theirs}.{name}.embed.weight"
    copies |= _moments("norm", "b5", "running_")
    copies |= {f"norm.{part}": f"b5.{part}" for part in ("weight", "bias")}
    made = _converted(generator, layers, copies, "l1")
    for name in [each for each in made if each.endswith(".both")]:
        gain, bias = made.pop(name).chunk(2, dim=1)
        norm = name.removesuffix("both")
        made |= {f"{norm}gain.weight": gain - 1, f"{norm}bias.weight": bias}

    layers = {"linear": "l5", "label": "l_y"}
    layers |= _attention(discriminator, "attention2", "attn_block", needed=True)
    for number in (1, 2, 3, 4):
        names = ("c1", "c2", "c_sc")[: 3 if number < 3 else 2]
        layers |= _convolutions(f"block{number}", f"block{number}", *names)
    judge = _converted(discriminator, layers, {}, "l5")
    return _network(made, judge, upsampling="bilinear", rectified_shortcuts=True)


def _unwrapped(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    wrapped = all(key.startswith("module.") for key in state_dict)
    return {key.removeprefix("module." if wrapped else ""): v for key, v in state_dict.items()}


def _convolutions(ours: str, theirs: str, *names: str) -> dict[str, str]:
    own = ("conv1", "conv2", "shortcut")
    return {f"{ours}.{each}": f"{theirs}.{name}" for each, name in zip(own, names, strict=False)}


def _attention(
    state_dict: Mapping[str, Tensor], ours: str, theirs: str, *, needed: bool = False
) -> dict[str, str]:
    """The layers of an attention block, and its gamma: none if it is not there."""
    if not needed and not any(key.startswith(f"{theirs}.") for key in state_dict):
        return {}
    layers = {f"{ours}.{each}": f"{theirs}.{name}" for each, name in BIGGAN.items()}
    return layers | {f"{ours}.gamma": f"{theirs}.gamma"}


def _moments(ours: str, theirs: str, prefix: str) -> dict[str, str]:
    moments = {f"{ours}.running_{each}": f"{theirs}.{prefix}{each}" for each in ("mean", "var")}
    if prefix == "running_":  # torch's own norm counts too
        moments[f"{ours}.num_batches_tracked"] = f"{theirs}.num_batches_tracked"
    return moments


def _converted(
    state_dict: Mapping[str, Tensor],
    layers: Mapping[str, str],
    copies: Mapping[str, str],
    first: str,
) -> dict[str, Tensor]:
    """One network's state with our names.

    Args:
        layers: ours -> theirs, those with a weight, under a spectral norm if ``first`` is; gammas.
        copies: keys, ours -> theirs.
        first: a layer of theirs.
    """
    found = [parts for mark, parts in _SPECTRAL.items() if f"{first}.{mark}" in state_dict]
    parts = found[0] if found else ("weight",)
    keys: dict[str, list[str]] = {}
    for ours, theirs in layers.items():
        if ours.endswith(".gamma"):
            keys[theirs] = [theirs]
            continue
        bias = [] if ".attention" in f".{ours}" or ours == "label" else ["bias"]
        keys[theirs] = [f"{theirs}.{part}" for part in (*parts, *bias)]
    wanted = [key for each in keys.values() for key in each]
    tensors = take(state_dict, "", [*wanted, *copies.values()])
    made = {ours: tensors[theirs] for ours, theirs in copies.items()}
    for ours, theirs in layers.items():
        own = [tensors[key] for key in keys[theirs]]
        if ours.endswith(".gamma"):
            made[ours] = own[0].reshape(-1)
            continue
        if len(own) > len(parts):
            made[f"{ours}.bias"] = own[-1]
        if not found:
            made[f"{ours}.weight"] = own[0]
            continue
        u, v = own[1].flatten(), own[2].flatten()
        if parts[0] == "weight":  # a step from what was kept, which is u alone
            matrix = own[0].flatten(1)
            v = F.normalize(u @ matrix, dim=0)
            u = F.normalize(matrix @ v, dim=0)
        made[f"{ours}.{_ORIGINAL}"] = own[0]
        made |= {
            f"{ours}.parametrizations.weight.0._u": u,
            f"{ours}.parametrizations.weight.0._v": v,
        }
    return made


def _network(
    generator: Mapping[str, Tensor], discriminator: Mapping[str, Tensor], **form: Any
) -> SAGAN:
    """The network that these states of ours belong to, filled with them."""
    spectral = [f"linear.{_ORIGINAL}" in each for each in (generator, discriminator)]

    def weight(state: Mapping[str, Tensor], layer: str) -> Tensor:
        plain = f"{layer}.weight"
        return state[plain] if plain in state else state[f"{layer}.{_ORIGINAL}"]

    linear, narrow = weight(generator, "linear"), weight(discriminator, "linear")
    places = [
        [number for number in (1, 2, 3, 4) if f"attention{number}.gamma" in each]
        for each in (generator, discriminator)
    ]
    if places[0] not in ([], [1], [2]) or (places[1] and not places[0]):
        raise ValueError(
            f"attention behind the blocks {places[0]} of the generator and {places[1]} of the "
            "discriminator; expected one block in the generator, on maps of 8x8 or 16x16, or none "
            "in both networks"
        )
    arguments: dict[str, Any] = {
        "in_channels": weight(generator, "head").shape[0],
        "image_size": 8 * _BASE,
        "classes": weight(discriminator, "label").shape[0],
        "noise_dim": linear.shape[1],
        "width": linear.shape[0] // _BASE**2,
        "discriminator_width": narrow.shape[1],
        "attention": "biggan" if places[0] else "none",
        "attention_at": _BASE << (places[0] or [2])[0],
        "discriminator_attention_after": places[1],
        "spectral_norm_generator": spectral[0],
        "spectral_norm_discriminator": spectral[1],
        "spectral_norm_labels": False,
        **form,
    }
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # what is drawn is thrown away
        network = SAGAN(**arguments).to(device=linear.device, dtype=linear.dtype)
    # Which is not in every state: how images are normalised, and how many batches norms have seen.
    state = {
        key: value
        for key, value in network.state_dict().items()
        if key in ("mean", "std") or key.endswith("num_batches_tracked")
    }
    state |= {f"generator.{key}": value for key, value in generator.items()}
    state |= {f"discriminator.{key}": value for key, value in discriminator.items()}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the tensors do not fit each other: {error}") from error
    return network
