"""VisionTransformer: tokens and positions where they belong, both pools, both stems, errors."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_accurate, assert_near, call

from cvattn.core.positions import resample_grid, sincos_2d
from cvattn.models import VisionTransformer

SMALL = {"embed_dim": 12, "num_heads": 3, "ffn_dim": 20, "num_layers": 2, "patch_size": 2}


def make(num_classes: int = 5, **options) -> VisionTransformer:
    return VisionTransformer(num_classes, **({"image_size": (6, 10)} | SMALL | options))


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize("positions", ["learned", "sincos"])
@pytest.mark.parametrize("relative_bias", [False, True])
@pytest.mark.parametrize(
    ("in_channels", "image_size", "patch_size", "tokens"),
    [(1, (6, 10), 2, 15), (3, (8, 4), 4, 2), (5, (16, 24), 8, 6)],
)
def test_all_forms_forward_and_backward(
    pool, stem, positions, relative_bias, in_channels, image_size, patch_size, tokens
):
    model = make(
        7,
        relative_bias=relative_bias,
        in_channels=in_channels,
        image_size=image_size,
        patch_size=patch_size,
        pool=pool,
        stem=stem,
        positions=positions,
    )
    batch = torch.randn(3, in_channels, *image_size)
    assert model.num_prefix_tokens == (pool == "cls")
    assert model.tokens(batch).shape == (3, tokens + model.num_prefix_tokens, 12)
    logits = model(batch)
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("positions", ["learned", "sincos"])
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_tokens_are_patches_row_by_row_with_their_position(positions, pool):
    """Each token by hand: the patch times the filter, plus the bias, plus its row's position."""
    model = make(positions=positions, pool=pool)
    batch = torch.randn(2, 3, 6, 10)
    table = model.positions.table if positions == "learned" else sincos_2d(3, 5, 12)
    rows = [] if pool == "mean" else [model.class_token.expand(2, 12)]
    for y in range(3):
        for x in range(5):
            patch = batch[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].flatten(1)
            rows.append(patch @ model.stem.weight.flatten(1).T + model.stem.bias + table[5 * y + x])
    assert_near(model.tokens(batch), torch.stack(rows, dim=1))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_what_is_pooled(pool):
    model = make(pool=pool).eval()
    batch = torch.randn(2, 3, 6, 10)
    encoded = model.encoder(model.tokens(batch))
    pooled = encoded.mean(1) if pool == "mean" else encoded[:, 0]
    assert_near(model(batch), model.head(pooled))
    other = encoded[:, 0] if pool == "mean" else encoded.mean(1)
    assert (model(batch) - model.head(other)).abs().max() > 1e-3


def test_every_patch_reaches_the_logits_and_position_matters():
    model = make(pool="cls").eval()
    batch = torch.randn(1, 3, 6, 10)
    want = model(batch)
    for y in range(3):
        for x in range(5):
            changed = batch.clone()
            changed[:, :, 2 * y, 2 * x] += 3.0
            assert (model(changed) - want).abs().max() > 1e-5
    assert (model(batch.flip(3)) - want).abs().max() > 1e-4


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16), (32, 36)])
@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_trap_14_another_image_size_is_refused_and_in_training_resampled(shape, positions):
    model = VisionTransformer(3, **(SMALL | {"patch_size": 4}), positions=positions)
    batch, grid = torch.randn(2, 3, *shape), (shape[0] // 4, shape[1] // 4)
    table = model.fixed if positions == "sincos" else model.positions.table
    moved = resample_grid(table, (8, 8), grid)
    assert_near(model.tokens(batch), model.stem(batch).flatten(2).transpose(1, 2) + moved)
    message = rf"images of \(32, 32\) \(height, width\), these are \({shape[0]}, {shape[1]}\)"
    with pytest.raises(ValueError, match=message):
        model.eval()(batch)
    model.resample(shape)
    assert_near(model.tokens(batch), model.stem(batch).flatten(2).transpose(1, 2) + moved)
    assert model(batch).shape == (2, 3)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_the_relative_bias_is_on_the_scores_of_every_layer(pool):
    """Against the layers one by one, each with the table's number for each pair of tokens."""
    model = make(pool=pool, relative_bias=True).eval()
    torch.nn.init.normal_(model.relative_bias.table)
    batch, prefix = torch.randn(2, 3, 6, 10), int(pool == "cls")
    bias = torch.zeros(3, 15 + prefix, 15 + prefix)  # nothing from or to the class token
    for query in range(15):
        for key in range(15):
            offset = model.relative_bias.table[
                :, key // 5 - query // 5 + 2, key % 5 - query % 5 + 4
            ]
            bias[:, prefix + query, prefix + key] = offset
    x = model.tokens(batch)
    for layer in model.encoder.layers:
        x = layer(x, attn_bias=bias[None])
    x = model.encoder.norm(x)
    want = model.head(x.mean(1) if pool == "mean" else x[:, 0])
    assert_near(model(batch), want)
    with torch.no_grad():
        model.relative_bias.table.zero_()
    assert (model(batch) - want).abs().max() > 1e-2


def test_the_relative_bias_of_other_image_sizes():
    model = make(relative_bias=True, image_size=(8, 12))
    for shape in [(6, 10), (10, 14)]:
        assert model(torch.randn(2, 3, *shape)).shape == (2, 5)  # in training
    batch, table = torch.randn(2, 3, 8, 12), model.relative_bias.table.detach().clone()
    model.eval().resample((10, 14))
    assert model(torch.randn(2, 3, 10, 14)).shape == (2, 5)
    assert torch.equal(model.relative_bias.table[:, 1:-1, 1:-1], table)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.resample((8, 12))
        logits = model(batch)
    assert torch.equal(model.relative_bias.table, table)
    assert_accurate(logits, call, copy.deepcopy(model).bfloat16(), batch.bfloat16())


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_under_autocast_tokens_stay_in_the_lower_precision(pool, stem, positions):
    """In float32, every projection of every layer would cast them down for itself."""
    model = make(pool=pool, stem=stem, positions=positions)
    batch = torch.randn(2, 3, 6, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = model.tokens(batch)
    assert tokens.dtype == torch.bfloat16
    low = copy.deepcopy(model).bfloat16()
    assert_accurate(tokens, VisionTransformer.tokens, low, batch.bfloat16())


@pytest.mark.usefixtures("float64")
def test_a_convolutional_token_is_the_maximum_of_what_it_covers():
    """By hand in eval mode, where batch norm is 1: a quarter, a half, then all of the channels."""
    model = make(stem="conv", patch_size=4, image_size=(8, 12), embed_dim=12).eval()
    batch = torch.randn(2, 3, 8, 12)
    first, second, last = (layer for layer in model.stem if isinstance(layer, torch.nn.Conv2d))
    x = batch
    for layer, channels in ((first, 3), (second, 6)):
        x = F.conv2d(x, layer.weight, padding=1)
        corners = [x[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        x = F.gelu(torch.stack(corners).amax(dim=0) / math.sqrt(1 + 1e-5))
        assert x.shape[1] == channels
    want = F.conv2d(x, last.weight, last.bias, padding=1).flatten(2).transpose(1, 2)
    assert_near(model.tokens(batch) - model.positions.table, want)


def test_wrong_channels_and_missing_batch():
    with pytest.raises(ValueError, match="built for 3 channels, the images have 1"):
        make()(torch.zeros(2, 1, 6, 10))
    with pytest.raises(ValueError, match=r"got shape \(3, 6, 10\); add the batch dimension"):
        make()(torch.zeros(3, 6, 10))
    with pytest.raises(ValueError, match=r"image_size=\(6, 9\) is not divisible by patch_size=2"):
        make()(torch.zeros(2, 3, 6, 9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (6, 9)}, r"image_size=\(6, 9\) is not divisible by patch_size=2"),
        ({"image_size": (7, 10)}, r"image_size=\(7, 10\) is not divisible by patch_size=2"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"stem": "linear"}, r"stem='linear'; expected one of \['patch', 'conv'\]"),
        ({"pool": "max"}, r"pool='max'; expected one of \['mean', 'cls', 'attention'\]"),
        (
            {"positions": "rope"},
            r"positions='rope'; expected one of \['learned', 'sincos', 'none'\]",
        ),
        ({"embed_dim": 14}, "embed_dim=14 is not divisible by num_heads=3; .*12, 15"),
        ({"embed_dim": 15, "positions": "sincos"}, "dim=15 must be divisible by 4"),
        (
            {"stem": "conv", "patch_size": 3, "image_size": (6, 9)},
            "stem='conv' needs a patch_size of 2, 4, 8, ..., got 3",
        ),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_state_of_another_grid_is_refused():
    state = make(image_size=(10, 6)).state_dict()
    with pytest.raises(
        ValueError, match=r"grid of \(5, 3\) tokens \(H, W\), this model has \(3, 5\)"
    ):
        make().load_state_dict(state)


def test_dropout_and_drop_path_act_in_training_only():
    model = make(dropout=0.3, drop_path=0.4)
    batch = torch.randn(5, 3, 6, 10)
    assert not torch.equal(model(batch), model(batch))
    model.eval()
    assert torch.equal(model(batch), model(batch))
