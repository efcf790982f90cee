"""Every public module: made on the meta device and given values later, it is what it would be."""

import copy
import importlib
import inspect
import pickle
import pkgutil
from functools import partial

import pytest
import timm
import torch
import torchvision
from public_modules import ABSTRACT, CASES, SEQ, every_module
from torch import nn
from torch.nn.utils import parametrize

import cvattn
from cvattn import SelfAttention2d, insert_attention
from cvattn.core import Rotation
from cvattn.models import Reader


def test_no_public_module_is_forgotten():
    found = set()
    for room in ("core", "blocks", "models"):
        package = importlib.import_module(f"cvattn.{room}")
        for info in pkgutil.walk_packages(package.__path__, f"cvattn.{room}."):
            module = importlib.import_module(info.name)
            for name, each in vars(module).items():
                ours = inspect.isclass(each) and each.__module__.startswith("cvattn.")
                if ours and issubclass(each, nn.Module) and not name.startswith("_"):
                    found.add(each)
    assert found == set(CASES) | ABSTRACT
    public = {getattr(cvattn, name) for name in cvattn.__all__}
    assert {m for m in public if inspect.isclass(m) and issubclass(m, nn.Module)} <= found


@pytest.fixture(autouse=True)
def garbage(monkeypatch):
    """What to_empty gives: NaN, and numbers that no count can be."""
    plain = torch.empty_like

    def empty_like(*args, **kwargs):
        tensor = plain(*args, **kwargs)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 77)

    monkeypatch.setattr(torch, "empty_like", empty_like)


def on_meta(make) -> nn.Module:
    with torch.device("meta"):
        module = make()
    assert all(parameter.is_meta for parameter in module.parameters())
    return module


def output(module: nn.Module, inputs) -> torch.Tensor:
    options = inputs[-1] if isinstance(inputs[-1], dict) else {}
    module.eval()
    with torch.no_grad():
        found = module(*(x for x in inputs if not isinstance(x, dict)), **options)
    return torch.cat([found.cos, found.sin]) if isinstance(found, Rotation) else found


def values(module: nn.Module) -> nn.Module:
    """With values that no initial ones are."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


@pytest.mark.sweep(48)
@every_module
@pytest.mark.parametrize("way", ["to_empty", "assign", "assign, on meta throughout"])
def test_a_state_makes_it_whole(make, inputs, way):
    ordinary = values(make())
    state = copy.deepcopy(ordinary.state_dict())
    later = on_meta(make)
    assert list(later.state_dict()) == list(state)
    if way == "to_empty":
        later.to_empty(device="cpu")
    elif way != "assign":
        later.to("meta")
    later.load_state_dict(state, assign=way != "to_empty")
    assert not any(tensor.is_meta for tensor in [*later.parameters(), *later.buffers()])
    assert torch.equal(output(later, inputs), output(ordinary, inputs))
    assert len(list(later.parameters())) == len(list(ordinary.parameters()))  # what is tied
    # Back through another type: the tables come along.
    again = later.double().float()
    torch.testing.assert_close(output(again, inputs), output(ordinary, inputs))


@pytest.mark.sweep(32)
@every_module
@pytest.mark.parametrize("order", ["outer first", "inner first"])
def test_resetting_all_modules_makes_it_new(make, inputs, order):
    """As FSDP does it, or ``apply``; the values are drawn as those of the constructor are."""
    torch.manual_seed(7)
    ordinary, another, later = make(), make(), on_meta(make)
    later.to_empty(device="cpu")
    modules = list(later.modules())
    for module in modules if order == "outer first" else reversed(modules):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        else:
            own = [*module._parameters.values(), *module._buffers.values()]
            inner = type(module).__module__.startswith("torch.nn.utils.parametriz")
            assert inner or not any(each is not None for each in own), type(module)
    for (name, ours), theirs, others in zip(
        [*later.named_parameters(), *later.named_buffers()],
        [*ordinary.parameters(), *ordinary.buffers()],
        [*another.parameters(), *another.buffers()],
        strict=True,
    ):
        if name.startswith(("cnn.", "encoder.")) and "inserted_attention" not in name:
            continue  # timm draws with functions of its own
        assert ours.requires_grad == theirs.requires_grad
        if name.endswith(("0._u", "0._v")):  # directions, of spectral norms
            assert ours.norm().item() == pytest.approx(1.0, abs=1e-5)
            assert ours.numel() == 1 or not torch.equal(ours, theirs), name
            continue
        if torch.equal(theirs, others):  # nothing is drawn
            assert torch.equal(ours, theirs), name
            continue
        assert not torch.equal(ours, theirs), name
        error = 5 * (2 / theirs.numel()) ** 0.5  # five standard errors of both estimates
        assert (ours.std() / theirs.std()).log().abs() < error, name
        assert (ours.mean() - theirs.mean()).abs() < error * theirs.std(), name
    assert torch.isfinite(output(later, inputs)).all()


@pytest.mark.sweep(20)
@every_module
def test_copies_reset_themselves(make, inputs):
    ordinary = make()
    before = copy.deepcopy(ordinary.state_dict())
    others = [copy.deepcopy(ordinary)]
    if not any(map(parametrize.is_parametrized, ordinary.modules())):  # torch pickles none
        others.append(pickle.loads(pickle.dumps(ordinary)))
    for other in others:
        assert torch.equal(output(other, inputs), output(ordinary, inputs))
        for module in other.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for parameter in other.parameters():
            assert torch.isfinite(parameter).all()
        after = ordinary.state_dict()
        assert all(torch.equal(after[key], value) for key, value in before.items())


def test_tied_weights_stay_tied():
    later = on_meta(partial(Reader, 12, **SEQ, tied=True))
    later.to_empty(device="cpu")
    assert later.head.weight is later.target_embedding.weight
    for module in later.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert (later.head.weight[0] == 0).all()
    later.load_state_dict(Reader(12, **SEQ, tied=True).state_dict(), assign=True)
    assert later.head.weight is later.target_embedding.weight


@pytest.mark.sweep(3)
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("block", [SelfAttention2d, SelfAttention2d.biggan])
@pytest.mark.parametrize(
    "make", [torchvision.models.resnet18, partial(timm.create_model, "regnetx_002")]
)
def test_inserted_on_meta_and_filled_from_before(make, block, assign):
    plain = make(num_classes=5).eval()
    after = ["layer3", "layer2.1"] if hasattr(plain, "layer3") else ["s3", "s2.b1"]
    try:
        later = on_meta(partial(make, num_classes=5)).eval()
    except NotImplementedError as error:  # timm's RegNet with torch 2.10
        pytest.skip(f"this torch makes no such network on the meta device: {error}")
    insert_attention(later, after=after, block=block)
    assert all(parameter.is_meta for parameter in later.parameters())
    if not assign:
        later.to_empty(device="cpu")
    assert later.load_state_dict(plain.state_dict(), assign=assign) == ([], [])
    images = torch.randn(1, 3, 64, 96)
    assert torch.equal(later(images), plain(images))
    for name in after:
        inserted = later.get_submodule(name).inserted_attention
        assert 0.01 < inserted.query.weight.std() < 1.0
        inserted.gamma.data.fill_(0.5)
    assert not torch.equal(later(images), plain(images))
    # From now on they have values, which a plain state leaves alone.
    full = copy.deepcopy(later.state_dict())
    with pytest.warns(UserWarning, match=r"keeps the values that it has \(gamma 0.5\)"):
        later.load_state_dict(plain.state_dict())
    assert all(torch.equal(later.state_dict()[key], value) for key, value in full.items())


def test_blocks_without_a_beginning_are_refused():
    class Scale(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(channels, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.factor

    def small() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU())

    later = insert_attention(on_meta(small), after="1", block=Scale).to_empty(device="cpu")
    with pytest.raises(RuntimeError, match=r"Scale '' has no reset_parameters\(\)"):
        later.load_state_dict(small().state_dict())
