"""Captured weights are those that the pass used, whatever else acts on the model, or it is said."""

import copy

import pytest
import timm
import torch
from oracles import assert_near, fill
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from cvattn.blocks import SelfAttention2d
from cvattn.core import Encoder, MultiHeadAttention
from cvattn.maps import (
    attention_heat,
    attention_modules,
    attention_rollout,
    capture_attention,
)
from cvattn.models import Transformer, VisionTransformer


def timm_vit(**options) -> nn.Module:
    sizes = {"img_size": (12, 20), "patch_size": 4, "embed_dim": 18, "depth": 2, "num_heads": 3}
    torch.manual_seed(3)
    model = timm.models.VisionTransformer(**(sizes | options), num_classes=5)
    return fill(model).double().eval()


def refused(message):
    return pytest.raises(ValueError, match=message)


IMAGES = torch.randn(2, 3, 12, 20, dtype=torch.float64)


def unfused(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What timm's own unfused attention multiplies the values with."""
    seen, handles = {}, []
    for name, block in attention_modules(model).items():
        block.fused_attn = False
        handles.append(
            block.attn_drop.register_forward_hook(
                lambda _, args, __, name=name: seen.update({name: args[0].detach()})
            )
        )
    model(images)
    for handle in handles:
        handle.remove()
    for block in attention_modules(model).values():
        block.fused_attn = True
    return seen


def lora(model):
    peft = pytest.importorskip("peft")

    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["qkv"]), model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    return model.double()


class Scaled(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return 1.5 * self.layer(x) + 0.1


def each(change):
    def on(model):
        for block in attention_modules(model).values():
            change(block)
        return model

    return on


CHANGED = {
    "LoRA": lora,
    "a wrapper": each(lambda block: setattr(block, "qkv", Scaled(block.qkv))),
    "spectral norm": each(lambda block: parametrizations.spectral_norm(block.qkv)),
    "pruning": each(lambda block: prune.l1_unstructured(block.qkv, "weight", 0.6)),
    "a hook": each(lambda block: block.qkv.register_forward_hook(lambda _, x, y: y * 1.5)),
    "norms of its own": each(lambda block: setattr(block, "q_norm", Scaled(nn.Identity()))),
    "one norm for both": each(lambda block: setattr(block, "k_norm", block.q_norm)),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED.keys())
def test_of_timm_the_weights_that_were_used(change):
    plain = timm_vit()
    model = change(copy.deepcopy(plain)).eval()
    want = unfused(model, IMAGES)
    assert list(want) == ["blocks.0.attn", "blocks.1.attn"]
    before = model(IMAGES)
    with capture_attention(model) as maps:
        assert torch.equal(model(IMAGES), before)
    if change is not CHANGED["one norm for both"]:
        name = "blocks.0.attn"
        assert (want[name] - unfused(plain, IMAGES)[name]).abs().max() > 0.05
    for name, weights in want.items():
        assert_near(maps[name], weights)


def test_of_timm_another_scale():
    model = timm_vit()
    block = model.blocks[0].attn
    block.fused_attn, block.scale = False, 0.07
    seen = []
    block.attn_drop.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    with capture_attention(model) as maps:
        model(IMAGES)
    assert_near(maps["blocks.0.attn"], seen[0])


def test_a_forward_that_is_not_known_is_refused():
    class Mine(MultiHeadAttention):
        def forward(self, x):
            return self.out_proj(self.v_proj(x))

    with refused("Mine has a forward of its own"), capture_attention(model := Mine(6, 2)):
        model(torch.randn(2, 3, 6))

    class More(MultiHeadAttention):
        def forward(self, x, **terms):
            return super().forward(x, **terms) + 1

    with capture_attention(model := More(6, 2)) as maps:
        model(torch.randn(2, 3, 6))
    assert maps[""].shape == (2, 2, 3, 3)


class Checkpointed(nn.Module):
    def __init__(self, inner, reentrant):
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x):
        if self.reentrant is None:
            return self.inner(x)
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


def token_stack():
    return fill(Encoder(6, 2, 7, 2)).double(), torch.randn(2, 5, 6, dtype=torch.float64)


def map_stack():
    layers = [
        nn.Conv2d(3, 8, 3),
        SelfAttention2d.biggan(8, spectral_norm=False),
        nn.Tanh(),
        SelfAttention2d(8),
    ]
    model = nn.Sequential(*layers).double()
    for block in attention_modules(model).values():
        nn.init.constant_(block.gamma, 0.7)
    return model, torch.randn(2, 3, 7, 9, dtype=torch.float64)


def timm_blocks():
    return timm_vit().blocks, torch.randn(2, 16, 18, dtype=torch.float64)


@pytest.mark.parametrize("backward", ["inside", "after"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("build", [token_stack, map_stack, timm_blocks])
def test_activation_checkpointing(build, reentrant, backward):
    inner, x = build()
    plain = Checkpointed(copy.deepcopy(inner), None)
    model = Checkpointed(inner, reentrant)
    plain.train()
    model.train()

    def run(model, leave=lambda: None):
        given = x.clone().requires_grad_()
        output = model(given)
        if backward == "after":
            leave()
        output.square().sum().backward()
        return [given.grad, *(p.grad for p in model.parameters())]

    with capture_attention(plain) as want:
        slopes = run(plain)
    captured = capture_attention(model)
    maps = captured.__enter__()
    found = run(model, lambda: captured.__exit__(None, None, None))
    if backward == "inside":
        captured.__exit__(None, None, None)
    assert maps.keys() == want.keys()
    assert maps
    for name in want:
        assert torch.equal(maps[name], want[name])
        assert len(maps.runs[name]) == 1
    for ours, theirs in zip(found, slopes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("build", [token_stack, map_stack, timm_blocks])
def test_gradients_of_weights_reach_the_parameters(build):
    model, x = build()
    model.eval()
    first = next(iter(attention_modules(model)))
    block = model.get_submodule(first)
    layer = getattr(block, "q_proj", getattr(block, "query", getattr(block, "qkv", None)))
    weight = next(layer.parameters())
    with capture_attention(model, detach=False) as maps:
        model(x)
    (slope,) = torch.autograd.grad((maps[first] ** 2)[:, :, 2:].sum(), weight)

    def loss():
        with torch.no_grad(), capture_attention(model) as maps:
            model(x)
        return (maps[first] ** 2)[:, :, 2:].sum()

    along, step = torch.randn_like(weight), 1e-6
    with torch.no_grad():
        weight += step * along
        above = loss()
        weight -= 2 * step * along
        below = loss()
    assert slope.abs().max() > 1e-4
    want = (above - below) / (2 * step)
    assert abs((slope * along).sum() - want) < 1e-5 * abs(want) + 1e-9


def test_gradients_of_weights_under_checkpointing():
    inner, x = token_stack()
    weight = inner.layers[0].self_attn.q_proj.weight
    slopes = []
    for reentrant in (None, False):
        model = Checkpointed(inner, reentrant)
        with capture_attention(model, detach=False) as maps:
            output = model(x)
            total = output.sum() + sum((m**2).sum() for m in maps.values())
            slopes += torch.autograd.grad(total, weight)
        assert all(len(runs) == 1 for runs in maps.runs.values())
    assert_near(slopes[1], slopes[0])
    reentrant = Checkpointed(inner, True)
    message = r"detach=False .*use_reentrant=True"
    with refused(message), capture_attention(reentrant, detach=False):
        reentrant(x.clone().requires_grad_())
    with refused(message), torch.no_grad(), capture_attention(inner, detach=False):
        inner(x)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = MultiHeadAttention(6, 2)

    def forward(self, x):
        return self.block(self.block(x))


def test_a_block_that_runs_twice():
    model, x = Twice(), torch.randn(2, 3, 6)
    with capture_attention(model) as maps:
        with pytest.warns(UserWarning, match="block runs more than once in a pass"):
            model(torch.randn(4, 5, 6))
        output = model(x)  # said once is enough
    first, second = maps.runs["block"]
    inner, weights = model.block(x, need_weights=True)
    assert torch.equal(first, weights)
    assert torch.equal(second, model.block(inner, need_weights=True)[1])
    assert torch.equal(maps["block"], second)
    assert torch.equal(model(x), output)
    with capture_attention(model) as maps:  # by itself: each call is a pass
        model.block(x)
        model.block(x)
    assert len(maps.runs["block"]) == 1


def test_after_a_pass_that_failed():
    model = nn.Sequential(MultiHeadAttention(6, 2), nn.Linear(5, 6))
    with capture_attention(model) as maps:
        with pytest.raises(RuntimeError):
            model(torch.randn(2, 3, 6))
        model[1] = nn.Identity()
        model(torch.randn(4, 3, 6))
    assert len(maps.runs["0"]) == 1
    assert maps["0"].shape == (4, 2, 3, 3)


def test_names_one_or_several_or_another():
    model = Encoder(6, 2, 7, 2)
    model.last = model.layers[1]
    x = torch.randn(2, 3, 6)
    with capture_attention(model, "layers.1.self_attn") as one:
        model(x)
    assert list(one) == ["layers.1.self_attn"]
    with capture_attention(model, ["last.self_attn", "layers.1.self_attn"]) as both:
        model(x)
    assert torch.equal(both["last.self_attn"], one["layers.1.self_attn"])
    with capture_attention(model) as maps:
        model(x)
    assert list(maps) == ["layers.0.self_attn", "layers.1.self_attn"]
    for name, message in (
        ("layers.1.self_att", r"no module '.*'; did you mean layers\.1\.self_attn"),
        ("layers.0", r"seen in layers\.0; it was in layers\.0\.self_attn"),
    ):
        with refused(message), capture_attention(model, name):
            model(x)


def test_a_model_that_torch_compile_wrapped():
    torch._dynamo.reset()
    inner, x = Encoder(6, 2, 7, 1).eval(), torch.randn(2, 3, 6)
    model = torch.compile(inner, backend="aot_eager")
    model(x)
    for layers in (None, "layers.0.self_attn"):
        with capture_attention(model, layers) as maps:
            model(x)
        with capture_attention(inner) as want:
            inner(x)
        assert list(maps) == ["layers.0.self_attn"]
        assert torch.equal(maps["layers.0.self_attn"], want["layers.0.self_attn"])
        assert len(maps.runs["layers.0.self_attn"]) == 1


class SelfAttentionOfSomeKernel(nn.Module):
    """Which calls no function of torch that is known."""

    def forward(self, x):
        return x + torch.einsum("bnd,bmd->bnm", x, x).exp() @ x


def test_attention_that_shows_nothing_is_named():
    x, theirs = torch.randn(2, 3, 6), SelfAttentionOfSomeKernel()
    message = r"showed no attention.*; the module itself \(SelfAttentionOfSomeKernel\) showed none"
    with refused(message), capture_attention(theirs):
        theirs(x)
    both = nn.Sequential(Encoder(6, 2, 7, 1), theirs).eval()
    both.unused = SelfAttentionOfSomeKernel()
    message = r"showed no weights: 1 \(SelfAttentionOfSomeKernel\)$"
    with pytest.warns(UserWarning, match=message), capture_attention(both) as maps:
        both[1](both[0](x))
    assert list(maps) == ["0.layers.0.self_attn"]
    with capture_attention(both, "0.layers.0.self_attn"):  # it was said what is wanted
        both[1](both[0](x))


@pytest.mark.parametrize("size", [(12, 20), (16, 8), (20, 20)])
def test_heat_of_images_of_any_size(size):
    """timm's ViTs with dynamic_img_size know their grid from the images alone."""
    model = timm_vit(dynamic_img_size=True)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    h, w = size[0] // 4, size[1] // 4
    want = unfused(model, images)
    heat = attention_heat(model, images)
    assert list(heat) == list(want)
    with capture_attention(model) as maps:
        model(images)
    for name, weights in want.items():
        assert heat[name].shape == (2, 3, *size)
        assert maps.layout[name].query_grid == (h, w)
        assert_near(maps.on_grid(name)[:, :, 0], weights[:, :, 0, 1:].unflatten(-1, (h, w)))
    (one,) = attention_heat(model, images, at=(size[0] - 1, size[1] - 1), layers="blocks.1.attn")
    assert one == "blocks.1.attn"


def test_heat_is_never_nothing():
    images = torch.randn(1, 3, 6, 10)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.vit = VisionTransformer(
                3, image_size=(6, 10), patch_size=2, embed_dim=4, num_heads=2, num_layers=1
            )
            self.more = MultiHeadAttention(4, 2)
            self.never = MultiHeadAttention(4, 2)

        def forward(self, images, vit=True):
            out = self.more(images.flatten(2).mT[:, :7] @ torch.ones(3, 4))
            return (self.vit(images) if vit else 0) + out.sum()

    model = Tokens().eval()
    found = attention_heat(model, images, at=(0, 0))
    assert list(found) == ["vit.encoder.layers.0.self_attn"]
    for layers, message in (
        ("more", "more: the tokens of these images lie on no grid"),
        (["more", "vit.encoder.layers.0.self_attn"], "more: the tokens"),
        ("never", r"no attention was seen in never; it was in .*self_attn"),
    ):
        with pytest.raises(ValueError, match=message):
            attention_heat(model, images, at=(0, 0), layers=layers)
    with pytest.raises(ValueError, match="no class token"):
        attention_heat(model, images)
    only = nn.Sequential(nn.Flatten(2), nn.Linear(60, 4), MultiHeadAttention(4, 2))
    with pytest.raises(ValueError, match="2: the tokens of these images lie on no grid"):
        attention_heat(only, images, at=(0, 0))


def test_rollout_of_cross_attention_is_refused():
    model = Transformer(13, 11, embed_dim=12, num_heads=3, ffn_dim=20, num_decoder_layers=2).eval()
    tokens = torch.tensor([[4, 5, 6], [9, 4, 3]])
    with capture_attention(model) as maps:
        model(tokens, tokens)  # as many keys as queries in every layer
    assert maps.cross == {f"decoder.layers.{i}.cross_attn" for i in (0, 1)}
    with pytest.raises(ValueError, match=r"decoder\.layers\.0\.cross_attn.*of one stack"):
        attention_rollout(maps)
    names = [name for name in maps if name.startswith("decoder") and name not in maps.cross]
    with capture_attention(model, names) as own:
        model(tokens, tokens)
    assert attention_rollout(own).shape == (2, 3, 3)
