"""LayerScale and DropPath, and the feed-forward network."""

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_near

from cvattn.core import DropPath, FeedForward, LayerScale

pytestmark = pytest.mark.usefixtures("float64")


def test_layer_scale():
    module = LayerScale(7, 0.1)
    x = torch.randn(2, 5, 7)
    assert_near(module(x), x * 0.1)
    with torch.no_grad():
        module.gamma.copy_(torch.arange(7.0))
    assert_near(module(x), x * torch.arange(7.0))
    assert module.gamma.shape == (7,)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    module = DropPath(0.3).train()
    x = torch.rand(4001, 3, 5) + 1.0
    y = module(x)
    dropped = (y == 0).flatten(1)
    assert torch.equal(dropped.all(1), dropped.any(1)), "a sample is dropped as a whole or not"
    kept = ~dropped.all(1)
    assert_near(y[kept], x[kept] / 0.7)
    assert abs(kept.float().mean().item() - 0.7) < 5 * (0.21 / 4001) ** 0.5


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 7), (5, 3, 7, 2)])
def test_drop_path_takes_any_rank_and_dtype(shape):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert DropPath(0.5)(torch.randn(shape).to(dtype)).dtype == dtype


def test_drop_path_is_off_in_eval_and_at_zero():
    x = torch.randn(2, 5, 7)
    assert torch.equal(DropPath(0.9).eval()(x), x)
    assert torch.equal(DropPath(0.0).train()(x), x)


@pytest.mark.parametrize("probability", [1.0, -0.1, 2.0])
def test_drop_path_refuses(probability):
    with pytest.raises(ValueError, match=f"drop_path={probability}"):
        DropPath(probability)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_feed_forward(activation, bias):
    module = FeedForward(7, 11, activation=activation, bias=bias)
    assert (module.fc1.bias is not None) == (module.fc2.bias is not None) == bias
    x = torch.randn(2, 5, 7)
    hidden = getattr(F, activation)(F.linear(x, module.fc1.weight, module.fc1.bias))
    assert_near(module(x), F.linear(hidden, module.fc2.weight, module.fc2.bias))


def test_feed_forward_dropout_is_inside_and_in_training_only():
    module = FeedForward(7, 11, dropout=0.5)
    x = torch.randn(2, 5, 7)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_feed_forward_refuses_an_unknown_activation():
    with pytest.raises(ValueError, match=r"activation='swish'; expected one of \['gelu', "):
        FeedForward(7, 11, activation="swish")
