"""insert_attention finds out how often a block would run, and refuses what is not exactly once."""

import copy
import re
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from cvattn import SelfAttention2d, insert_attention, remove_attention


class Iterates(nn.Sequential):
    """Runs all its children, as timm's RegNets do."""

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


class IteratesItsDict(nn.ModuleDict):
    """As DenseNets do: the features of all earlier children go to each."""

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for child in self.values():
            features.append(child(features))
        return torch.cat(features, 1)


class TakesList(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, 1)

    def forward(self, given: list[Tensor]) -> Tensor:
        return self.conv(torch.cat(given, 1))


class Sums(Iterates):
    def forward(self, x: Tensor) -> Tensor:
        return sum(child(x) for child in self.children())


class AddsBetween(Iterates):
    """The child's output is not the layer's: as x = layer(x) + embedding."""

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x) + 1.0
        return x


class Doubles(Iterates):
    """A child would run once, inside, on something else than the layer's output."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Passes(Iterates):
    """Every child gets a second argument."""

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x, 3)
        return x


class TakesTwo(nn.Conv2d):
    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return super().forward(x) * factor


class OnlyConvolutions(Iterates):
    """Picks the children that it knows: a block needs a hook."""

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            if isinstance(child, nn.Conv2d):
                x = child(x)
        return x


class RunsTwice(Iterates):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


class CountsChildren(Iterates):
    def forward(self, x: Tensor) -> Tensor:
        first = next(iter(self.children()))
        return first(x) / len(self._modules)


class OwnForwardOfSequential(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        for child in self:
            x = child(x) if not isinstance(child, TakesTwo) else child(x, 2.0)
        return x


def conv(kind: type[nn.Conv2d] = nn.Conv2d) -> nn.Conv2d:
    return kind(3, 3, 3, padding=1)


class Network(nn.Module):
    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage
        self.act = nn.ReLU()
        self.head = nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.stage(x)).mean((2, 3)))


def network(stage: nn.Module) -> nn.Module:
    model = Network(stage).eval()
    model(torch.zeros(1, 3, 9, 11))
    return model


RUNS = {
    "children": lambda: Iterates(conv(), nn.ReLU(), conv()),
    "Sequential with a forward of its own": lambda: OwnForwardOfSequential(
        TakesTwo(3, 3, 1), conv()
    ),
    "those it knows": lambda: OnlyConvolutions(conv(), conv()),
    "Sequential": lambda: nn.Sequential(conv(), nn.ReLU()),
    "a layer": conv,
}


@pytest.mark.parametrize("stage", RUNS)
def test_the_block_runs_once_on_what_its_layer_gives(stage):
    plain = network(RUNS[stage]())
    images = torch.randn(2, 3, 9, 11)
    model = insert_attention(copy.deepcopy(plain), after="stage")
    assert torch.equal(model(images), plain(images))
    block, runs = model.stage.inserted_attention, []
    block.register_forward_hook(lambda *args: runs.append(args))
    block.gamma.data.fill_(0.7)
    other = copy.deepcopy(plain)
    want = other.head(other.act(copy.deepcopy(block)(other.stage(images))).mean((2, 3)))
    runs.clear()
    assert torch.equal(model(images), want)
    assert len(runs) == 1
    assert not torch.equal(want, plain(images))
    assert [*remove_attention(model).state_dict()] == [*plain.state_dict()]
    assert not model._forward_pre_hooks
    assert not model.stage._forward_hooks


DOES_NOT = {
    "sum": (lambda: Sums(conv(), conv()), "act"),
    "x = layer(x) + 1": (lambda: AddsBetween(conv(), conv()), "act"),
    "something behind the children": (lambda: Doubles(conv()), "act"),
    "two arguments": (lambda: Passes(conv(TakesTwo)), "stage.0"),
    "twice": (lambda: RunsTwice(conv(), conv()), "act"),
    "features of all": (
        lambda: IteratesItsDict({"one": TakesList(3), "two": TakesList(5)}),
        "act",
    ),
    "the number of children": (lambda: CountsChildren(conv()), "stage.0"),
}


@pytest.mark.parametrize("stage", DOES_NOT)
@pytest.mark.parametrize("training", [False, True])
def test_otherwise_it_is_refused_with_a_place_that_works(stage, training):
    make, place = DOES_NOT[stage]
    model = network(make()).train(training)
    state, images = copy.deepcopy(model.state_dict()), torch.randn(2, 3, 9, 11)
    before, want = str(model), model(images)
    random = torch.get_rng_state()
    with pytest.raises(ValueError, match=rf"'stage' .* insert after '{place}' instead"):
        insert_attention(model, after="stage")
    assert torch.equal(torch.get_rng_state(), random)
    assert str(model) == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(images), want)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(module.training == training for module in model.modules())
    insert_attention(model, after=place)
    assert torch.equal(model(images), want)


def test_of_several_layers_the_wrong_one_is_named():
    model = network(nn.Sequential(Iterates(conv()), Sums(conv(), conv()), nn.ReLU()))
    with pytest.raises(ValueError, match=r"^'stage.1' \(Sums\)"):
        insert_attention(model, after=["act", "stage.0", "stage.1"])
    assert "inserted_attention" not in "".join(model.state_dict())


@pytest.mark.parametrize("name", ["regnetx_002", "regnety_002", "regnetz_005"])
def test_regnets_run_the_block_once(name):
    model = timm.create_model(name, num_classes=5).eval()
    images = torch.randn(1, 3, 64, 96)
    want = model(images)
    layer = "stages.2" if hasattr(model, "stages") else "s3"
    insert_attention(model, after=layer)
    runs = []
    model.get_submodule(layer).inserted_attention.register_forward_hook(
        lambda *args: runs.append(args)
    )
    assert torch.equal(model(images), want)
    assert len(runs) == 1


@pytest.mark.parametrize(
    "make",
    [
        partial(timm.create_model, "densenet121", num_classes=5),
        partial(torchvision.models.densenet121, num_classes=5),
    ],
)
def test_densenets_name_the_place(make):
    model = make().eval()
    images = torch.randn(1, 3, 64, 96)
    want = model(images)
    with pytest.raises(ValueError, match=r"insert after 'features.transition3' instead"):
        insert_attention(model, after="features.denseblock3")
    assert torch.equal(model(images), want)
    insert_attention(model, after="features.transition3")
    assert torch.equal(model(images), want)


def test_one_that_runs_several_times_names_its_neighbour():
    detector = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None
    )
    with pytest.raises(ValueError, match=r"'rpn.head.cls_logits' runs \d times in one pass"):
        insert_attention(detector, after="rpn.head.cls_logits", example=[torch.rand(3, 96, 130)])


def test_a_block_that_fails_leaves_the_model_as_it_was():
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("not these")

    model = network(nn.Sequential(conv()))
    with pytest.raises(ValueError, match=r"fails with a block after 'stage', 'act'.*not these"):
        insert_attention(model, after=["stage", "act"], block=lambda channels: Picky())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert "inserted_attention" not in dict(model.stage.named_modules())


def test_blocks_that_are_not_the_identity_are_welcome():
    model = network(nn.Sequential(conv()))
    images = torch.randn(2, 3, 9, 11)
    want = model(images)
    insert_attention(model, after="act", block=partial(SelfAttention2d, gamma_init=0.5))
    assert not torch.equal(model(images), want)


def test_models_that_draw_numbers_in_eval_mode():
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    model = network(nn.Sequential(conv(), Noisy()))
    random = torch.get_rng_state()
    insert_attention(model, after="stage", block=lambda channels: nn.Identity())
    assert torch.equal(torch.get_rng_state(), random)


def test_one_of_several_is_taken_out():
    model = network(nn.Sequential(conv(), nn.ReLU()))
    keys, images = list(model.state_dict()), torch.randn(2, 3, 9, 11)
    insert_attention(model, after=["stage.0", "stage", "act"])
    remove_attention(model, after="stage*")
    kept = {key.rpartition("inserted_attention")[0] for key in model.state_dict()} - {""}
    assert kept == {"stage.0.", "act."}
    model(images)
    with pytest.raises(ValueError, match="there is no attention after 'stage'"):
        remove_attention(model, after=["act", "stage"])
    with pytest.raises(ValueError, match=re.escape("has no layer 'akt'; did you mean act")):
        remove_attention(model, after="akt")
    insert_attention(model, after="stage")
    assert list(remove_attention(model).state_dict()) == keys
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
