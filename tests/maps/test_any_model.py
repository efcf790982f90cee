"""Whatever a model is made of: its weights are seen as it uses them, and on the right place."""

import math
from typing import Any

import pytest
import timm
import torch
from any_model import CASES, SIZE, WINDOWED, Case, made, unfused
from oracles import FEW, assert_near
from torch import Tensor, nn

from cvattn.maps import capture_attention
from cvattn.maps.grids import Layout


def named(cases: dict[str, Case]) -> list:
    return [pytest.param(case, id=name.replace(" ", "-")) for name, case in cases.items()]


def first_of(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = output[0]
    return output


@pytest.mark.sweep(6)
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", named(CASES))
def test_weights_are_those_that_the_library_says(case: Case):
    model, images = made(case), case.images()
    for grad in (False, True):  # without gradients torch's own modules run fused
        with torch.set_grad_enabled(grad):
            before = first_of(case.run(model, images))
            with capture_attention(model) as maps:
                assert torch.equal(first_of(case.run(model, images)), before)
            with capture_attention(model, rows=[0]) as one:
                case.run(model, images)
        with torch.enable_grad():
            want = case.weights(model, lambda: case.run(model, images))
        assert sorted(maps) == sorted(want)
        for name, weights in want.items():
            assert weights.std() > 1e-6  # not all alike
            got, of_row = maps[name].detach(), one[name].detach()
            if case.float32:
                eps = torch.finfo(torch.float32).eps
                assert (got - weights).abs().max() <= FEW * eps * weights.max(), name
            else:
                assert_near(got, weights.detach(), name)
            assert_near(of_row, got[:, :, [0]], name)


@pytest.mark.sweep(7)
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", named(CASES | WINDOWED))
def test_a_planted_patch_lies_where_the_keys_change(case: Case):
    """Of all keys, those of the patch change most, seen from anywhere else."""
    model, images = made(case), case.images()
    with torch.no_grad(), capture_attention(model) as before:
        case.run(model, images)
    looking = [
        n for n, layout in before.layout.items() if layout.key_grid and n not in before.cross
    ]
    assert looking
    name = looking[0]
    height, width = before.layout[name].query_grid
    assert height * case.size[1] == width * case.size[0]  # H != W, where the network takes it
    y, x = height // 3, width - 2
    side = case.size[0] // height
    planted = images.clone()
    planted[:, :, y * side : (y + 1) * side, x * side : (x + 1) * side] += 3.0
    with torch.no_grad(), capture_attention(model) as after:
        case.run(model, planted)
    change = (after.on_grid(name) - before.on_grid(name)).abs()
    prefix = before.layout[name].num_prefix_tokens
    change[:, :, prefix + y * width + x] = 0.0  # what the patch itself looks at
    highest = change.sum((0, 1, 2)).flatten().argmax().item()
    found = (highest // width, highest % width)
    near = max(int(case.blurred), before.layout[name].kv_pool - 1)
    assert abs(found[0] - y) <= near, (found, (y, x))
    assert abs(found[1] - x) <= near, (found, (y, x))


WINDOWS = {
    "swin": ("swin_tiny_patch4_window7_224", {"img_size": (88, 56), "depths": (2, 2, 1, 1)}),
    "swin, padded": (
        "swin_tiny_patch4_window7_224",
        {"img_size": (64, 96), "depths": (2, 2, 1, 1)},
    ),
    "swin v2": ("swinv2_tiny_window8_256", {"img_size": (64, 128), "depths": (2, 2, 1, 1)}),
    "maxvit": ("maxvit_rmlp_pico_rw_256", {"img_size": (64, 96)}),
}


def places(block: Any, height: int, width: int) -> Tensor:
    """(windows, n): by timm's own functions, of a map of numbers; -1 = padding."""
    module = (
        timm.models.maxxvit if hasattr(block, "partition_size") else timm.models.swin_transformer
    )
    numbers = torch.arange(1.0, height * width + 1).view(1, height, width, 1)
    if hasattr(block, "partition_size"):
        cut = module.window_partition if block.partition_block else module.grid_partition
        return cut(numbers, block.partition_size).flatten(1).long() - 1
    numbers = numbers.roll((-block.shift_size[0], -block.shift_size[1]), (1, 2))
    down, right = (
        -size % side for size, side in zip((height, width), block.window_size, strict=True)
    )
    numbers = nn.functional.pad(numbers, (0, 0, 0, right, 0, down))
    return module.window_partition(numbers, block.window_size).flatten(1).long() - 1


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("name", "options"), WINDOWS.values(), ids=WINDOWS)
def test_windows_are_laid_back_onto_the_map(name, options):
    torch.manual_seed(3)
    model = timm.create_model(name, **options).double().eval()
    height, width = options["img_size"]
    images = torch.randn(2, 3, height, width)
    with torch.no_grad():
        before = model(images)
        with capture_attention(model) as maps:
            assert torch.equal(model(images), before)
        want = unfused(model, lambda: model(images))
    assert sorted(maps) == sorted(want)
    shifted = 0
    for at, weights in want.items():
        block = model.get_submodule(at.rpartition(".")[0])
        grid = maps.layout[at].query_grid
        where = places(block, *grid)
        shifted += any(getattr(block, "shift_size", (0,)))
        full = torch.zeros(2, weights.shape[1], math.prod(grid), math.prod(grid) + 1)
        for window, members in enumerate(where.tolist()):
            of_images = weights.unflatten(0, (2, -1))[:, window]
            keys = [m if m >= 0 else -1 for m in members]
            for query, member in enumerate(members):
                if member >= 0:
                    full[:, :, member].index_add_(
                        -1, torch.tensor(keys) % full.shape[-1], of_images[:, :, query]
                    )
        assert_near(maps[at], full[..., :-1], at)
    assert shifted or name.startswith("maxvit")
    at = next(n for n in want if maps[n].shape[2] > 30)
    with torch.no_grad(), capture_attention(model, at, rows=[29, 0, 17]) as some:
        model(images)
    assert_near(some[at], maps[at][:, :, [29, 0, 17]])


@pytest.mark.parametrize("dynamic", [False, True])
def test_parts_that_are_called_by_themselves(dynamic):
    """``forward_features`` and the like run no module of the whole, which knows its grid."""
    options = {"dynamic_img_size": True} if dynamic else {"img_size": SIZE}
    model = timm.create_model("vit_tiny_patch16_224", depth=1, **options).eval()
    with torch.no_grad(), capture_attention(model) as maps:
        for height, width in [SIZE, (64, 32)] if dynamic else [SIZE]:
            model.forward_features(torch.randn(2, 3, height, width))
            assert maps.layout["blocks.0.attn"].query_grid == (height // 16, width // 16)
            assert maps.layout["blocks.0.attn"].num_prefix_tokens == 1


def test_maps_whose_channels_could_be_a_side():
    options = {"img_size": (48, 72), "embed_dim": 12, "num_heads": (3, 3, 3, 3)}
    model = timm.create_model("swin_tiny_patch4_window7_224", depths=(2, 1, 1, 1), **options)
    with torch.no_grad(), capture_attention(model.eval(), rows=[0]) as maps:
        model(torch.randn(1, 3, 48, 72))
    assert maps.layout["layers.0.blocks.1.attn"].query_grid == (12, 18)


class Objects(nn.Module):
    """As many learned queries as a map of some level has positions; they lie on none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.queries = nn.Parameter(torch.randn(1, 12, 8))
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        memory = self.stem(images).flatten(2).mT
        return self.attend(self.queries.expand(len(images), -1, -1), memory, memory)[0]


def test_learned_queries_lie_on_no_map():
    model, images = Objects(), torch.randn(2, 3, 24, 32)
    with torch.no_grad(), capture_attention(model) as maps:
        model(images)
    assert maps.layout["attend"] == Layout(None, (6, 8))
    assert maps.on_grid("attend").shape == (2, 2, 12, 6, 8)
    with pytest.raises(ValueError, match="attend: its queries lie on no grid"):
        maps.of_keys("attend")
