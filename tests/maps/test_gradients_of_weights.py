"""maps.gradients: what autograd gives where the weights are there to be differentiated.

The oracle runs the same block with its attention exchanged for products that hold the weights:
projections, masks and what comes behind stay, and the gradient comes from autograd, not from
d output V^T.
"""

import pytest
import torch
from oracles import assert_hides, assert_near, fill, scalar
from torch import Tensor, nn

import cvattn.blocks.cross_attention2d
import cvattn.blocks.self_attention
import cvattn.core.multi_head
from cvattn.blocks import (
    AxialAttention2d,
    CrissCrossAttention2d,
    CrossAttention2d,
    NeighborhoodAttention2d,
    SelfAttention1d,
    SelfAttention2d,
    SelfAttention3d,
    WindowAttention2d,
)
from cvattn.core import MultiHeadAttention
from cvattn.core.local_masks import (
    axis_mask_2d,
    criss_cross_mask_2d,
    neighborhood_mask_2d,
    window_mask_2d,
)
from cvattn.maps import attention_entropy, attention_modules, capture_attention
from cvattn.models import VisionTransformer

pytestmark = pytest.mark.usefixtures("float64")
ROOMS = (cvattn.blocks.self_attention, cvattn.blocks.cross_attention2d, cvattn.core.multi_head)
H, W = 5, 7


class Held:
    """Attention by products, whose weights stay to be differentiated, call by call."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def __call__(
        self, q, k, v, *, attn_mask=None, attn_bias=None, is_causal=False, scale=None, **_
    ):
        scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        if attn_bias is not None:
            scores = scores + attn_bias
        rows, keys = scores.shape[-2:]
        allowed = torch.ones(rows, keys, dtype=torch.bool)
        allowed = allowed.tril(keys - rows) if is_causal else allowed
        allowed = allowed if attn_mask is None else allowed & attn_mask
        powers = (scores - scores.amax(-1, keepdim=True)).exp() * allowed
        total = powers.sum(-1, keepdim=True)
        weights = powers / torch.where(total > 0, total, 1.0)
        if weights.requires_grad:
            weights.retain_grad()
        self.weights.append(weights)
        return weights @ v

    def in_place_of(self, block: nn.Module, visible) -> None:
        """Of a local block, whose own way to attend has no call of ``attention`` for all keys."""

        def attend(q, k, v, mask):
            tokens = (x.flatten(2, 3) for x in (q, k, v))
            allowed = visible if mask is None else visible & mask.flatten(1)[:, None, None]
            attended = self(*tokens, attn_mask=allowed, scale=block.scale)
            return attended.unflatten(2, q.shape[2:4])

        block._attend = attend


def a_map() -> Tensor:
    return torch.randn(2, 6, H, W)


def padding() -> Tensor:
    mask = torch.ones(2, H, W, dtype=torch.bool)
    mask[1, 3:] = mask[0, :, 5:] = False
    return assert_hides(mask)


HEADS = {"qk_channels": 4, "value_channels": 6, "num_heads": 2}
MAPS = {
    "common": (lambda: SelfAttention2d(6), {}),
    "heads and a projection": (lambda: SelfAttention2d(6, **HEADS), {}),
    "pooled keys": (lambda: SelfAttention2d(6, kv_pool=2, **HEADS), {}),
    "biggan": (lambda: SelfAttention2d.biggan(6, spectral_norm=False), {}),
    "a relative bias": (lambda: SelfAttention2d(6, grid=(H, W), **HEADS), {}),
    "unet": (lambda: SelfAttention2d.unet(6, head_dim=3, groups=2), {}),
    "padding": (lambda: SelfAttention2d(6, **HEADS), {"mask": padding()}),
    "windows": (
        lambda: WindowAttention2d(6, window=(2, 3), shift=1, **HEADS),
        {"visible": window_mask_2d(H, W, (2, 3), (1, 1))},
    ),
    "windows with padding": (
        lambda: WindowAttention2d(6, window=3, **HEADS),
        {"visible": window_mask_2d(H, W, (3, 3)), "mask": padding()},
    ),
    "neighbourhoods": (
        lambda: NeighborhoodAttention2d(6, window=3, **HEADS),
        {"visible": neighborhood_mask_2d(H, W, (3, 3))},
    ),
    "criss-cross": (
        lambda: CrissCrossAttention2d(6, **HEADS),
        {"visible": criss_cross_mask_2d(H, W)},
    ),
}


def compare(model: nn.Module, *inputs: Tensor, monkeypatch, rows=None, visible=None, **terms):
    """Gradients by ours and by the oracle, of a score that is not linear in the weights."""
    fill(model).eval()
    with capture_attention(model, rows=rows, detach=False) as maps:
        output = model(*inputs, **terms)
    found = maps.gradients(scalar(output.tanh()))
    held = Held()
    for room in ROOMS:
        monkeypatch.setattr(room, "attention", held)
    for block in attention_modules(model).values():
        if visible is not None:
            held.in_place_of(block, visible)
    again = model(*inputs, **terms)
    assert_near(again, output)
    scalar(again.tanh()).backward()
    assert len(held.weights) == len(maps) == len(found)
    for name, weights in zip(maps, held.weights, strict=True):
        pick = slice(None) if rows is None else rows
        assert_near(maps[name].detach(), weights.detach()[:, :, pick], name)
        assert_near(found[name], weights.grad[:, :, pick], name)
    return found


@pytest.mark.parametrize(("build", "terms"), MAPS.values(), ids=MAPS.keys())
def test_of_blocks_on_maps(build, terms, monkeypatch):
    compare(build(), a_map(), monkeypatch=monkeypatch, **terms)


@pytest.mark.parametrize("terms", [{}, {"mask": padding()}], ids=["whole", "padding"])
def test_of_some_rows(terms, monkeypatch):
    compare(SelfAttention2d(6, kv_pool=2), a_map(), monkeypatch=monkeypatch, rows=[3, 23], **terms)


def test_of_lines_volumes_and_axes(monkeypatch):
    compare(SelfAttention1d(6), torch.randn(2, 6, 11), monkeypatch=monkeypatch)
    compare(SelfAttention3d(6), torch.randn(2, 6, 2, 3, 5), monkeypatch=monkeypatch)
    axial = fill(AxialAttention2d(6, **HEADS))
    x = a_map()
    for block, axis in ((axial.columns, 0), (axial.rows, 1)):
        compare(block, x, monkeypatch=monkeypatch, visible=axis_mask_2d(H, W, axis))


@pytest.mark.parametrize("size", [(3, 8), (8, 3, 2)], ids=["tokens", "a map"])
def test_of_cross_attention_on_maps(size, monkeypatch):
    block = CrossAttention2d(6, context_channels=8, **HEADS)
    compare(block, a_map(), torch.randn(2, *size), monkeypatch=monkeypatch)


def mask(*shape: int) -> Tensor:
    allowed = torch.rand(*shape, generator=torch.Generator().manual_seed(3)) > 0.4
    allowed[..., 2, :] = False  # a query that sees nothing
    return assert_hides(allowed)


TOKENS = {
    "plain": ({}, {}),
    "a mask for each head": ({}, {"attn_mask": mask(2, 3, 5, 5)}),
    "a bias, causal": (
        {},
        {"attn_bias": torch.arange(75.0).view(1, 3, 5, 5).double().sin(), "is_causal": True},
    ),
    "a key of its own": ({"add_bias_kv": True}, {"attn_mask": mask(5, 5)}),
    "a key of zeros": ({"add_zero_attn": True, "add_bias_kv": True}, {}),
    "norms": ({"qk_norm": "rms"}, {}),
}


@pytest.mark.parametrize(("form", "terms"), TOKENS.values(), ids=TOKENS.keys())
def test_of_token_blocks(form, terms, monkeypatch):
    x = torch.randn(2, 5, 6)
    compare(MultiHeadAttention(6, 3, **form), x, monkeypatch=monkeypatch, **terms)


def test_of_cross_attention_of_tokens(monkeypatch):
    block = MultiHeadAttention(6, 3, kdim=4, vdim=7)
    inputs = torch.randn(2, 5, 6), torch.randn(2, 8, 4), torch.randn(2, 8, 7)
    compare(block, *inputs, monkeypatch=monkeypatch, attn_mask=mask(5, 8))


@pytest.mark.parametrize("form", [{"pool": "cls"}, {"pool": "mean", "relative_bias": True}])
def test_of_all_layers_of_a_vit(form, monkeypatch):
    vit = VisionTransformer(
        *(3,),
        image_size=(6, 10),
        patch_size=2,
        embed_dim=6,
        num_heads=3,
        ffn_dim=8,
        num_layers=3,
        num_registers=2,
        **form,
    )
    found = compare(vit, torch.randn(2, 3, 6, 10), monkeypatch=monkeypatch)
    reached = found["encoder.layers.2.self_attn"].abs().amax((0, 1, 3)) > 0
    assert reached[:3].tolist() == (
        [True, False, False] if vit.pool == "cls" else [False] * 2 + [True]
    )
    assert reached[3:].all() == (vit.pool == "mean")


def test_by_finite_differences(monkeypatch):
    """Moved weights, moved score: no derivative of any kind."""
    block, x = fill(SelfAttention2d(6, kv_pool=2, **HEADS)), a_map()
    with capture_attention(block, detach=False) as maps:
        output = block(x)
    (found,) = maps.gradients(scalar(output.tanh())).values()
    along = torch.randn_like(found)

    @torch.no_grad()
    def score(step: float) -> Tensor:
        def moved(q, k, v, **terms):
            held(q, k, v, **terms)
            return (held.weights[-1] + step * along) @ v

        monkeypatch.setattr(cvattn.blocks.self_attention, "attention", moved)
        return scalar(block(x).tanh())

    held = Held()
    want = (score(1e-6) - score(-1e-6)) / 2e-6
    assert abs((found * along).sum() - want) < 1e-6 * abs(want)


def test_a_penalty_of_weights_trains_what_it_should(monkeypatch):
    """Loss and penalty together: every parameter's gradient is the oracle's, q and k's too."""
    block, x = fill(MultiHeadAttention(6, 3)), torch.randn(2, 5, 6)
    with capture_attention(block, detach=False) as maps:
        output = block(x, attn_mask=mask(5, 5))
        penalty = attention_entropy(maps[""]).sum()
        (output.square().sum() + 0.3 * penalty).backward()
    found = {name: p.grad.clone() for name, p in block.named_parameters()}
    block.zero_grad()
    held = Held()
    monkeypatch.setattr(cvattn.core.multi_head, "attention", held)
    output = block(x, attn_mask=mask(5, 5))
    output.square().sum().backward(retain_graph=True)
    alone = block.q_proj.weight.grad.clone()
    weights = held.weights[0]
    entropy = -weights * torch.where(weights > 0, weights, 1.0).log()
    (0.3 * entropy.sum(-1).mean((0, 2)).sum()).backward()
    for name, parameter in block.named_parameters():
        if name != "k_proj.bias":  # which moves all scores of a row alike: 0 but for rounding
            assert_near(found[name], parameter.grad, name)
    assert (found["q_proj.weight"] - alone).abs().max() > 1e-2


def test_refused():
    block, x = MultiHeadAttention(6, 3), torch.randn(2, 5, 6)
    with capture_attention(block) as maps:
        output = block(x)
    with pytest.raises(ValueError, match="need capture_attention"):
        maps.gradients(output.sum())
    block.requires_grad_(False)
    with capture_attention(block, detach=False) as maps:
        output = block(x)
    with pytest.raises(ValueError, match=r"images\.requires_grad_\(\)"):
        maps.gradients(output.sum())
    with capture_attention(block, detach=False) as maps:
        output = block(x.requires_grad_())
    with pytest.raises(ValueError, match=r"shape \(2, 5, 6\); expected one number"):
        maps.gradients(output)
    assert maps.gradients(output.sum())[""].shape == (2, 3, 5, 5)
    assert x.grad is None
