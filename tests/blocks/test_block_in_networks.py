"""The block where people put it: identity, formats, memory, copies, compilers, a ResNet."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_accurate, assert_near, call
from torch import nn

from cvattn.blocks import SelfAttention2d
from cvattn.core.attention import plan

COMMON_KEYS = [
    "gamma",
    "key.bias",
    "key.weight",
    "query.bias",
    "query.weight",
    "value.bias",
    "value.weight",
]
BIGGAN_KEYS = [
    "gamma",
    *(
        f"{layer}.parametrizations.weight.{part}"
        for layer in ("key", "proj", "query", "value")
        for part in ("0._u", "0._v", "original")
    ),
]
FORMS = {"common": SelfAttention2d, "biggan": SelfAttention2d.biggan}
either_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
either_route = pytest.mark.parametrize("bound", [plan.SCORES_BOUND, 0], ids=["direct", "tiled"])


def active(block: SelfAttention2d, gamma: float = 0.7) -> SelfAttention2d:
    with torch.no_grad():
        block.gamma.fill_(gamma)
    return block


@either_form
@either_route
@pytest.mark.parametrize("mode", ["nchw", "channels_last", "bf16", "autocast", "autocast, bf16 in"])
def test_a_new_block_is_exactly_the_identity(form, bound, mode, monkeypatch):
    monkeypatch.setattr(plan, "SCORES_BOUND", bound)
    block, x = form(16), 100 * torch.randn(3, 16, 5, 7)
    if mode == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    if mode == "bf16":
        block = block.bfloat16()
    if mode.endswith(("bf16", "bf16 in")):
        x = x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=mode.startswith("autocast")):
        y = block(x)
    assert y.dtype == x.dtype
    assert torch.equal(y, x)
    assert not torch.equal(active(block)(x.to(block.gamma.dtype)), x)


@either_form
def test_trap_11_at_gamma_0_only_gamma_learns_and_one_step_later_all_do(form):
    block = form(16)
    x, target = torch.randn(3, 16, 5, 7), torch.randn(3, 16, 5, 7)
    optimiser = torch.optim.SGD(block.parameters(), lr=1.0)
    rest = [name for name, _ in block.named_parameters() if name != "gamma"]

    def grads() -> dict[str, float]:
        optimiser.zero_grad()
        F.mse_loss(block(x), target).backward()
        return {name: p.grad.abs().max().item() for name, p in block.named_parameters()}

    first = grads()
    assert first["gamma"] > 0
    assert all(first[name] == 0.0 for name in rest)
    optimiser.step()
    assert block.gamma.item() != 0
    second = grads()
    # A bias on the keys moves all scores of a query alike: its gradient is 0 for ever.
    assert all(second[name] > 1e-9 for name in rest if name != "key.bias")


@pytest.mark.usefixtures("float64")
@either_form
@either_route
def test_memory_format_is_kept(form, bound, monkeypatch):
    monkeypatch.setattr(plan, "SCORES_BOUND", bound)
    block = active(form(16)).eval()
    nchw = torch.randn(3, 16, 5, 7)
    nhwc = nchw.to(memory_format=torch.channels_last)
    from_nchw, from_nhwc = block(nchw), block(nhwc)
    assert from_nchw.stride() == nchw.stride()
    assert from_nhwc.stride() == nhwc.stride() != nchw.stride()
    assert_near(from_nhwc, from_nchw)


@either_form
def test_autocast_keeps_the_dtype_and_is_near(form):
    block, x = active(form(16)).eval(), torch.randn(3, 16, 5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        output = block(x)
        assert output.dtype == torch.float32
        assert block(x.bfloat16()).dtype == torch.bfloat16
    assert_accurate(output, call, copy.deepcopy(block).bfloat16(), x.bfloat16())


def test_state_dict_keys_are_pinned():
    assert sorted(SelfAttention2d(16).state_dict()) == COMMON_KEYS
    assert sorted(SelfAttention2d.biggan(16).state_dict()) == BIGGAN_KEYS
    assert SelfAttention2d(16, gamma_init=-0.3).gamma.tolist() == pytest.approx([-0.3])
    assert SelfAttention2d(16).gamma.shape == (1,)


@either_form
def test_deepcopy(form):
    block, x = active(form(16)).eval(), torch.randn(2, 16, 3, 5)
    other = copy.deepcopy(block)
    assert torch.equal(other(x), block(x))
    active(other, gamma=-1.0)
    assert not torch.equal(other(x), block(x))


def test_pickle():
    block, x = active(SelfAttention2d(16)), torch.randn(2, 16, 3, 5)
    assert torch.equal(pickle.loads(pickle.dumps(block))(x), block(x))


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@either_form
def test_trap_15_compiled_in_place_with_the_same_keys(form):
    torch._dynamo.reset()
    block = active(form(16)).eval()
    keys, x = list(block.state_dict()), torch.randn(2, 16, 3, 5)
    want = block(x)
    block.compile(fullgraph=True, backend="aot_eager")
    assert_near(block(x), want)
    assert list(block.state_dict()) == keys


@pytest.mark.usefixtures("float64")
@pytest.mark.slow
@either_form
@either_route
def test_compiled_by_inductor_forward_and_backward(form, bound, monkeypatch):
    monkeypatch.setattr(plan, "SCORES_BOUND", bound)
    torch._dynamo.reset()
    block = active(form(16)).eval()
    x = torch.randn(2, 16, 3, 5, requires_grad=True)
    want = block(x)
    (want_grad,) = torch.autograd.grad(want.square().sum(), x)
    block.compile(fullgraph=True)
    got = block(x)
    (got_grad,) = torch.autograd.grad(got.square().sum(), x)
    assert_near(got, want)
    assert_near(got_grad, want_grad)


@pytest.mark.usefixtures("float64")
@either_form
def test_trap_17_exported_with_a_batch_of_any_size(form):
    block = active(form(16)).eval()
    dynamic = ({0: torch.export.Dim("batch")},)  # no upper bound: routes must not fix one
    program = torch.export.export(block, (torch.randn(3, 16, 13, 11),), dynamic_shapes=dynamic)
    for batch in (1, 5, 211):
        x = torch.randn(batch, 16, 13, 11)
        assert_near(program.module()(x), block(x))


MEMORY = """
import torch
from cvattn.blocks import SelfAttention2d
from cvattn.core.attention import plan

torch.set_num_threads(1)

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024

def passes(block, x):
    with torch.no_grad():
        block(x)
    forward = peak()
    block(x).square().mean().backward()
    return forward, peak()

x = torch.randn(1, 64, 96, 96, requires_grad=True)
block = SelfAttention2d(64, gamma_init=0.7)
passes(SelfAttention2d(64), torch.randn(1, 64, 8, 8))
before = peak()
forward, both = passes(block, x)
passes(block, x.detach().to(memory_format=torch.channels_last))
last = peak()
plan.SCORES_BOUND = 2**40
control, _ = passes(block, x)
print(forward - before, both - before, last - before, control - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_trap_4_a_large_map_stores_no_scores():
    """N = 9216: scores of 324 MiB. The last number is a control, the plain products."""
    run = [sys.executable, "-c", MEMORY]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    forward, both, channels_last, control = map(float, done.stdout.split())
    assert control > 324, "the measure does not see the scores"
    assert forward < 150
    assert both < 150
    assert channels_last < 150


class Inserted(nn.Module):
    """A stage and the block behind it, as one would write it by hand."""

    def __init__(self, stage: nn.Module, block: SelfAttention2d) -> None:
        super().__init__()
        self.stage = stage
        self.block = block

    def forward(self, x):
        return self.block(self.stage(x))


@either_form
def test_inserted_into_a_resnet_the_logits_stay_bit_equal(form):
    from torchvision.models import resnet18

    torch.manual_seed(11)
    network = resnet18(num_classes=13).eval()
    images = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        want = network(images)
        block = form(256).eval()
        network.layer3 = Inserted(network.layer3, block)
        assert torch.equal(network(images), want)
        active(block)
        assert (network(images) - want).abs().max() > 1e-4
