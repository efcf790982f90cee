"""Heat of an answer, per block and through all layers: the right rows, on the right places."""

import copy

import pytest
import torch
from oracles import assert_near, fill
from torch import Tensor, nn

from cvattn.blocks import SelfAttention2d
from cvattn.core import MultiHeadAttention
from cvattn.maps import (
    attention_heat,
    attention_relevance,
    attention_rollout,
    capture_attention,
    heat_on_image,
    rollout_heat,
)
from cvattn.models import SAGANClassifier, VisionTransformer

FIRST, LAST = (f"encoder.layers.{i}.self_attn" for i in (0, 2))


class TwoColours(nn.Module):
    """Class c = how much of channel c the attention brings: from bright cells of any colour."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(4)
        self.block = SelfAttention2d(3, qk_channels=1, **options)
        with torch.no_grad():
            self.block.query.weight.zero_()
            self.block.query.bias.fill_(1.0)
            self.block.key.weight.fill_(4.0)
            self.block.value.weight.copy_(torch.eye(3)[:, :, None, None])
            self.block.value.bias.zero_()
            self.block.gamma.fill_(0.7)

    def forward(self, images):
        return self.block(self.pool(images)).mean((2, 3))


def vit(**options) -> VisionTransformer:
    sizes = {"embed_dim": 12, "num_heads": 3, "ffn_dim": 20, "num_layers": 3, "patch_size": 2}
    return fill(VisionTransformer(5, image_size=(6, 10), **(sizes | options))).eval()


def images() -> Tensor:
    return torch.randn(3, 3, 6, 10)


def by_hand(
    model: nn.Module, images: Tensor, target
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    with capture_attention(model, detach=False) as maps:
        logits = model(images)
    classes = torch.as_tensor(target).expand(len(images))
    score = sum(logits[i, int(c)] for i, c in enumerate(classes))
    return {name: each.detach() for name, each in maps.items()}, maps.gradients(score)


@pytest.mark.parametrize(("kv_pool", "through"), [(1, False), (2, False), (1, True)])
def test_each_class_has_the_heat_where_its_colour_is(kv_pool, through):
    """28 x 44 pixels, a map of 7 x 11; weights alone cannot tell the two patches apart."""
    model = TwoColours(kv_pool=kv_pool).eval()
    pixels = torch.rand(2, 3, 28, 44) * 0.05
    places = {0: (5, 2), 2: (1, 9)}
    for channel, (y, x) in places.items():
        pixels[1, channel, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = 4.0
    for channel, (y, x) in places.items():
        if through:
            heat = rollout_heat(model, pixels, target=channel)[1]
            heat = heat - heat.median()  # what each position is to itself
        else:
            (heat,) = attention_heat(model, pixels, target=channel).values()
            assert heat.shape == (2, 1, 28, 44)
            heat = heat[1, 0]
        peak = int(heat.argmax())
        side = 4 * kv_pool
        assert (peak // 44 // side, peak % 44 // side) == (4 * y // side, 4 * x // side)
        other_y, other_x = places[2 - channel]
        assert heat[4 * other_y + 2, 4 * other_x + 2] < 0.1 * heat.max()


FORMS = {
    "class token": {"pool": "cls"},
    "class token, registers": {"pool": "cls", "num_registers": 2},
    "mean": {"pool": "mean"},
    "mean, registers": {"pool": "mean", "num_registers": 2},
    "mean, relative bias": {"pool": "mean", "relative_bias": True},
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


@pytest.mark.usefixtures("float64")
@forms
@pytest.mark.parametrize("target", [4, [2, 0, 4]], ids=["one class", "one for each"])
def test_of_a_vit_layer_by_layer(form, target):
    model, batch = vit(**form), images()
    prefix = model.num_prefix_tokens
    maps, slopes = by_hand(model, batch, target)
    found = attention_heat(model, batch, target=target)
    here = attention_heat(model, batch, target=torch.as_tensor(target), at=(5, 4))
    assert list(found) == list(here) == list(maps)
    for name, weights in maps.items():
        taken = (weights * slopes[name]).clamp_min(0)[..., prefix:].unflatten(-1, (3, 5))
        assert_near(found[name], heat_on_image(taken.sum(2), (6, 10)))
        row = prefix + 2 * 5 + 2
        if slopes[name][:, :, row].any():  # with a class token, not in the last layer
            assert_near(here[name], heat_on_image(taken[:, :, row], (6, 10)))
    if form["pool"] == "cls":
        assert not here[LAST].any()
        (last,) = attention_heat(model, batch, target=target, layers=LAST).values()
        taken = (maps[LAST] * slopes[LAST]).clamp_min(0)[:, :, 0, prefix:]
        assert_near(last, heat_on_image(taken.unflatten(-1, (3, 5)), (6, 10)))


@pytest.mark.usefixtures("float64")
@forms
def test_of_a_vit_through_all_layers(form):
    model, batch = vit(**form), images()
    prefix = model.num_prefix_tokens
    maps, slopes = by_hand(model, batch, 3)

    def laid(rows: Tensor) -> Tensor:
        return heat_on_image(rows[..., prefix:].unflatten(-1, (3, 5)), (6, 10))

    rollout, relevance = attention_rollout(maps), attention_relevance(maps, slopes)
    assert_near(rollout_heat(model, batch), laid(rollout[:, 0] if prefix else rollout.mean(dim=1)))
    read = relevance[:, 0] if form["pool"] == "cls" else relevance[:, prefix:].mean(dim=1)
    assert_near(rollout_heat(model, batch, target=3), laid(read))
    row = prefix + 1 * 5 + 4
    assert_near(rollout_heat(model, batch, at=(2, 9)), laid(rollout[:, row]))
    assert_near(rollout_heat(model, batch, at=(2, 9), target=3), laid(relevance[:, row]))


@pytest.mark.usefixtures("float64")
def test_of_the_layers_that_are_named():
    model, batch = vit(pool="attention"), images()
    with pytest.raises(ValueError, match=r"attention_pool.*of one stack"):
        rollout_heat(model, batch, target=1)
    names = [name for name in attention_heat(model, batch, target=1) if "encoder" in name]
    assert rollout_heat(model, batch, target=1, layers=names).shape == (3, 6, 10)


def sagan() -> SAGANClassifier:
    model = SAGANClassifier(
        5, image_size=(23, 13), widths=(16, 16, 8), attention_after=("stage1", "stage2")
    )
    for block in model.attention.values():
        nn.init.constant_(block.gamma, 0.7)
    return model


def test_of_a_cnn():
    model, batch = sagan().eval(), torch.randn(2, 3, 23, 13)
    heat = attention_heat(model, batch, target=[1, 4])
    assert {name: each.shape for name, each in heat.items()} == dict.fromkeys(
        ("attention.stage1", "attention.stage2"), (2, 1, 23, 13)
    )
    with pytest.raises(ValueError, match=r"attention\.stage2: weights .* cannot be rolled out"):
        rollout_heat(model, batch, target=1)
    assert rollout_heat(model, batch, target=1, layers="attention.stage2").shape == (2, 23, 13)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "around", [torch.no_grad, torch.enable_grad], ids=["no_grad", "enable_grad"]
)
def test_nothing_is_left_behind(frozen, around):
    model, batch = vit(pool="cls").requires_grad_(not frozen), images().requires_grad_()
    model.encoder.layers[1].train()
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    with around():
        found = attention_heat(model, batch, target=2)
        through = rollout_heat(model, batch, target=2)
    assert not any(each.requires_grad for each in (*found.values(), through))
    assert all(each.grad is None for each in (*model.parameters(), batch))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], each) for name, each in model.state_dict().items())
    assert not any(each.observers for each in model.modules() if hasattr(each, "observers"))


def test_inference_mode():
    model, batch = vit(pool="cls"), images()
    with torch.inference_mode():
        made_there = batch + 0
        for heat in (attention_heat, rollout_heat):
            with pytest.raises(ValueError, match=r"rules out; leave it, or use torch\.no_grad"):
                heat(model, batch, target=2)
    found = attention_heat(model, made_there, target=2)
    assert torch.equal(found[FIRST], attention_heat(model, batch, target=2)[FIRST])


class Outputs(nn.Module):
    def __init__(self, change) -> None:
        super().__init__()
        self.inner, self.change = vit(pool="cls"), change

    def forward(self, images):
        return self.change(self.inner(images))


@pytest.mark.parametrize("heat", [attention_heat, rollout_heat])
def test_refused(heat):
    model, batch = vit(pool="cls"), images()
    for target, error, message in (
        (5, ValueError, "target=5 is none of the 5 classes, 0 to 4"),
        ([0, -1, 2], ValueError, "target=-1 is none of"),
        ([0, 1], ValueError, "target has 2 classes for 3 images"),
        (1.0, TypeError, r"target=1\.0; expected a class index, or one for each image"),
        ("cat", TypeError, "target='cat'; expected a class index"),
        (torch.zeros(3), TypeError, "expected a class index"),
    ):
        with pytest.raises(error, match=message):
            heat(model, batch, target=target)
    with pytest.raises(ValueError, match=r"at=\(6, 0\) is not inside"):
        heat(model, batch, target=1, at=(6, 0))
    for change, shape in (
        (lambda x: x[:, :, None], r"\(3, 5, 1\)"),
        (lambda x: {"logits": x}, "dict"),
        (lambda x: x[:2], r"\(2, 5\)"),
    ):
        message = rf"output of Outputs is {shape}; a target needs logits .* \(3, classes\)"
        with pytest.raises(ValueError, match=message):
            heat(Outputs(change), batch, target=1)
    with pytest.raises(ValueError, match="no gradient leads"):
        heat(Outputs(lambda x: x.detach()), batch, target=1)


def test_what_lies_on_no_grid_is_refused():
    only = nn.Sequential(
        nn.Flatten(2), nn.Linear(60, 4), MultiHeadAttention(4, 2), nn.Flatten(), nn.Linear(12, 5)
    )
    for heat in (attention_heat, rollout_heat):
        with pytest.raises(ValueError, match="2: the tokens of these images lie on no grid"):
            heat(only, images(), target=1)
    with pytest.raises(ValueError, match="2: the tokens of these images lie on no grid"):
        rollout_heat(only, images())


@pytest.mark.usefixtures("float64")
def test_of_a_vit_of_timm():
    """Against its own unfused products, whose weights autograd sees."""
    import timm

    sizes = {"img_size": (6, 10), "patch_size": 2, "embed_dim": 12, "depth": 3, "num_heads": 3}
    model = fill(timm.models.VisionTransformer(**sizes, num_classes=5, reg_tokens=2)).eval()
    batch, held = images(), []
    found, through = attention_heat(model, batch, target=4), rollout_heat(model, batch, target=4)
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, args, __: held.append(args[0]))
    score = model(batch)[:, 4].sum()
    slopes = torch.autograd.grad(score, held)
    relevance = torch.eye(18).expand(3, 18, 18)
    for heat, weights, slope in zip(found.values(), held, slopes, strict=True):
        taken = (weights * slope).clamp_min(0).detach()
        want = taken.sum(2)[..., 3:].unflatten(-1, (3, 5))
        assert_near(heat, heat_on_image(want, (6, 10)))
        relevance = relevance + taken.mean(1) @ relevance
    want = relevance[:, 0, 3:].unflatten(-1, (3, 5))
    assert_near(through, heat_on_image(want, (6, 10)))
