"""torch.func over the block on small maps: per-sample gradients, jacobians, hessians."""

import pytest
import torch
from oracles import assert_near
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vmap

from cvattn.blocks import SelfAttention2d

# torch itself, when its forward-mode rules are loaded.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")

FORMS = {
    "common": SelfAttention2d,
    "biggan": SelfAttention2d.biggan,
    "projected": lambda channels: SelfAttention2d.biggan(channels, spectral_norm=False),
    "heads": lambda channels: SelfAttention2d(channels, qk_channels=4, num_heads=2),
}


@pytest.fixture(params=FORMS)
def block(request) -> SelfAttention2d:
    made = FORMS[request.param](6).double().eval()
    made.gamma.data.fill_(0.7)
    return made


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_of_each_sample(block, channels_last):
    x = torch.randn(3, 6, 3, 5, dtype=torch.float64)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    seen = torch.randn_like(x)
    parameters = {name: p.detach() for name, p in block.named_parameters()}

    def loss(given, one, weights):
        return (functional_call(block, given, (one[None],))[0] * weights).sum()

    got = vmap(grad(loss), (None, 0, 0))(parameters, x, seen)
    for index in range(3):
        block.zero_grad()
        (block(x[index : index + 1])[0] * seen[index]).sum().backward()
        for name, parameter in block.named_parameters():
            if name == "key.bias":  # it moves all scores alike: 0 by nature
                assert got[name][index].abs().max() < 1e-12
            else:
                assert_near(got[name][index], parameter.grad)


def test_jacobians_and_hessians(block):
    x = torch.randn(1, 6, 2, 3, dtype=torch.float64)
    want = torch.autograd.functional.jacobian(block, x)
    assert_near(jacrev(block)(x), want)
    assert_near(jacfwd(block)(x), want)

    def scalar(given):
        return block(given).square().sum()

    want = torch.autograd.functional.hessian(scalar, x)
    assert_near(hessian(scalar)(x), want)
