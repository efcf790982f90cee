"""from_biggan_gan and from_mimicry: both networks of two released codes, written here again."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_near
from torch import Tensor

from cvattn import SelfAttention2d
from cvattn.weights import from_biggan_gan, from_mimicry

CLASSES, NOISE, WIDTH, NARROW = 5, 7, 16, 24  # of the generator's and the discriminator's maps
State = dict[str, Tensor]
pytestmark = pytest.mark.usefixtures("float64")


def layer(name: str, *shape: int, form: str = "", bias: bool = True) -> State:
    """A layer's weights; its direction is on the way to the largest singular value's."""
    weight = torch.randn(shape) / math.prod(shape[1:]) ** 0.5
    state = {f"{name}.bias": torch.randn(shape[0])} if bias else {}
    if not form:
        return state | {f"{name}.weight": weight}
    u, matrix = torch.randn(shape[0]), weight.flatten(1)
    for _ in range(3):
        v = F.normalize(u @ matrix, dim=0)
        u = F.normalize(matrix @ v, dim=0)
    if form == "torch":
        parts = {"weight_orig": weight, "weight_u": u, "weight_v": v}
    else:
        own, sigma = {"biggan": ("u0", "sv0"), "mimicry": ("sn_u", "sn_sigma")}[form]
        parts = {"weight": weight, own: u[None], sigma: torch.rand(1)}
    return state | {f"{name}.{part}": value for part, value in parts.items()}


def attention(name: str, channels: int, form: str) -> State:
    state = {f"{name}.gamma": torch.tensor(-0.7)}
    few, half = channels // 8, channels // 2
    for part, shape in (
        ("theta", (few, channels)),
        ("phi", (few, channels)),
        ("g", (half, channels)),
        ("o", (channels, half)),
    ):
        state |= layer(f"{name}.{part}", *shape, 1, 1, form=form, bias=False)
    return state


def convolutions(name: str, names: tuple, inputs: int, outputs: int, form: str) -> State:
    first, second, *short = (f"{name}.{each}" for each in names)
    state = layer(first, outputs, inputs, 3, 3, form=form)
    state |= layer(second, outputs, outputs, 3, 3, form=form)
    return state | (layer(short[0], outputs, inputs, 1, 1, form=form) if short else {})


def moments(name: str, prefix: str) -> State:
    state = {f"{name}.{prefix}_mean": torch.randn(WIDTH), f"{name}.{prefix}_var": torch.rand(WIDTH)}
    if prefix == "running":
        state[f"{name}.num_batches_tracked"] = torch.tensor(31)
    return state


def biggan(form: str = "biggan", g_attention=(1,), d_attention=(0, 1, 2, 3)) -> tuple[State, State]:
    """The states of both networks; attention behind blocks counted from 0."""
    names = ("conv1", "conv2", "conv_sc")
    made = layer("linear", 16 * WIDTH, NOISE, form=form)
    for number in range(3):
        made |= convolutions(f"blocks.{number}.0", names, WIDTH, WIDTH, form)
        for norm in ("bn1", "bn2"):
            name = f"blocks.{number}.0.{norm}"
            made |= moments(name, "stored")
            for part in ("gain", "bias"):
                made |= layer(f"{name}.{part}", CLASSES, WIDTH, bias=False)
        made |= attention(f"blocks.{number}.1", WIDTH, form) if number in g_attention else {}
    made |= moments("output_layer.0", "stored")
    made |= {f"output_layer.0.{part}": torch.randn(WIDTH) for part in ("gain", "bias")}
    made |= layer("output_layer.2", 3, WIDTH, 3, 3, form=form)
    judge = layer("linear", 1, NARROW, form="biggan")
    judge |= layer("embed", CLASSES, NARROW, form="biggan", bias=False)
    for number in range(4):
        some = names if number < 2 else names[:2]
        inputs = NARROW if number else 3
        judge |= convolutions(f"blocks.{number}.0", some, inputs, NARROW, "biggan")
        judge |= attention(f"blocks.{number}.1", NARROW, "biggan") if number in d_attention else {}
    return made, judge


def mimicry(form: str = "torch") -> tuple[State, State]:
    names = ("c1", "c2", "c_sc")
    made = layer("l1", 16 * WIDTH, NOISE, form=form) | attention("attn_block", WIDTH, form)
    for number in (2, 3, 4):
        made |= convolutions(f"block{number}", names, WIDTH, WIDTH, form)
        for norm in ("b1", "b2"):
            made |= moments(f"block{number}.{norm}.bn", "running")
            made |= layer(f"block{number}.{norm}.embed", CLASSES, 2 * WIDTH, bias=False)
    made |= moments("b5", "running") | layer("c5", 3, WIDTH, 3, 3, form=form)
    made |= {f"b5.{part}": torch.randn(WIDTH) for part in ("weight", "bias")}
    judge = layer("l5", 1, NARROW, form=form) | attention("attn_block", NARROW, form)
    judge |= layer("l_y", CLASSES, NARROW, form=form, bias=False)
    for number in (1, 2, 3, 4):
        some = names if number < 3 else names[:2]
        inputs = NARROW if number > 1 else 3
        judge |= convolutions(f"block{number}", some, inputs, NARROW, form)
    return made, judge


def weight(state: State, name: str) -> Tensor:
    """As their layers compute it in eval mode."""
    if f"{name}.weight_orig" in state:
        own, u, v = (state[f"{name}.weight_{part}"] for part in ("orig", "u", "v"))
        return own / torch.dot(u, own.flatten(1) @ v)
    own = state[f"{name}.weight"]
    for mark in ("u0", "sn_u"):
        if f"{name}.{mark}" in state:
            v = F.normalize(state[f"{name}.{mark}"] @ own.flatten(1))
            u = F.normalize(v @ own.flatten(1).T)
            return own / (u @ own.flatten(1) @ v.T).squeeze()
    return own


def conv(state: State, name: str, x: Tensor) -> Tensor:
    own = weight(state, name)
    return F.conv2d(x, own, state.get(f"{name}.bias"), padding=own.shape[-1] // 2)


def attend(state: State, name: str, x: Tensor) -> Tensor:
    q = conv(state, f"{name}.theta", x).flatten(2)
    k, v = (F.max_pool2d(conv(state, f"{name}.{each}", x), 2).flatten(2) for each in ("phi", "g"))
    attended = v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)
    attended = attended.unflatten(2, x.shape[2:])
    return x + state[f"{name}.gamma"] * conv(state, f"{name}.o", attended)


def biggan_images(state: State, noise: Tensor, labels: Tensor) -> Tensor:
    def norm(name, x, gain, bias):
        mean, var = (state[f"{name}.stored_{each}"] for each in ("mean", "var"))
        return F.batch_norm(x, mean, var, eps=1e-5) * gain + bias

    def of_class(name, x):
        gain, bias = (
            state[f"{name}.{part}.weight"][labels][:, :, None, None] for part in ("gain", "bias")
        )
        return norm(name, x, 1 + gain, bias)

    x = F.linear(noise, weight(state, "linear"), state["linear.bias"]).view(-1, WIDTH, 4, 4)
    for number in range(3):
        name = f"blocks.{number}.0"
        h = F.interpolate(of_class(f"{name}.bn1", x).relu(), scale_factor=2)
        h = of_class(f"{name}.bn2", conv(state, f"{name}.conv1", h)).relu()
        short = conv(state, f"{name}.conv_sc", F.interpolate(x, scale_factor=2))
        x = conv(state, f"{name}.conv2", h) + short
        if f"blocks.{number}.1.gamma" in state:
            x = attend(state, f"blocks.{number}.1", x)
    gain, bias = (state[f"output_layer.0.{part}"][:, None, None] for part in ("gain", "bias"))
    x = norm("output_layer.0", x, gain, bias).relu()
    return conv(state, "output_layer.2", x).tanh()


def biggan_scores(state: State, images: Tensor, labels: Tensor) -> Tensor:
    x = images
    for number in range(4):
        name = f"blocks.{number}.0"
        h = conv(state, f"{name}.conv1", x.relu() if number else x)
        h = conv(state, f"{name}.conv2", h.relu())
        if number == 0:
            x = F.avg_pool2d(h, 2) + conv(state, f"{name}.conv_sc", F.avg_pool2d(x, 2))
        elif number == 1:
            x = F.avg_pool2d(h, 2) + F.avg_pool2d(conv(state, f"{name}.conv_sc", x), 2)
        else:
            x = h + x
        if f"blocks.{number}.1.gamma" in state:
            x = attend(state, f"blocks.{number}.1", x)
    h = x.relu().sum((2, 3))
    score = F.linear(h, weight(state, "linear"), state["linear.bias"])[:, 0]
    return score + (weight(state, "embed")[labels] * h).sum(1)


def mimicry_images(state: State, noise: Tensor, labels: Tensor) -> Tensor:
    def norm(name, x):
        mean, var = (state[f"{name}.running_{each}"] for each in ("mean", "var"))
        return F.batch_norm(x, mean, var)

    def of_class(name, x):
        gain, bias = state[f"{name}.embed.weight"][labels][:, :, None, None].chunk(2, dim=1)
        return norm(f"{name}.bn", x) * gain + bias

    def up(x):
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    x = F.linear(noise, weight(state, "l1"), state["l1.bias"]).view(-1, WIDTH, 4, 4)
    for number in (2, 3, 4):
        name = f"block{number}"
        h = conv(state, f"{name}.c1", up(of_class(f"{name}.b1", x).relu()))
        h = conv(state, f"{name}.c2", of_class(f"{name}.b2", h).relu())
        x = h + conv(state, f"{name}.c_sc", up(x))
        x = attend(state, "attn_block", x) if number == 3 else x
    gain, bias = (state[f"b5.{part}"][:, None, None] for part in ("weight", "bias"))
    return conv(state, "c5", (norm("b5", x) * gain + bias).relu()).tanh()


def mimicry_scores(state: State, images: Tensor, labels: Tensor) -> Tensor:
    x = images
    for number in (1, 2, 3, 4):
        name = f"block{number}"
        h = x = x if number == 1 else x.relu()  # in place: the shortcut sees it
        h = conv(state, f"{name}.c2", conv(state, f"{name}.c1", h).relu())
        if number == 1:
            x = F.avg_pool2d(h, 2) + conv(state, f"{name}.c_sc", F.avg_pool2d(x, 2))
        elif number == 2:
            x = F.avg_pool2d(h, 2) + F.avg_pool2d(conv(state, f"{name}.c_sc", x), 2)
            x = attend(state, "attn_block", x)
        else:
            x = h + x
    h = x.relu().sum((2, 3))
    score = F.linear(h, weight(state, "l5"), state["l5.bias"])[:, 0]
    return score + (weight(state, "l_y")[labels] * h).sum(1)


BIGGAN = (from_biggan_gan, biggan_images, biggan_scores)
MIMICRY = (from_mimicry, mimicry_images, mimicry_scores)


@pytest.mark.parametrize(
    ("code", "make"),
    [
        (BIGGAN, biggan),
        (BIGGAN, lambda: biggan("", g_attention=(0,), d_attention=(1,))),
        (BIGGAN, lambda: biggan(g_attention=(), d_attention=())),
        (BIGGAN, lambda: biggan(d_attention=())),
        (MIMICRY, mimicry),
        (MIMICRY, lambda: mimicry("mimicry")),
    ],
)
def test_images_and_scores_are_theirs(code, make):
    take, images_of, scores_of = code
    states = make()
    kept = [{key: value.clone() for key, value in state.items()} for state in states]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ours = take(*states)
    assert torch.equal(torch.get_rng_state(), before)
    assert ours.training
    ours.eval()
    noise, labels = torch.randn(3, NOISE), torch.tensor([4, 0, 2])
    images = torch.randn(3, 3, 32, 32)
    want = images_of(states[0], noise, labels)
    assert want.std() > 0.1
    assert_near(ours(noise, labels), want)
    assert_near(ours.score(images, labels), scores_of(states[1], images, labels))
    for state, before in zip(states, kept, strict=True):
        assert all(torch.equal(value, before[key]) for key, value in state.items())
    wrapped = [{f"module.{key}": value for key, value in state.items()} for state in states]
    assert torch.equal(take(*wrapped).eval()(noise, labels), ours(noise, labels))


def test_it_is_a_network_like_any_other():
    ours = from_biggan_gan(*({k: v.float() for k, v in each.items()} for each in biggan()))
    assert {each.dtype for each in ours.parameters()} == {torch.float32}
    assert (ours.classes, ours.noise_dim) == (CLASSES, NOISE)
    blocks = {name for name, each in ours.named_modules() if isinstance(each, SelfAttention2d)}
    assert blocks == {"generator.attention2"} | {
        f"discriminator.attention{number}" for number in (1, 2, 3, 4)
    }
    # Spectral norms go on: after training steps the largest singular value is still 1.
    noise, labels = torch.randn(2, NOISE).float(), torch.tensor([4, 0])
    with torch.no_grad():
        ours.generator.block1.conv1.parametrizations.weight.original.normal_()
        for _ in range(60):
            ours(noise, labels)
    found = ours.eval().generator.block1.conv1.weight.flatten(1)
    assert torch.linalg.matrix_norm(found, 2).item() == pytest.approx(1.0, abs=0.01)


def without(state: State, key: str) -> State:
    return {name: value for name, value in state.items() if name != key}


def shared(state: State) -> State:
    return state | {"shared.weight": torch.randn(CLASSES, 9)}


def as_it_is(state: State) -> State:
    return state


@pytest.mark.parametrize(
    ("code", "make", "generator", "discriminator", "message"),
    [
        (
            from_biggan_gan,
            biggan,
            lambda s: without(s, "blocks.1.0.bn2.stored_var"),
            as_it_is,
            r"^blocks\.1\.0\.bn2\.stored_var is missing$",
        ),
        (
            from_biggan_gan,
            biggan,
            lambda s: s | {"linear.u1": torch.zeros(1, 3)},
            as_it_is,
            r"^linear\.u1 is unknown",
        ),
        (
            from_biggan_gan,
            biggan,
            as_it_is,
            lambda s: without(s, "embed.u0") | {"embed.u_0": torch.ones(1, CLASSES)},
            r"^embed\.u0 is missing; embed\.u_0 is unknown \(did you mean embed\.u0\?\)$",
        ),
        (
            from_biggan_gan,
            biggan,
            lambda s: without(s, "blocks.1.1.gamma"),
            as_it_is,
            r"^blocks\.1\.1\.gamma is missing$",
        ),
        (from_biggan_gan, biggan, shared, as_it_is, r"G_shared=True"),
        (
            from_biggan_gan,
            lambda: biggan(g_attention=(2,)),
            as_it_is,
            as_it_is,
            r"behind the blocks \[3\] of the generator and \[1, 2, 3, 4\] of the discriminator",
        ),
        (from_biggan_gan, lambda: biggan(g_attention=()), as_it_is, as_it_is, r"or none in both"),
        (
            from_biggan_gan,
            biggan,
            lambda s: s | {"blocks.0.0.conv2.weight": torch.zeros(WIDTH, WIDTH + 1, 3, 3)},
            as_it_is,
            r"(?s)do not fit each other: .*generator\.block1\.conv2",
        ),
        (from_biggan_gan, mimicry, as_it_is, as_it_is, r"linear\.weight is missing"),
        (from_mimicry, biggan, as_it_is, as_it_is, r"l1\.weight is missing"),
        (
            from_mimicry,
            mimicry,
            as_it_is,
            lambda s: {key: v for key, v in s.items() if not key.startswith("l_y")},
            r"^l_y\.weight_orig is missing; l_y\.weight_u is missing; l_y\.weight_v is missing$",
        ),
        (
            from_mimicry,
            mimicry,
            lambda s: s | {"block5.c1.bias": torch.zeros(3)},
            as_it_is,
            r"^block5\.c1\.bias is unknown",
        ),
        (
            from_mimicry,
            mimicry,
            as_it_is,
            lambda s: {key: v for key, v in s.items() if not key.startswith("attn_block.g")},
            r"attn_block\.gamma is missing",
        ),
    ],
)
def test_what_is_missing_or_unknown_is_named(code, make, generator, discriminator, message):
    made, judge = make()
    with pytest.raises(ValueError, match=message):
        code(generator(made), discriminator(judge))
