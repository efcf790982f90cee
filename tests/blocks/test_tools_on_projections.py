"""Adapters, pruning, norms, quantisation and hooks act on each of the block's convolutions.

The oracle is the same block with its convolutions inside a module that can only be called.
"""

import warnings

import pytest
import torch
from oracles import assert_near
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from cvattn.blocks import SelfAttention2d
from cvattn.blocks.plain_layers import is_plain
from cvattn.testing.subject import copy_of

NAMES = ("query", "key", "value", "proj")


def block() -> SelfAttention2d:
    made = SelfAttention2d.biggan(24, spectral_norm=False).double()
    for layer in (made.query, made.key):
        layer.weight.data.mul_(3.0)  # spread scores
    made.gamma.data.fill_(0.7)
    return made


class Called(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def by_calls(given: SelfAttention2d) -> SelfAttention2d:
    """A copy that cannot but call its convolutions."""
    other = copy_of(given)
    for name in NAMES:
        setattr(other, name, Called(getattr(other, name)))
    return other


def lora(made: SelfAttention2d) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=list(NAMES), init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.inject_adapter_in_model(config, made)
    made.double()


def pruned(made: SelfAttention2d) -> None:
    for name in NAMES:
        prune.l1_unstructured(getattr(made, name), "weight", amount=0.5)


def older(norm: str):
    def act(made: SelfAttention2d) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # both are deprecated and in use
            for name in NAMES:
                getattr(nn.utils, norm)(getattr(made, name))

    return act


def newer(norm: str):
    def act(made: SelfAttention2d) -> None:
        for name in NAMES:
            getattr(parametrizations, norm)(getattr(made, name))

    return act


def hooked(made: SelfAttention2d) -> None:
    for name in NAMES:
        getattr(made, name).register_forward_hook(_halved)


def _halved(layer: nn.Module, args: object, output: Tensor) -> Tensor:
    return output / 2


def hooked_before(made: SelfAttention2d) -> None:
    for name in NAMES:
        getattr(made, name).register_forward_pre_hook(_negative)


def _negative(layer: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (-args[0],)


def own_forward(made: SelfAttention2d) -> None:
    """As offloading does it: the instance's forward is replaced."""
    for name in NAMES:
        layer = getattr(made, name)
        layer.forward = _Third(layer)


class _Third:
    def __init__(self, layer: nn.Conv2d) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return nn.Conv2d.forward(self.layer, x) / 3


def subclass(made: SelfAttention2d) -> None:
    for name in NAMES:
        getattr(made, name).__class__ = _Doubled


class _Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


TOOLS = {
    "lora": lora,
    "prune": pruned,
    "spectral_norm": older("spectral_norm"),
    "weight_norm": older("weight_norm"),
    "parametrized spectral_norm": newer("spectral_norm"),
    "parametrized weight_norm": newer("weight_norm"),
    "forward hook": hooked,
    "forward pre-hook": hooked_before,
    "own forward": own_forward,
    "subclass": subclass,
}


@pytest.mark.parametrize("tool", TOOLS)
def test_tools_act_on_every_convolution(tool):
    ours = block()
    x = torch.randn(2, 24, 3, 5, dtype=torch.float64)
    plain = ours(x)
    TOOLS[tool](ours)
    ours.eval()
    theirs = by_calls(ours)
    got, want = ours(x), theirs(x)
    assert_near(got, want)
    if "weight_norm" not in tool:  # which only writes a weight in another way
        assert (got - plain).abs().max() > 1e-3
    ours.train()
    theirs.train()
    seen = torch.randn_like(x)
    for _ in range(3):  # the second step fails where a stale graph is used
        for made in (ours, theirs):
            made.zero_grad()
            (made(x) * seen).sum().backward()
        pairs = list(zip(ours.named_parameters(), theirs.parameters(), strict=True))
        assert pairs
        for (name, one), other in pairs:
            if not one.requires_grad:
                continue
            assert one.grad is not None, name
            if name != "key.bias":  # it moves all scores alike: 0 by nature
                assert_near(one.grad, other.grad)
            if "proj" in name:
                assert one.grad.abs().max() > 0, name
        for made in (ours, theirs):
            with torch.no_grad():
                for parameter in made.parameters():
                    if (
                        parameter.grad is not None
                    ):  # small steps: a softmax of 0 and 1 learns nothing
                        parameter -= 0.01 * parameter.grad / (1 + parameter.grad.abs().max())


def test_lora_merges_into_what_it_was():
    ours = block().eval()
    x = torch.randn(2, 24, 3, 5, dtype=torch.float64)
    lora(ours)
    ours.eval()
    want = ours(x)
    for name in NAMES:
        wrapper = getattr(ours, name)
        wrapper.merge()
        setattr(ours, name, wrapper.get_base_layer())
    assert is_plain(ours.proj)
    assert_near(ours(x), want)


@pytest.mark.parametrize("make", [older("spectral_norm"), newer("spectral_norm")])
def test_the_weight_in_use_is_the_normalised_one(make):
    ours = block()
    # Its two largest singular values apart, or power iteration takes its time.
    left, values, right = torch.linalg.svd(9.0 * ours.proj.weight.data.flatten(1), False)
    values[0] *= 1.5
    ours.proj.weight.data = (left * values @ right).view_as(ours.proj.weight)
    make(ours)
    seen = []
    ours.proj.register_forward_hook(lambda layer, _, __: seen.append(layer.weight.detach()))
    for _ in range(100):
        ours(torch.randn(1, 24, 3, 5, dtype=torch.float64))
    assert torch.linalg.svdvals(seen[-1].flatten(1))[0].item() == pytest.approx(1.0, abs=1e-3)


def test_hooks_of_all_modules_and_of_gradients_see_the_projection():
    ours, seen = block(), []
    handle = nn.modules.module.register_module_forward_hook(lambda layer, _, __: seen.append(layer))
    try:
        ours(torch.randn(1, 24, 3, 5, dtype=torch.float64))
    finally:
        handle.remove()
    assert all(any(layer is getattr(ours, name) for layer in seen) for name in NAMES)
    gradients = []
    ours.proj.register_full_backward_hook(lambda *args: gradients.append(args))
    ours(torch.randn(1, 24, 3, 5, dtype=torch.float64, requires_grad=True)).sum().backward()
    assert len(gradients) == 1


def test_a_projection_of_other_settings_is_honoured():
    """A low-rank or grouped convolution of the same type in its place."""
    ours = block()
    ours.proj = nn.Conv2d(12, 24, 1, groups=3, padding=0).double()
    x = torch.randn(2, 24, 3, 5, dtype=torch.float64)
    assert is_plain(ours.proj)
    assert_near(ours(x), by_calls(ours)(x))


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quant_min and quant_max:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_static_quantisation_of_the_projection():
    from torch.ao import quantization

    ours = block().float().eval()
    x = torch.randn(2, 24, 7, 5)
    want = ours(x)
    engine = next(e for e in torch.backends.quantized.supported_engines if e != "none")
    before, torch.backends.quantized.engine = torch.backends.quantized.engine, engine
    try:
        ours.proj = quantization.QuantWrapper(ours.proj)
        ours.proj.qconfig = quantization.get_default_qconfig(engine)
        quantization.prepare(ours, inplace=True)
        ours(x)
        quantization.convert(ours, inplace=True)
        assert "QuantizedConv2d" in str(ours.proj.module)
        # Both in this engine: a copy is packed for the one that is set, and they round otherwise.
        got, called = ours(x), by_calls(ours)(x)
    finally:
        torch.backends.quantized.engine = before
    assert not torch.equal(got, want)
    # What differs by rounding may be rounded to the next step, of the input and of the output.
    layer = ours.proj.module
    step = layer.scale + ours.proj.quant.scale.item() * layer.weight().dequantize().abs().max()
    assert (got - called).abs().max() <= step * ours.gamma.abs()


def test_plain_convolutions_are_folded():
    assert is_plain(block().proj)
    assert is_plain(SelfAttention2d.biggan(8).proj)
