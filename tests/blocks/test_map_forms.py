"""The forms that other people's networks have, against a formula; masks of padded maps."""

import copy
import inspect
from functools import partial

import pytest
import torch
from map_forms import CHANNELS, FORMS, acting, formula
from oracles import ROUNDING, assert_near, loop_attention, scalar
from torch import Tensor, nn

from cvattn import SelfAttention2d, capture_attention, insert_attention
from cvattn.blocks import CrossAttention2d, SelfAttention1d, SelfAttention3d
from cvattn.core import use_route
from cvattn.cost import explain_attention
from cvattn.testing import check_attention

pytestmark = pytest.mark.usefixtures("float64")
forms = pytest.mark.parametrize("make", FORMS.values(), ids=FORMS.keys())


def results(block: nn.Module, run, *inputs: Tensor) -> dict[str, Tensor]:
    """Output, and gradients of the inputs and all parameters."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    output = run(*inputs)
    named = {f"input {i}": x for i, x in enumerate(inputs)} | dict(block.named_parameters())
    return {"output": output.detach()} | dict(
        zip(named, torch.autograd.grad(scalar(output), list(named.values())), strict=True)
    )


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert_near(got["output"], want["output"])
    slopes = {name: each for name, each in want.items() if name != "output"}
    size = max(each.abs().max() for each in slopes.values())  # a key's bias has none
    for name, each in slopes.items():
        assert (got[name] - each).abs().max() <= ROUNDING * size, name


def padded() -> tuple[Tensor, Tensor]:
    """Maps of unequal sizes at the upper left, one of them empty."""
    mask = torch.zeros(3, 5, 7, dtype=torch.bool)
    mask[0, :5, :3] = mask[1, :2, :7] = True
    return torch.randn(3, CHANNELS, 5, 7), mask


@pytest.mark.sweep(3)
@forms
def test_equals_the_formula(make):
    block, x = acting(make()), torch.randn(2, CHANNELS, 5, 7)
    want = results(block, lambda x: formula(block, x), x)
    assert_same(results(block, block, x), want)
    with use_route("tiled"):
        assert_same(results(block, block, x), want)
    assert (want["output"] - x).abs().max() > 0.1


@forms
def test_padding_gives_and_gets_nothing(make):
    block, (x, mask) = acting(make()), padded()
    want = results(block, lambda x: formula(block, x, mask), x)
    got = results(block, lambda x: block(x, mask=mask), x)
    assert_same(got, want)
    assert_near(got["output"][:1, :, :5, :3], block(x[:1, :, :5, :3]))
    real = mask[:, None].expand_as(x)
    hidden = torch.where(real, x, float("nan"))
    output = block(hidden, mask=mask)
    assert_near(output[real], got["output"][real])
    assert output[~real].isnan().all()


@forms
def test_a_new_block_is_the_identity_and_learns(make):
    if make is FORMS["everything"]:
        make = lambda: FORMS["everything"](gamma_init=0.0)  # noqa: E731
    block, x = make(), torch.randn(2, CHANNELS, 5, 7)
    for mode in (block.train(), copy.deepcopy(block).eval()):
        assert torch.equal(mode(x), x)
        assert mode.is_identity()
    scalar(block(x)).backward()
    assert any(each.grad is not None and each.grad.abs().max() > 1e-3 for each in block._last())
    acting(block)
    assert not block.is_identity()
    block.make_identity()
    assert torch.equal(block(x), x)
    acting(block)
    block.reset_parameters()
    assert block.is_identity()


def test_at_most_twelve_arguments():
    assert len(inspect.signature(SelfAttention2d).parameters) <= 12


@forms
def test_the_checks_of_attention_pass(make):
    where = any(isinstance(m, nn.Module) and "relative" in n for n, m in make().named_modules())
    report = check_attention(make(), torch.empty(1, CHANNELS, 5, 7), positions=where)
    assert report.passed.keys() >= {"sizes", "weights", "mixing", "samples", "gradients"}
    block = make()
    # What reaches every token, or keys that are none: a mask of pairs cannot be checked.
    if block.norm is None and block.kv_pool == 1:
        assert report.passed.keys() >= {"mask", "sample_masks", "empty_rows"}


@forms
def test_weights_are_those_that_are_used_for_all_and_for_rows(make):
    block, x = acting(make()), torch.randn(2, CHANNELS, 5, 7)
    block.gamma = block.proj = None
    block._sum = lambda x, attended: attended  # what was gathered, and nothing else
    values = []
    block.value.register_forward_hook(lambda *given: values.append(given[-1]))
    mask = torch.rand(35, 12 if block.kv_pool > 1 else 35) > 0.4
    output, weights = block(x, attn_mask=mask, need_weights=True)
    assert not weights[:, :, ~mask].any()
    value = block._tokens(block._pool(values[0], values[0], None)[1])
    assert_near((weights @ value).transpose(2, 3).flatten(1, 2).unflatten(2, (5, 7)), output)
    with capture_attention(nn.Sequential(block), rows=[3, 30]) as maps:
        assert torch.equal(block(x, attn_mask=mask), output)
        assert_near(maps["0"], weights[:, :, [3, 30]])
    assert maps.on_grid("0").shape == (2, block.num_heads, 2, 5, 7)


# One without and one with all that there can be around attention; the others in the slow tests.
QUICK = ("common", "unet, where")


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, make in FORMS.items()
    ],
)
def test_compiled_and_exported(make):
    block, x = acting(make()), torch.randn(2, CHANNELS, 5, 7)
    mask = torch.rand(2, 5, 7) > 0.3
    program = torch.export.export(block, (x,), {"mask": mask}).module()
    assert_near(program(x, mask=mask), block(x, mask=mask))
    sizes = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    opened = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO, **sizes},))
    other = torch.randn(3, CHANNELS, 11, 13)
    assert_near(opened.module()(other), block(other))
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert_same(results(block, compiled, x), results(block, block, x))


@pytest.mark.parametrize("kind", [SelfAttention1d, SelfAttention3d])
@pytest.mark.parametrize("form", ["common", "unet", "biggan", "non_local"])
def test_one_and_three_dimensions_are_those_of_two(kind, form):
    """On volumes one deep, and on sequences as maps one high, with the same weights."""
    preset = {"unet": {"head_dim": 4, "groups": 3}, "biggan": {"spectral_norm": False}}
    make, options = getattr(kind, form, kind), preset.get(form, {})
    block, flat = acting(make(CHANNELS, **options)), getattr(SelfAttention2d, form, SelfAttention2d)
    flat = flat(CHANNELS, **options).eval()
    shapes = {name: each.shape for name, each in flat.state_dict().items()}
    flat.load_state_dict({k: v.reshape(shapes[k]) for k, v in block.state_dict().items()})
    x = (
        torch.randn(2, CHANNELS, 1, 7)
        if kind is SelfAttention1d
        else torch.randn(2, CHANNELS, 5, 7)
    )
    mask = torch.rand(2, *x.shape[2:]) > 0.3
    axis = 1 if kind is SelfAttention1d else None
    if axis is None:
        output = block(x[:, :, None], mask=mask[:, None])[:, :, 0]
    else:
        output = block(x[:, :, 0], mask=mask[:, 0])[:, :, None]
    assert_near(output, flat(x, mask=mask))
    if kind is SelfAttention3d:  # the order of positions means nothing
        deep = torch.randn(2, CHANNELS, 3, 5, 2)
        if form != "biggan":
            assert_near(block(deep).flatten(3), flat(deep.flatten(3)))
        assert block(deep).shape == deep.shape


def test_dropout_drops_in_training_alone():
    block = acting(SelfAttention2d.unet(CHANNELS, groups=3, dropout=0.4))
    x = torch.randn(2, CHANNELS, 5, 7)
    exact = block(x)
    assert torch.equal(block(x), exact)
    block.train()
    drawn = torch.stack([block(x) for _ in range(400)])
    error = (drawn.mean(0) - exact).abs().max() / drawn.std(0).max()
    assert 1e-3 < error < 5 / 400**0.5


def test_batch_norm_and_padding_do_not_mix():
    block, (x, mask) = SelfAttention2d.non_local(CHANNELS), padded()
    with pytest.raises(ValueError, match=r"batch norm .* would count the padding"):
        block(x, mask=mask)
    block.eval()(x, mask=mask)


WRONG_MASKS = {
    "float": (torch.ones(3, 5, 7), TypeError, "mask is torch.float32; expected bool"),
    "shape": (torch.ones(3, 7, 5).bool(), ValueError, r"\(3, 7, 5\); expected \(3, 5, 7\)"),
}


@pytest.mark.parametrize(("mask", "error", "text"), WRONG_MASKS.values(), ids=WRONG_MASKS.keys())
def test_wrong_masks(mask, error, text):
    with pytest.raises(error, match=text):
        SelfAttention2d(CHANNELS)(padded()[0], mask=mask)


@pytest.mark.parametrize("form", [SelfAttention2d.unet, SelfAttention2d.non_local])
def test_inserted_and_explained(form):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 5, 1)).eval()
    x = torch.randn(2, 3, 9, 11)
    before = net(x)
    insert_attention(net, after="1", block=form)
    assert torch.equal(net(x), before)
    (cost,) = explain_attention(net, x, training=True)
    assert (cost.queries, cost.keys, cost.name) == (99, 99, "1.inserted_attention")
    with capture_attention(net, rows=[0]) as maps:
        net(x)
    assert maps["1.inserted_attention"].shape == (2, 1, 1, 99)


def context_formula(block: CrossAttention2d, x: Tensor, context: Tensor, seen: Tensor) -> Tensor:
    """Of tokens, from the block's weights; the group norm is torch's."""
    normed = (
        x
        if block.norm is None
        else nn.functional.group_norm(
            x, block.norm.num_groups, block.norm.weight, block.norm.bias, block.norm.eps
        )
    )
    q = nn.functional.conv2d(normed, block.query.weight, block.query.bias)
    q = q.flatten(2).unflatten(1, (block.num_heads, -1)).mT
    k, v = (
        nn.functional.linear(context, layer.weight, layer.bias)
        .unflatten(2, (block.num_heads, -1))
        .transpose(1, 2)
        for layer in (block.key, block.value)
    )
    out, _ = loop_attention(q, k, v, attn_mask=seen[:, None, None], scale=block.scale)
    out = out.mT.flatten(1, 2).unflatten(2, x.shape[2:])
    if block.proj is not None:
        out = nn.functional.conv2d(out, block.proj.weight, block.proj.bias)
    return x + (out if block.gamma is None else block.gamma * out)


@pytest.mark.parametrize("unet", [False, True])
@pytest.mark.parametrize("as_map", [False, True])
def test_cross_attention(unet, as_map):
    form = {"context_channels": 10}
    block = (
        CrossAttention2d.unet(CHANNELS, groups=3, head_dim=4, **form)
        if unet
        else (CrossAttention2d(CHANNELS, **form))
    )
    x, context = torch.randn(3, CHANNELS, 3, 5), torch.randn(3, 11, 10)
    if as_map:
        context = torch.randn(3, 10, 2, 7)
    assert torch.equal(block(x, context), x)
    acting(block)
    seen = torch.rand(3, *(context.shape[2:] if as_map else context.shape[1:2])) > 0.4
    seen[1] = False

    def by_formula(x, context):
        tokens = context.flatten(2).mT if as_map else context
        return context_formula(block, x, tokens, seen.flatten(1))

    got = results(block, lambda *given: block(*given, context_mask=seen), x, context)
    assert_same(got, results(block, by_formula, x, context))
    hole = context.clone()
    (hole if not as_map else hole.movedim(1, -1))[~seen] = float("nan")
    assert_near(block(x, hole, context_mask=seen), got["output"])
    with capture_attention(nn.ModuleDict({"at": block}), rows=[4]) as maps:
        block(x, context, context_mask=seen)
    assert maps["at"].shape == (3, block.num_heads, 1, 14 if as_map else 11)
    assert not maps["at"][1].any()
    assert (maps.key_grid["at"] is not None) == as_map
    assert "at" in maps.cross


def test_cross_attention_refuses():
    block, x = CrossAttention2d(CHANNELS, context_channels=10), torch.randn(2, CHANNELS, 3, 5)
    with pytest.raises(
        ValueError, match=r"context has shape \(2, 11, 9\); expected tokens \(2, to"
    ):
        block(x, torch.randn(2, 11, 9))
    with pytest.raises(TypeError, match=r"context_mask is torch.int64.*context_mask.bool\(\)"):
        block(x, torch.randn(2, 11, 10), context_mask=torch.ones(2, 11).long())
    with pytest.raises(ValueError, match=r"context_mask has shape \(2, 10\); expected \(2, 11\)"):
        block(x, torch.randn(2, 11, 10), context_mask=torch.ones(2, 10).bool())


def sequences() -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(2, 16, 5, stride=2), nn.ReLU(), nn.Conv1d(16, 3, 3))


def volumes() -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(2, 16, 3, stride=4), nn.ReLU(), nn.Conv3d(16, 3, 3))


@pytest.mark.parametrize(
    ("net", "block", "size"),
    [
        (sequences, SelfAttention1d, (47,)),
        (sequences, partial(SelfAttention1d.unet, groups=4), (47,)),
        (volumes, SelfAttention3d.biggan, (13, 17, 19)),
    ],
)
def test_inserted_into_networks_of_sequences_and_volumes(net, block, size):
    model, x = net().double().eval(), torch.randn(2, 2, *size)
    before = model(x)
    insert_attention(model, after="1", block=block)
    assert torch.equal(model(x), before)
    acting(model)
    assert (model(x) - before).abs().max() > 1e-3
    with capture_attention(model, rows=[0]) as maps:
        model(x)
    assert not maps.layout
    with pytest.raises(
        ValueError, match=r"gives .*, not a feature map \(batch, C, height, width\)"
    ):
        insert_attention(net().double(), after="1", example=x, block=SelfAttention2d)
