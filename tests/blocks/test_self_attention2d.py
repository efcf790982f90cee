"""SelfAttention2d against loops and the released form: values, gradients, both routes."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracles import ROUNDING, assert_accurate, assert_near
from torch import Tensor, nn

from cvattn.blocks import SelfAttention2d
from cvattn.core.attention import plan, record_routes

# name: (block, (B, H, W))
CASES = {
    "1x1 map": ({"in_channels": 3}, (2, 1, 1)),
    "one row": ({"in_channels": 8}, (2, 1, 5)),
    "one channel": ({"in_channels": 1}, (3, 5, 2)),
    "odd": ({"in_channels": 7}, (2, 3, 5)),
    "tall": ({"in_channels": 17}, (2, 5, 3)),
    "wide qk": ({"in_channels": 3, "qk_channels": 11}, (2, 2, 5)),
    "no bias": ({"in_channels": 17, "bias": False}, (1, 3, 5)),
    "two heads": ({"in_channels": 8, "qk_channels": 6, "num_heads": 2}, (2, 3, 5)),
    "pooled, even": ({"in_channels": 7, "kv_pool": 2}, (2, 4, 6)),
    "pooled, odd": ({"in_channels": 7, "kv_pool": 2}, (2, 3, 5)),
    "pooled by 3": ({"in_channels": 3, "kv_pool": 3}, (1, 7, 5)),
    "pooled 1x1": ({"in_channels": 3, "kv_pool": 2}, (2, 1, 1)),
    "projected": ({"in_channels": 7, "value_channels": 5}, (2, 3, 5)),
    "everything": (
        {
            "in_channels": 17,
            "qk_channels": 6,
            "value_channels": 10,
            "num_heads": 2,
            "kv_pool": 2,
        },
        (2, 5, 3),
    ),
}


def make(
    gamma: float = 0.7, dtype: torch.dtype = torch.float64, bias: bool = True, **options
) -> SelfAttention2d:
    """A block whose scores are spread: with small weights every softmax is nearly uniform."""
    block = SelfAttention2d(**options).to(dtype)
    for layer in block.projections() if not bias else []:
        layer.bias = None
    with torch.no_grad():
        for layer in (block.query, block.key):
            layer.weight.mul_(4.0)
        block.gamma.fill_(gamma)
    return block


def loop(block: SelfAttention2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """(output, weights): one position at a time, from the block's weights alone."""
    batch, _, height, width = x.shape
    heads, side = block.num_heads, block.kv_pool

    def project(layer: nn.Conv2d, pixel: Tensor) -> Tensor:
        out = layer.weight[:, :, 0, 0] @ pixel
        return out if layer.bias is None else out + layer.bias

    def pooled(layer: nn.Conv2d, image: Tensor) -> list[Tensor]:
        corners = [(y, z) for y in range(0, height, side) for z in range(0, width, side)]
        windows = [
            [
                project(layer, image[:, y, z])
                for y in range(top, min(top + side, height))
                for z in range(left, min(left + side, width))
            ]
            for top, left in corners
        ]
        return [torch.stack(window).amax(0) for window in windows]

    output, weights = torch.empty_like(x), []
    for b in range(batch):
        keys, values = pooled(block.key, x[b]), pooled(block.value, x[b])
        for y in range(height):
            for z in range(width):
                query = project(block.query, x[b, :, y, z])
                mixed = []
                for h in range(heads):
                    parts = [k.chunk(heads)[h] for k in keys]
                    powers = [torch.dot(query.chunk(heads)[h], part).exp() for part in parts]
                    row = torch.stack(powers) / sum(powers)
                    weights.append(row)
                    mixed.append(
                        sum(w * v.chunk(heads)[h] for w, v in zip(row, values, strict=True))
                    )
                attended = torch.cat(mixed)
                if block.proj is not None:
                    attended = project(block.proj, attended)
                output[b, :, y, z] = x[b, :, y, z] + block.gamma * attended
    rows = torch.stack(weights).view(batch, height * width, heads, -1).transpose(1, 2)
    return output, rows


def gradients(block: nn.Module, x: Tensor, output: Tensor, seen: Tensor) -> dict[str, Tensor]:
    named = {"x": x} | dict(block.named_parameters())
    grads = torch.autograd.grad((output * seen).sum(), list(named.values()))
    return dict(zip(named, grads, strict=True))


def assert_grads_near(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Within rounding of the largest of all: some, like the key bias's, are 0 by nature."""
    size = max(grad.abs().max() for grad in want.values()).item()
    assert size > 1e-3
    for name, grad in want.items():
        assert got[name].shape == grad.shape
        assert got[name].dtype == torch.float64
        assert (got[name] - grad).abs().max() <= ROUNDING * size, name


@pytest.mark.sweep(12)
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "bound", [plan.SCORES_BOUND, 0], ids=["small-map route", "large-map route"]
)
@pytest.mark.parametrize(("options", "size"), CASES.values(), ids=CASES.keys())
def test_equals_a_loop_over_positions(options, size, bound, monkeypatch):
    monkeypatch.setattr(plan, "SCORES_BOUND", bound)
    batch, height, width = size
    block = make(**options)
    x = torch.randn(
        batch, block.in_channels, height, width, dtype=torch.float64, requires_grad=True
    )
    seen = torch.randn_like(x)
    want, weights = loop(block, x)
    got = block(x)
    assert_near(got, want)
    output, own_weights = block(x, need_weights=True)
    assert torch.equal(output, got)
    assert_near(own_weights, weights)
    want_grads = gradients(block, x, want, seen)
    assert_grads_near(gradients(block, x, got, seen), want_grads)
    if weights.shape[-1] > 1:
        assert want_grads["query.weight"].abs().max() > 1e-6
        assert weights.max() > 2 / weights.shape[-1], "the softmax is nearly uniform: no test"

    single = make(dtype=torch.float32, **options)
    single.load_state_dict({k: v.float() for k, v in block.state_dict().items()})
    x32, seen32 = x.detach().float().requires_grad_(), seen.float()
    got32 = single(x32)

    def by_loop(block, x, seen):
        output, _ = loop(block, x)
        return output, gradients(block, x, output, seen)

    assert_accurate((got32, gradients(single, x32, got32, seen32)), by_loop, single, x32, seen32)


@pytest.mark.parametrize("in_channels", range(1, 8))
def test_trap_12_few_channels_odd_maps_and_unequal_sides(in_channels):
    for block in (make(in_channels=in_channels), SelfAttention2d.biggan(in_channels).double()):
        assert block.query.out_channels == block.key.out_channels == 1
        with torch.no_grad():
            block.gamma.fill_(0.7)
        block.eval()
        for height, width in ((5, 9), (7, 7)):
            x = torch.randn(1, in_channels, height, width, dtype=torch.float64)
            assert_near(block(x), loop(block, x)[0])


def test_trap_7_scores_are_not_scaled():
    block = make(in_channels=17, qk_channels=13)
    x = torch.randn(2, 17, 3, 5, dtype=torch.float64)

    def by_torch(**scale) -> Tensor:
        q, k, v = (f(x).flatten(2).mT for f in (block.query, block.key, block.value))
        mixed = F.scaled_dot_product_attention(q, k, v, **scale)
        return x + block.gamma * mixed.mT.unflatten(2, (3, 5))

    assert_near(block(x), by_torch(scale=1.0))
    assert (block(x) - by_torch()).abs().max() > 0.1


def released_form(
    x: Tensor, weights: dict[str, Tensor], gamma: Tensor, *, ceil_mode: bool
) -> Tensor:
    """The released block, from its description: 2x2-pooled keys and values, C/2, no biases."""
    batch, channels, height, width = x.shape
    theta = F.conv2d(x, weights["query"]).view(batch, -1, height * width)
    phi = F.max_pool2d(F.conv2d(x, weights["key"]), 2, ceil_mode=ceil_mode).flatten(2)
    g = F.max_pool2d(F.conv2d(x, weights["value"]), 2, ceil_mode=ceil_mode).flatten(2)
    beta = torch.softmax(torch.bmm(theta.transpose(1, 2), phi), dim=-1)
    o = torch.bmm(g, beta.transpose(1, 2)).view(batch, channels // 2, height, width)
    return gamma * F.conv2d(o, weights["proj"]) + x


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (7, 7), (1, 3)])
def test_biggan_equals_the_released_form(size):
    block = SelfAttention2d.biggan(24).double().eval()
    with torch.no_grad():
        block.gamma.fill_(1.3)
    x = 3 * torch.randn(2, 24, *size, dtype=torch.float64)
    weights = {name: getattr(block, name).weight for name in ("query", "key", "value", "proj")}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    assert shapes == {
        "query": (3, 24, 1, 1),
        "key": (3, 24, 1, 1),
        "value": (12, 24, 1, 1),
        "proj": (24, 12, 1, 1),
    }
    assert_near(block(x), released_form(x, weights, block.gamma, ceil_mode=True))
    even = size[0] % 2 == size[1] % 2 == 0
    if even:
        assert_near(block(x), released_form(x, weights, block.gamma, ceil_mode=False))
    assert block.key_grid(*size) == (math.ceil(size[0] / 2), math.ceil(size[1] / 2))
    assert block(x, need_weights=True)[1].shape[-1] == math.prod(block.key_grid(*size))


def test_biggan_weights_are_normalised_by_their_largest_singular_value():
    block = SelfAttention2d.biggan(24).double()
    layers = (block.query, block.key, block.value, block.proj)
    with torch.no_grad():
        for layer in layers:
            layer.parametrizations.weight.original.mul_(5.0)
    x = torch.randn(1, 24, 3, 5, dtype=torch.float64)
    for _ in range(200):  # a power iteration with each forward pass in training
        block(x)
    for layer in layers:
        assert layer.bias is None
        assert torch.linalg.svdvals(layer.weight.flatten(1))[0].item() == pytest.approx(
            1.0, abs=1e-3
        )
    plain = SelfAttention2d.biggan(24, spectral_norm=False)
    assert sorted(plain.state_dict()) == [
        "gamma",
        "key.weight",
        "proj.weight",
        "query.weight",
        "value.weight",
    ]


def test_positions_have_no_order():
    """Shuffled pixels give the shuffled output: nothing in the block knows where a pixel is."""
    block = make(in_channels=7, gamma=1.1)
    x = torch.randn(2, 7, 5, 3, dtype=torch.float64)
    order = torch.randperm(15)
    shuffled = x.flatten(2)[..., order].unflatten(2, (3, 5))  # another grid as well
    want = block(x).flatten(2)[..., order].unflatten(2, (3, 5))
    assert_near(block(shuffled), want)


def test_chosen_rows_are_rows_of_all():
    block = make(in_channels=7, kv_pool=2)
    x = torch.randn(2, 7, 5, 3, dtype=torch.float64)
    everything = block(x, need_weights=True)[1]
    assert everything.shape == (2, 1, 15, 6)
    rows = [11, 0, 2]
    chosen = block(x, need_weights=True, rows=rows)[1]
    assert_near(chosen, everything[:, :, rows])


@pytest.mark.parametrize("size", [(2, 3), (5, 3)])
def test_double_backward_on_small_maps(size):
    block = make(in_channels=3, value_channels=2)
    x = torch.randn(1, 3, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(block, (x,))


def test_trap_5_gradient_penalty_on_large_maps(monkeypatch):
    block = make(in_channels=7)
    x = torch.randn(2, 7, 3, 5, dtype=torch.float64, requires_grad=True)

    def penalty_grads() -> list[Tensor]:
        (slope,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
        return list(torch.autograd.grad(slope.square().sum(), [x, block.query.weight, block.gamma]))

    want = penalty_grads()
    monkeypatch.setattr(plan, "SCORES_BOUND", 0)
    with record_routes() as routes:
        got = penalty_grads()
    assert [route.name for _, route in routes] == ["tiled"]
    for ours, theirs in zip(got, want, strict=True):
        assert_near(ours, theirs)


REFUSED = {
    "no channels": ({"in_channels": 0}, "in_channels=0 must be at least 1"),
    "qk": ({"in_channels": 8, "qk_channels": 0}, "qk_channels=0 must be at least 1"),
    "pool": ({"in_channels": 8, "kv_pool": 0}, "kv_pool=0 must be at least 1"),
    "heads": (
        {"in_channels": 8, "num_heads": 2},
        r"qk_channels=1 is not divisible by num_heads=2; it is in_channels // 8.*qk_channels=2",
    ),
    "value heads": (
        {"in_channels": 7, "qk_channels": 2, "num_heads": 2},
        "value_channels=7 is not divisible by num_heads=2",
    ),
    "groups": ({"in_channels": 12, "norm_groups": 32}, "32 groups .* 12 channels; 4, 6, 12 groups"),
    "pooled grid": ({"in_channels": 8, "kv_pool": 2, "grid": (3, 5)}, r"grid=\(3, 5\).*kv_pool=2"),
    "dropout": ({"in_channels": 8, "dropout": 1.0}, "dropout=1.0 is not a probability"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        SelfAttention2d(**options)


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (7, 3, 4), (2, 7, 12), (2, 7, 3, 4, 1)])
def test_refused_inputs(shape):
    block = SelfAttention2d(7)
    text = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"\(batch, 7, height, width\), got shape {text}"):
        block(torch.zeros(shape))
