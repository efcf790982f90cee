"""capture_attention: the weights are right, and looking changes nothing."""

import copy

import pytest
import torch
from oracles import assert_near
from torch import Tensor, nn

from cvattn.blocks import SelfAttention2d
from cvattn.core import MultiHeadAttention
from cvattn.maps import attention_modules, capture_attention
from cvattn.maps.grids import Layout
from cvattn.models import SAGANClassifier, Transformer, VisionTransformer


def sagan(form: str = "common") -> SAGANClassifier:
    model = SAGANClassifier(
        5,
        image_size=(23, 13),
        widths=(16, 16, 8),
        attention_after=("stage1", "stage2"),
        attention=form,
    )
    with torch.no_grad():
        for block in model.attention.values():
            block.gamma.fill_(0.7)
    return model


def vit(**options) -> VisionTransformer:
    sizes = {"embed_dim": 12, "num_heads": 3, "ffn_dim": 20, "num_layers": 2, "patch_size": 2}
    return VisionTransformer(5, image_size=(6, 10), pool="cls", **(sizes | options))


def transformer(**options) -> Transformer:
    sizes = {"embed_dim": 12, "num_heads": 3, "ffn_dim": 20, "num_decoder_layers": 1}
    return Transformer(13, 11, **(sizes | options))


SOURCE = torch.tensor([[4, 5, 6, 7, 8], [9, 4, 0, 0, 0]])
TARGET = torch.tensor([[1, 3, 4], [1, 5, 0]])


def images(height: int = 23, width: int = 13) -> Tensor:
    return torch.randn(2, 3, height, width)


MODELS = {
    "common": (sagan, lambda: (images(),)),
    "biggan": (lambda: sagan("biggan"), lambda: (images(),)),
    "vit": (lambda: vit(dropout=0.3, drop_path=0.3), lambda: (images(6, 10),)),
    "transformer": (lambda: transformer(dropout=0.3), lambda: (SOURCE, TARGET)),
}
any_model = pytest.mark.parametrize(("build", "draw"), MODELS.values(), ids=MODELS.keys())


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def inputs_of(model: nn.Module, name: str, *inputs: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.extend(args))
    model(*inputs)
    handle.remove()
    return seen


def by_hand(
    q: Tensor, k: Tensor, heads: int, scale: float, allowed: Tensor | None = None
) -> Tensor:
    """softmax of scaled products, from projected (B, N, D), one head at a time."""
    maps = []
    for q_h, k_h in zip(q.chunk(heads, -1), k.chunk(heads, -1), strict=True):
        powers = (torch.einsum("bie,bje->bij", q_h, k_h) * scale).exp()
        if allowed is not None:
            powers = powers * allowed
        maps.append(powers / powers.sum(-1, keepdim=True))
    return torch.stack(maps, dim=1)


@pytest.mark.usefixtures("float64")
def test_weights_on_feature_maps_with_their_grids():
    model, batch = sagan().eval(), images()
    with capture_attention(model) as maps:
        model(batch)
    assert list(maps) == ["attention.stage1", "attention.stage2"]
    assert maps.query_grid == {"attention.stage1": (11, 6), "attention.stage2": (5, 3)}
    assert maps.key_grid == maps.query_grid
    for name, block in attention_modules(model).items():
        (x,) = inputs_of(model, name, batch)
        q, k = (layer(x).flatten(2).mT for layer in (block.query, block.key))
        assert_near(maps[name], by_hand(q, k, 1, 1.0))
        assert not maps[name].requires_grad


def test_pooled_keys_have_a_grid_of_their_own():
    model = sagan("biggan").eval()
    with capture_attention(model) as maps:
        model(images())
    assert maps.query_grid == {"attention.stage1": (11, 6), "attention.stage2": (5, 3)}
    assert maps.key_grid == {"attention.stage1": (6, 3), "attention.stage2": (3, 2)}
    assert maps["attention.stage1"].shape == (2, 1, 66, 18)


@pytest.mark.usefixtures("float64")
def test_weights_of_a_vision_transformer():
    model, batch = vit().eval(), images(6, 10)
    with capture_attention(model) as maps:
        model(batch)
    assert list(maps) == [f"encoder.layers.{i}.self_attn" for i in range(2)]
    for name, block in attention_modules(model).items():
        (x,) = inputs_of(model, name, batch)
        want = by_hand(block.q_proj(x), block.k_proj(x), 3, 0.5)
        assert want.shape == (2, 3, 16, 16)
        assert_near(maps[name], want)
        assert maps.layout[name] == Layout((3, 5), (3, 5), num_prefix_tokens=1)
        pictures = maps.on_grid(name)
        assert pictures.shape == (2, 3, 16, 3, 5)
        assert torch.equal(pictures[:, :, 7, 2, 1], maps[name][:, :, 7, 1 + 2 * 5 + 1])


@pytest.mark.usefixtures("float64")
def test_pooled_keys_are_laid_back_on_the_map():
    """An odd map: the pools at its edges hold fewer positions, and rows still sum to 1."""
    model = sagan("biggan").eval()
    with capture_attention(model, ["attention.stage1"], rows=[13, 4]) as maps:
        model(images())
    weights, pictures = maps["attention.stage1"], maps.on_grid("attention.stage1")
    assert pictures.shape == (2, 1, 2, 11, 6)
    for y in range(11):
        for x in range(6):
            members = (2 if y < 10 else 1) * 2
            key = weights[..., (y // 2) * 3 + x // 2]
            assert_near(pictures[..., y, x], key / members)
    assert_near(pictures.sum((-2, -1)), torch.ones(2, 1, 2))


def test_what_lies_on_no_grid_says_so():
    model = transformer().eval()
    with capture_attention(model) as maps:
        model(SOURCE, TARGET)
    assert not maps.layout
    with pytest.raises(ValueError, match=r"encoder.*lie on no grid"):
        maps.on_grid(next(iter(maps)))
    with pytest.raises(ValueError, match=r"no weights of 'nope'; captured: encoder"):
        maps.on_grid("nope")


def test_images_of_another_size_in_training_lie_on_their_own_grid():
    model = vit().train()
    with capture_attention(model) as maps:
        for height, width in ((6, 10), (8, 6), (10, 6)):
            model(images(height, width))
            assert set(maps.query_grid.values()) == {(height // 2, width // 2)}


@pytest.mark.usefixtures("float64")
def test_cross_attention_is_captured_with_its_masks():
    model = transformer().eval()
    with capture_attention(model) as maps:
        model(SOURCE, TARGET)
    own, cross = (maps[f"decoder.layers.0.{kind}"] for kind in ("self_attn", "cross_attn"))
    assert own.shape == (2, 3, 3, 3)
    assert cross.shape == (2, 3, 3, 5)
    assert not own.triu(1).any()
    assert not cross[1, :, :, 2:].any()
    assert cross[0].min() > 0
    name = "decoder.layers.0.cross_attn"
    block = model.get_submodule(name)
    x, memory = inputs_of(model, name, SOURCE, TARGET)
    allowed = (SOURCE != 0)[:, None].float()
    assert_near(cross, by_hand(block.q_proj(x), block.k_proj(memory), 3, 0.5, allowed))


@any_model
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_looking_changes_nothing(build, draw, training, autocast):
    """Output, gradients and buffers, with dropout from the same seed and with spectral norm."""
    plain, inputs = build().train(training), draw()
    watched = copy.deepcopy(plain)

    def run(model: nn.Module) -> Tensor:
        torch.manual_seed(7)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = model(*inputs)
        output.square().sum().backward()
        return output

    want = run(plain)
    with capture_attention(watched) as maps:
        got = run(watched)
    assert maps
    assert torch.equal(got, want)
    for (name, ours), theirs in zip(watched.named_parameters(), plain.parameters(), strict=True):
        if ours.requires_grad:
            assert torch.equal(ours.grad, theirs.grad), name
    for (name, ours), theirs in zip(watched.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    assert all(module.training == training for module in watched.modules())


def test_spectral_norm_in_training_shows_the_weights_of_the_pass():
    block, x = SelfAttention2d.biggan(16).train(), 3 * torch.randn(2, 16, 5, 7)
    with capture_attention(block) as maps:
        block(x)
    block.eval()  # the vectors of that pass are still there
    assert torch.equal(maps[""], block(x, need_weights=True)[1])


@pytest.mark.usefixtures("float64")
def test_only_chosen_rows_and_layers():
    model, batch = sagan().eval(), images()
    with capture_attention(model) as everything:
        model(batch)
    with capture_attention(model, layers=["attention.stage2"], rows=[14, 0, 5]) as maps:
        model(batch)
    assert list(maps) == ["attention.stage2"]
    assert maps["attention.stage2"].shape == (2, 1, 3, 15)
    assert_near(maps["attention.stage2"], everything["attention.stage2"][:, :, [14, 0, 5]])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("own", [None, [3, 1]])
@pytest.mark.parametrize("make", [lambda: SelfAttention2d(16), lambda: MultiHeadAttention(12, 3)])
def test_a_caller_that_wants_weights_gets_its_own(make, own):
    block = make()
    x = torch.randn(2, 16, 3, 2) if isinstance(block, SelfAttention2d) else torch.randn(2, 6, 12)
    output, weights = block(x, need_weights=True, rows=own)
    seen = []
    handle = block.register_forward_hook(lambda _, args, output: seen.append(output))
    with capture_attention(block, rows=[5, 1]) as maps:
        again, same = block(x, need_weights=True, rows=own)
        plain = block(x)
    handle.remove()
    assert torch.equal(again, output)
    assert torch.equal(plain, output)
    assert torch.equal(seen[1], output)
    assert_near(same, weights)
    assert_near(maps[""], block(x, need_weights=True)[1][:, :, [5, 1]])


def test_rows_of_weights_that_nobody_wants():
    with pytest.raises(ValueError, match="pass need_weights=True"):
        SelfAttention2d(3)(torch.randn(1, 3, 2, 2), rows=[0])
    with pytest.raises(ValueError, match="pass need_weights=True"):
        MultiHeadAttention(4, 2)(torch.randn(1, 3, 4), rows=[0])


@pytest.mark.usefixtures("float64")
def test_a_compiled_model_is_seen_too():
    torch._dynamo.reset()
    model, batch = sagan().eval(), images()
    with capture_attention(model) as want:
        model(batch)
    model.compile(backend="aot_eager")
    model(batch)
    with capture_attention(model) as maps:
        model(batch)
    assert list(maps) == list(want)
    assert_near(maps["attention.stage2"], want["attention.stage2"])


def test_a_second_pass_replaces_the_first():
    model, batch = sagan().eval(), images()
    with capture_attention(model) as maps:
        model(torch.randn(3, 3, 23, 13))
        model(batch)
    with capture_attention(model) as want:
        model(batch)
    assert torch.equal(maps["attention.stage1"], want["attention.stage1"])


def test_hooks_are_gone_afterwards_and_after_an_exception():
    model = sagan().eval()
    with capture_attention(model):
        assert hooks(model) == 2
    assert hooks(model) == 0
    try:
        with capture_attention(model):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert hooks(model) == 0
    with pytest.raises(ValueError, match="at least 9 x 9"), capture_attention(model):
        model(images(5, 5))
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("build", "layers", "message"),
    [
        (sagan, ["attention.stage9"], r"'attention\.stage9'; did you mean attention\.stage"),
        (sagan, ["zzz"], r"'zzz'; did you mean attention\.stage1, attention\.stage2"),
        (sagan, ["head"], r"no attention was seen in head; it was in attention\.stage1, att"),
        (lambda: nn.Conv2d(3, 2, 1), None, "the pass of Conv2d showed no attention: no block"),
    ],
)
def test_unknown_layers_and_models_without_attention(build, layers, message):
    model = build().eval()
    with pytest.raises(ValueError, match=message), capture_attention(model, layers):
        model(images())
