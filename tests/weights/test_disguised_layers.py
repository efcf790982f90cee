"""Every layer of every source in every disguise: equal outputs, or an error that names the layer.

A disguise is what other tools do to a layer so that its weights are not all that counts: adapters,
norms, pruning, hooks, quantisation, code of one's own.
"""

import warnings

import pytest
import torch
from oracles import fill
from test_sagan_blocks import BigGANAttention, SelfAttn
from test_timm import timm_vit
from test_torchvision import torchvision_vit
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from cvattn.core import Decoder, Encoder, MultiHeadAttention
from cvattn.testing.subject import copy_of
from cvattn.weights import (
    from_biggan,
    from_self_attn,
    from_timm,
    from_torch,
    from_torchvision,
    to_torch,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(spectral|weight)_norm.*deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning"),
]


class Adapter(nn.Module):
    """Around a layer, and as it to whoever reads its attributes, as adapters of other libraries."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)

    def forward(self, *given, **terms):
        return changed(self.base_layer(*given, **terms))


class Shell(nn.Module):
    """Around a layer, showing nothing of it."""

    def __init__(self, layer):
        super().__init__()
        self.inside = layer

    def forward(self, *given, **terms):
        return changed(self.inside(*given, **terms))


class Own(nn.Parameter):
    """A parameter that is more than its numbers, as those of quantised and sharded layers."""


def changed(output):
    if isinstance(output, tuple):
        return (changed(output[0]), *output[1:])
    return output * 1.5 + 0.25


def subclass(layer):
    kind = type(layer)
    forward = kind.forward
    layer.__class__ = type(
        f"My{kind.__name__}",
        (kind,),
        {"forward": lambda self, *given, **terms: changed(forward(self, *given, **terms))},
    )


def own_forward(layer):
    forward = layer.forward
    layer.forward = lambda *given, **terms: changed(forward(*given, **terms))


def hooked(layer):
    layer.register_forward_hook(lambda _, given, output: changed(output))


def pre_hooked(layer):
    layer.register_forward_pre_hook(lambda _, given: (given[0] * 0.5, *given[1:]))


def weighted(disguise):
    """Only for layers that have a matrix of weights."""

    def of(layer):
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.ndim < 2:
            raise NotImplementedError
        return disguise(layer)

    return of


@weighted
def computed(layer):
    weight = layer.weight.detach() * 1.5
    del layer.weight
    layer.weight = weight


@weighted
def other_parameter(layer):
    layer.weight = Own(layer.weight.detach())


def steps(layer):
    if type(layer) is not nn.Conv2d or layer.kernel_size == (1, 1):
        raise NotImplementedError
    layer.padding = (4, 4)


IN_PLACE = {
    "a class of one's own": subclass,
    "a forward of its own": own_forward,
    "a forward hook": hooked,
    "a forward pre-hook": pre_hooked,
    "spectral norm": weighted(parametrizations.spectral_norm),
    "weight norm": weighted(parametrizations.weight_norm),
    "the older spectral norm": weighted(spectral_norm),
    "the older weight norm": weighted(weight_norm),
    "pruning": weighted(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
    "a weight that is no parameter": computed,
    "a parameter of another class": other_parameter,
    "another geometry": steps,
}
AROUND = {
    "an adapter": Adapter,
    "a shell": Shell,
    "a sequence": lambda layer: nn.Sequential(layer, nn.Tanh()),
    "nothing in its place": lambda layer: nn.Identity(),
}

ENCODER = nn.TransformerEncoderLayer(8, 2, 5, batch_first=True)
DECODER = nn.TransformerDecoderLayer(8, 2, 5, batch_first=True)
TOKENS, MEMORY, IMAGES = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 3, 12, 12)
MAPS = torch.randn(2, 24, 4, 6)


# Options of the sources that say it better than a name.
OPTIONS = {
    "patch_embed": ("embed_layer=",),
    "norm": (
        "embed_norm_layer",
        "scale_attn_norm=",
        "scale_mlp_norm=",
        "norm_layer=",
        "final_norm=",
    ),
    "ls1": ("init_values",),
    "ls2": ("init_values",),
    "norm_pre": ("pre_norm=",),
    "fc_norm": ("fc_norm=",),
    "rope": ("rope_type of",),
    "patch_drop": ("patch_drop_rate",),
    "q_norm": ("(attn.q_norm)",),
    "k_norm": ("(attn.k_norm)",),
    "act": ("act_layer=",),
    "head": ("num_classes=0",),
    "heads": ("representation_size",),
    "ln": ("norm_layer=",),
    "1": ("activation is",),
    "conv_proj": ("conv_stem_configs",),
    "query_conv": ("key_conv.weight is unknown",),
}


SIGLIP = {"global_pool": "map", "class_token": False, "qk_norm": True}


def dinov3():
    from timm.layers import RmsNorm
    from timm.models.eva import Eva

    return Eva(
        img_size=12,
        patch_size=4,
        num_classes=7,
        embed_dim=16,
        depth=1,
        num_heads=2,
        mlp_ratio=2,
        qkv_fused=False,
        swiglu_mlp=True,
        scale_mlp=True,
        norm_layer=RmsNorm,
        init_values=0.3,
        num_reg_tokens=2,
        use_pre_transformer_norm=True,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_rotate_half=True,
        drop_path_rate=0.1,
    )


def from_state(take):
    return lambda module: take(module.state_dict()).train(module.training)


SOURCES = {
    "MultiheadAttention": (
        from_torch,
        lambda: fill(nn.MultiheadAttention(8, 2, batch_first=True)),
        (TOKENS, TOKENS, TOKENS),
    ),
    "TransformerEncoder": (
        from_torch,
        lambda: fill(nn.TransformerEncoder(ENCODER, 1, nn.LayerNorm(8))),
        (TOKENS,),
    ),
    "TransformerDecoder": (
        from_torch,
        lambda: fill(nn.TransformerDecoder(DECODER, 1, nn.LayerNorm(8))),
        (TOKENS, MEMORY),
    ),
    "our attention": (to_torch, lambda: fill(MultiHeadAttention(8, 2)), (TOKENS, TOKENS, TOKENS)),
    "our encoder": (to_torch, lambda: fill(Encoder(8, 2, 5, 1, dropout=0.1)), (TOKENS,)),
    "our decoder": (to_torch, lambda: fill(Decoder(8, 2, 5, 1)), (TOKENS, MEMORY)),
    "timm": (
        from_timm,
        lambda: timm_vit(depth=1, img_size=12, init_values=0.1, drop_path_rate=0.1),
        (IMAGES,),
    ),
    "timm's DINOv3": (from_timm, lambda: fill(dinov3()), (IMAGES,)),
    "timm's SigLIP": (
        from_timm,
        lambda: timm_vit(depth=1, img_size=12, **SIGLIP),
        (IMAGES,),
    ),
    "torchvision": (from_torchvision, lambda: torchvision_vit(num_layers=1), (IMAGES,)),
    "Self_Attn": (from_state(from_self_attn), lambda: fill(SelfAttn(24)), (MAPS,)),
    "BigGAN": (from_state(from_biggan), lambda: fill(BigGANAttention(24)), (MAPS,)),
}
every_source = pytest.mark.parametrize("source", SOURCES)


def output(module, inputs):
    causal = {"is_causal": False} if isinstance(module, Decoder) else {}
    with torch.no_grad():
        found = module(*inputs, **causal)
    return found[0] if isinstance(found, tuple) else found


def disguised(original, name, disguise):
    """A copy of which one layer is disguised; None where that layer cannot be, or then fails."""
    model = copy_of(original)
    try:
        if disguise in IN_PLACE:
            IN_PLACE[disguise](model.get_submodule(name))
        elif name == "":
            return AROUND[disguise](model)
        else:
            model.set_submodule(name, AROUND[disguise](model.get_submodule(name)))
    except NotImplementedError:
        return None
    return model.eval()


@pytest.mark.sweep(40)
@pytest.mark.parametrize("disguise", [*IN_PLACE, *AROUND])
@every_source
def test_equal_or_refused_by_name(source, disguise):
    take, make, inputs = SOURCES[source]
    original = make().eval()
    in_state = not isinstance(original, (SelfAttn, BigGANAttention))
    refused = compared = 0
    for name, _ in original.named_modules():
        model = disguised(original, name, disguise)
        if model is None:
            continue
        try:
            want = output(model, inputs)
        except Exception:  # a layer that cannot stand there
            continue
        try:
            ours = take(model)
        except (ValueError, TypeError) as error:
            if name == "":
                names = ["the module itself", type(model).__name__, "missing"]
            else:
                around, _, own = name.rpartition(".")
                names = [name, f" in {around}", f" in {name}", *OPTIONS.get(own, ())]
            refused += 1
            unnamed = None if any(each in str(error) for each in names) else error
            assert unnamed is None, f"{name!r} is not named"
            continue
        if not in_state and not torch.equal(output(original, inputs), want):
            # A state dict does not show what code does with it.
            assert disguise not in ("spectral norm", "weight norm", "pruning"), name
            continue
        assert not any(p.is_meta for p in ours.parameters()), name
        error = (output(ours, inputs) - want).abs().max()
        assert error <= 1e-4 * want.abs().max(), f"{name!r}: other outputs, without a word"
        compared += 1
    if in_state and disguise != "another geometry" and source != "MultiheadAttention":
        assert refused + compared


@every_source
def test_undisguised_all_are_taken(source):
    take, make, inputs = SOURCES[source]
    model = make().eval()
    ours = take(model)
    want = output(model, inputs)
    assert (output(ours, inputs) - want).abs().max() <= 1e-4 * want.abs().max()


@pytest.mark.parametrize("target", ["qkv", "proj", "fc1", "head"])
def test_lora_of_peft(target):
    """The library itself; merged, it is taken."""
    peft = pytest.importorskip("peft")
    theirs = timm_vit(depth=2, img_size=12).eval()
    wrapped = peft.get_peft_model(theirs, peft.LoraConfig(r=2, target_modules=[target]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    wrapped.eval()
    want = output(wrapped, (IMAGES,))
    with pytest.raises(TypeError, match="got a PeftModel"):
        from_timm(wrapped)
    with pytest.raises(ValueError, match=rf"(proj|{target}) is a peft\..*merge_and_unload\(\)"):
        from_timm(theirs)
    ours = from_timm(wrapped.merge_and_unload())
    assert (output(ours, (IMAGES,)) - want).abs().max() <= 1e-4 * want.abs().max()


def test_quantised_layers():
    theirs = timm_vit(depth=1, img_size=12).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have torchao
        quantised = torch.ao.quantization.quantize_dynamic(theirs, {nn.Linear})
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv is a torch\.ao\.nn\.quantized\."):
        from_timm(quantised)


def test_layers_without_values():
    theirs = nn.TransformerEncoder(ENCODER, 1)
    theirs.layers[0].linear1 = nn.LazyLinear(5)
    with pytest.raises(ValueError, match=r"layers\.0\.linear1 is a .*LazyLinear; expected Linear"):
        from_torch(theirs)
    with torch.device("meta"):
        empty = timm_vit(depth=1)
    with pytest.raises(ValueError, match="the module itself has cls_token on the meta device"):
        from_timm(empty)
    state = {name: tensor.to("meta") for name, tensor in SelfAttn(24).state_dict().items()}
    with pytest.raises(ValueError, match="gamma is on the meta device"):
        from_self_attn(state)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@every_source
def test_a_default_device_changes_nothing(source, device):
    take, make, inputs = SOURCES[source]
    model = make().eval()
    with torch.device(device):
        ours = take(model)
    want = output(model, inputs)
    assert (output(ours, inputs) - want).abs().max() <= 1e-4 * want.abs().max()
