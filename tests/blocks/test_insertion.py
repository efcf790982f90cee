"""insert_attention: other people's CNNs keep their outputs and their names, and learn to attend."""

import copy
import io
import pickle
from functools import partial

import pytest
import timm
import torch
import torchvision
from oracles import assert_near
from torch import nn

from cvattn import (
    SelfAttention2d,
    capture_attention,
    insert_attention,
    remove_attention,
    split_parameters,
)


class HandWritten(nn.Module):
    """A CNN with dropout, whose head takes images of 20 x 28 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU())
        self.down = Down()
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(6 * 10 * 14, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(self.body(x))
        return self.head(self.drop(x).flatten(1))


class Down(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(10, 6, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu()


MODELS = {
    "hand-written": (HandWritten, ["body", "down"], (20, 28)),
    "torchvision resnet18": (torchvision.models.resnet18, ["layer2", "layer3.1"], (64, 96)),
    "torchvision mobilenet_v3_small": (
        torchvision.models.mobilenet_v3_small,
        ["features.3", "features.8"],
        (64, 96),
    ),
    **{
        f"timm {name}": (partial(timm.create_model, name, num_classes=7), layers, (64, 96))
        for name, layers in (
            ("resnet26", ["layer2", "layer3.1"]),
            ("convnext_atto", ["stages.1", "stages.2.blocks.3"]),
            ("efficientnet_b0", ["blocks.2", "blocks.4.1"]),
        )
    },
}


def logits(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(5)  # for dropout and drop path
    return model(batch)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", MODELS)
def test_any_cnn_keeps_its_outputs_and_learns_to_attend(name):
    make, places, size = MODELS[name]
    model = make()
    before = copy.deepcopy(model.state_dict())
    plain = copy.deepcopy(model)
    batch, labels = torch.randn(3, 3, *size), torch.tensor([0, 1, 2])
    assert insert_attention(model, after=places) is model
    blocks = [m for m in model.modules() if isinstance(m, SelfAttention2d)]
    assert len(blocks) == 2
    ours, others = split_parameters(model)
    assert len(ours) == 2 * 7
    assert len(others) == len(list(plain.parameters()))

    # Nothing has changed: names, statistics of batch norms, outputs in both modes.
    after = model.state_dict()
    assert {key for key in after if "inserted_attention" not in key} == set(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert torch.equal(logits(model, batch), logits(plain, batch))
    assert torch.equal(logits(model.eval(), batch), logits(plain.eval(), batch))

    # A checkpoint from before the insertion loads, and the blocks keep what they have.
    with torch.no_grad():
        blocks[0].gamma.fill_(0.25)
    with pytest.warns(UserWarning, match=r"nothing for '.*inserted_attention'.*\(gamma 0.25\)"):
        assert model.load_state_dict(before) == ([], [])
    assert blocks[0].gamma.item() == 0.25
    with torch.no_grad():
        blocks[0].gamma.zero_()
    assert model.load_state_dict(before) == ([], [])  # a new block has nothing to lose

    # The first step moves gamma alone, the second the rest.
    model.train()
    optimizer = torch.optim.SGD(ours, lr=1.0)
    start = {n: p.clone() for n, p in model.named_parameters() if "inserted" in n}
    for number in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits(model, batch), labels).backward()
        optimizer.step()
        moved = {n for n, p in model.named_parameters() if n in start and (p != start[n]).any()}
        gammas = {n for n in start if n.endswith("gamma")}
        weights = {n for n in start if n.endswith("weight")}
        assert moved == gammas if number == 0 else moved >= gammas | weights

    with capture_attention(model) as maps:
        model(batch)
    assert set(maps) == {f"{place}.inserted_attention" for place in places}

    # Out again: the first model, key for key.
    assert remove_attention(model) is model
    assert list(model.state_dict()) == list(before)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(logits(model.eval(), batch), logits(plain.eval(), batch))
    assert [str(m) for m in model.modules()] == [str(m) for m in plain.modules()]


@pytest.mark.parametrize(
    ("after", "places"),
    [
        ("layer[34]", ["layer3", "layer4"]),
        ("layer?.1", ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
        (
            ["layer2", "layer*.0", "layer2"],
            ["layer2", *(f"layer{i}.0" for i in "1234")],
        ),
    ],
)
def test_patterns_stand_for_parts_of_names(after, places):
    model = insert_attention(torchvision.models.resnet18(), after=after)
    found = {n for n, m in model.named_modules() if isinstance(m, SelfAttention2d)}
    assert found == {f"{place}.inserted_attention" for place in places}


def attending(after=("body", "down"), **options) -> nn.Module:
    """The hand-written CNN with blocks that act."""
    model = insert_attention(HandWritten(), after=after, **options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.7)
    return model


@pytest.mark.usefixtures("float64")
def test_the_block_works_on_what_its_layer_gives():
    """Behind a Sequential (as its last child) and behind a module (by a hook)."""
    model, batch = attending(), torch.randn(3, 3, 20, 28)
    x = model.body.inserted_attention(model.body[2](model.body[1](model.body[0](batch))))
    x = model.down.inserted_attention(model.down.conv(x).relu())
    assert_near(model(batch), model.head(x.flatten(1)))


def test_other_hooks_see_what_comes_out_of_the_block():
    model, seen = HandWritten().eval(), []
    model.down.register_forward_hook(lambda _, __, output: seen.append(output))
    insert_attention(model, after="down")
    with torch.no_grad():
        model.down.inserted_attention.gamma.fill_(0.7)
    seen.clear()  # of the pass that found the channels
    output = model(torch.randn(2, 3, 20, 28))
    assert torch.equal(model.head(seen[0].flatten(1)), output)


@pytest.mark.parametrize("block", [SelfAttention2d.biggan, partial(SelfAttention2d, num_heads=1)])
def test_blocks_of_other_forms_and_types(block):
    model = insert_attention(HandWritten().double(), after="down", block=block)
    inserted = model.down.inserted_attention
    assert inserted.in_channels == 6
    assert all(p.dtype == torch.float64 for p in inserted.parameters())
    model(torch.randn(2, 3, 20, 28, dtype=torch.float64)).sum().backward()
    assert inserted.gamma.grad is not None


def test_copies_and_files():
    model, batch = attending(), torch.randn(3, 3, 20, 28)
    want = model(batch)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for again in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ):
        assert torch.equal(again(batch), want)
        with pytest.warns(UserWarning, match="keeps the values"):
            again.load_state_dict(HandWritten().state_dict())
        assert not torch.equal(again(batch), want)
        assert "inserted_attention" not in "".join(remove_attention(again).state_dict())
    assert torch.equal(model(batch), want)


@pytest.mark.usefixtures("float64")
def test_channels_last():
    model, batch = attending(), torch.randn(3, 3, 20, 28)
    want = model(batch)
    model = model.to(memory_format=torch.channels_last)
    assert_near(model(batch.to(memory_format=torch.channels_last)), want)


@pytest.mark.usefixtures("float64")
def test_export():
    model, batch = attending(), torch.randn(3, 3, 20, 28)
    program = torch.export.export(model, (batch,))
    assert_near(program.module()(batch), model(batch))


@pytest.mark.usefixtures("float64")
@pytest.mark.slow
def test_compile():
    model, batch = attending(), torch.randn(3, 3, 20, 28)
    want = model(batch)
    torch.compiler.reset()
    assert_near(torch.compile(model, fullgraph=True)(batch), want)


def _two_steps(rank: int, folder: str) -> None:
    """One of two processes, each with its own half of the data."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = insert_attention(HandWritten(), after=["body", "down"])
    wrapped = nn.parallel.DistributedDataParallel(model)  # which misses no parameter's gradient
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    torch.manual_seed(rank)
    for _ in range(3):
        optimizer.zero_grad()
        wrapped(torch.randn(4, 3, 20, 28)).square().sum().backward()
        optimizer.step()
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes(tmp_path):
    torch.multiprocessing.spawn(_two_steps, args=(str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    blocks = [key for key in one if "inserted_attention" in key]
    assert len(blocks) == 14
    assert all(torch.equal(one[key], two[key]) for key in blocks)
    assert all(one[key] != 0 for key in blocks if key.endswith("gamma"))


class Twice(HandWritten):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.again(self.again(x)))


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.swap = nn.Conv2d(3, 8, 3, padding=1), Swap()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.swap(self.conv(x)).mean((1, 2))


class Swap(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("model", "after", "message"),
    [
        (HandWritten, "boddy", r"HandWritten has no layer 'boddy'; did you mean body"),
        (HandWritten, "body*.conv", r"no layer 'body\*\.conv'"),
        (HandWritten, "head", r"takes? .*example="),
        (Twice, "again", r"'again' runs 2 times in one pass"),
        (ChannelsLast, "swap", r"'swap' gives \(1, 64, 96, 8\).*channels last"),
        (partial(nn.Linear, 3, 5), "x", r"has no layer 'x'"),
        (partial(nn.Sequential, nn.Linear(3, 5)), "0", r"has no convolution.*example="),
        (torchvision.models.resnet18, "fc", r"'fc' gives \(1, 1000\), not a feature map"),
    ],
)
def test_refused(model, after, message):
    model = model()
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        insert_attention(model, after=after)
    assert list(model.state_dict()) == keys


def test_inserting_twice_is_refused_and_nothing_is_half_done():
    model = insert_attention(HandWritten(), after="down")
    with pytest.raises(ValueError, match=r"'down' has attention already; remove_attention"):
        insert_attention(model, after=["body", "down"])
    assert len(split_parameters(model)[0]) == 7
    with pytest.raises(ValueError, match="qk_channels=5 is not divisible"):  # behind body it is
        insert_attention(
            remove_attention(model),
            after=["body", "down"],
            block=lambda channels: SelfAttention2d(
                channels, qk_channels=channels // 2 + 1 if channels == 10 else 5, num_heads=2
            ),
        )
    assert split_parameters(model)[0] == []
    insert_attention(remove_attention(model), after=["body", "down"])
    assert len(split_parameters(model)[0]) == 14


def test_an_example_serves_what_zeros_do_not():
    def strict(module, args):
        if args[0].shape[-2:] != (20, 28):
            raise RuntimeError("20 x 28 alone")

    model = HandWritten()
    model.body.register_forward_pre_hook(strict)
    with pytest.raises(ValueError, match=r"does not take an input of \(1, 3, 64, 96\).*example="):
        insert_attention(model, after="body")
    insert_attention(model, after="body", example=torch.zeros(1, 3, 20, 28))
    assert model.body.inserted_attention.in_channels == 10
