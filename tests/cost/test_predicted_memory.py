"""Predicted peaks: against a trace made by hand, and against what fresh processes take."""

import os
import sys
from pathlib import Path

import pytest
import torch
from measured_peak import measured_peak
from torch import nn

import cvattn
from cvattn import MultiHeadAttention, SelfAttention2d
from cvattn.cost import predict_peak
from cvattn.cost.memory import LIBRARIES, PeakTracker

MIB = 2**20
CLEAR = Path("/proc/self/clear_refs")
CAN_MEASURE = sys.platform == "linux" and os.access(CLEAR, os.W_OK)


def sizes(text):
    return [int(size) for size in text.split(",")]


def shape(text, dtype=torch.float32, *, wants=False):
    return torch.empty(sizes(text), dtype=dtype, device="meta", requires_grad=wants)


def above_libraries(module, *inputs, training):
    return predict_peak(module, *inputs, training=training) - LIBRARIES


class Chain(nn.Module):
    """x -> x + 1 -> exp -> its sum over the last dimension."""

    def forward(self, x):
        return (x + 1).exp().sum(-1)


def test_a_chain_by_hand():
    n = 7 * 11 * 4
    # x + 1 and exp(x + 1) live together; the sum comes when x + 1 is gone.
    assert above_libraries(Chain(), torch.randn(7, 11), training=False) == 2 * n
    # exp keeps its result; backward: loss and its gradient (4 each), the output, and at exp's
    # derivative the result of exp and its gradient (the expanded ones are views).
    want = 2 * n
    found = above_libraries(Chain(), torch.randn(7, 11, requires_grad=True), training=True)
    assert want <= found <= want + 7 * 4 + 8


def test_gradients_of_parameters_count_and_parameters_do_not():
    layer = nn.Linear(13, 17)
    forward = above_libraries(layer, torch.randn(3, 13), training=False)
    assert forward == 3 * 17 * 4
    training = above_libraries(layer, torch.randn(3, 13), training=True)
    gradients = (13 * 17 + 17) * 4
    assert gradients < training <= gradients + 2 * forward + 8


def test_views_shared_storage_and_things_put_in_place_are_counted_once():
    with PeakTracker([]) as tracker:
        x = torch.empty(5, 7)
        kept = [x.t(), x[1:], x.view(7, 5), x.add_(0)]
        assert tracker.live == 5 * 7 * 4
        del x
        assert tracker.live == 5 * 7 * 4
        kept.clear()
        assert tracker.live == 0
    assert tracker.peak == 5 * 7 * 4


@pytest.mark.parametrize("training", [False, True])
def test_it_leaves_no_trace_and_allocates_nothing(training):
    block = nn.Sequential(nn.BatchNorm2d(24), SelfAttention2d.biggan(24))
    before = {name: value.clone() for name, value in block.state_dict().items()}
    block.eval()
    # Some 100 TiB of scores.
    peak = predict_peak(block, shape("2,24,2311,2309"), training=training)
    assert peak > 2 * 24 * 2311 * 2309 * 4
    assert not any(module.training for module in block.modules())
    assert all(parameter.grad is None for parameter in block.parameters())
    for name, value in block.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_memory_is_linear_in_positions():
    block = SelfAttention2d(64)
    small, large = (
        above_libraries(block, shape(text), training=True)
        for text in ("1,64,67,61", "1,64,268,244")
    )
    assert small > 67 * 61 * 64 * 4
    assert large < 16 * 1.3 * small


def test_refusals(monkeypatch):
    with pytest.raises(ValueError, match="device='tpu'; expected 'cpu' or 'cuda'"):
        predict_peak(nn.Linear(2, 3), torch.zeros(1, 2), training=False, device="tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"no GPU here.*explain_attention"):
        predict_peak(nn.Linear(2, 3), torch.zeros(1, 2), training=False, device="cuda")
    frozen = nn.Linear(2, 3).requires_grad_(False)
    with pytest.raises(ValueError, match="no output has a gradient"):
        predict_peak(frozen, torch.zeros(1, 2), training=True)
    with pytest.raises(ValueError, match="expected a feature map"):
        predict_peak(SelfAttention2d(8), shape("1,7,3,5"), training=False)


def test_several_inputs_and_outputs():
    attend = MultiHeadAttention(12, 3, kdim=7)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = attend

        def forward(self, query, key):
            return self.attend(query, key, need_weights=True, value=torch.zeros_like(query)[:, :5])

    inputs = shape("2,11,12"), shape("2,5,7")
    assert above_libraries(Both(), *inputs, training=True) > 2 * 3 * 11 * 5 * 4


SMALL_MAP, MAP = "1,128,9,7", "2,128,101,97"
CASES = {
    "block, float32, training": ("SelfAttention2d(128)", "float32", SMALL_MAP, MAP, "training"),
    # Twice the samples: where bfloat16 is native there are no float32 tiles.
    "block, bfloat16, training": (
        "SelfAttention2d(128)",
        "bfloat16",
        SMALL_MAP,
        "4,128,101,97",
        "training",
    ),
    "ViT, training": (
        "VisionTransformer(10, num_layers=2)",
        "float32",
        "1,3,32,32",
        "80,3,32,32",
        "training",
    ),
    "tokens, forward": (
        "MultiHeadAttention(384, 6)",
        "float32",
        "1,7,384",
        "11,1025,384",
        "forward",
    ),
    "block, many maps": ("SelfAttention2d(128)", "float32", SMALL_MAP, "32,128,31,33", "training"),
    "block, small maps": ("SelfAttention2d(128)", "float32", SMALL_MAP, "96,128,16,16", "training"),
    "block, small maps, half": (
        "SelfAttention2d(128)",
        "bfloat16",
        SMALL_MAP,
        "160,128,16,16",
        "training",
    ),
    "released form": (
        "SelfAttention2d.biggan(256)",
        "float32",
        "1,256,9,7",
        "8,256,64,61",
        "forward",
    ),
    "released form, training": (
        "SelfAttention2d.biggan(256)",
        "float32",
        "1,256,9,7",
        "5,256,64,61",
        "training",
    ),
    "released form, half": (
        "SelfAttention2d.biggan(256)",
        "bfloat16",
        "1,256,9,7",
        "8,256,64,61",
        "training",
    ),
    "tokens": ("MultiHeadAttention(384, 6)", "float32", "1,7,384", "8,1025,384", "training"),
    "tokens, half": ("MultiHeadAttention(384, 6)", "bfloat16", "1,7,384", "8,1025,384", "training"),
    "CNN": ("SAGANClassifier(10)", "float32", "1,3,32,32", "56,3,32,32", "training"),
    "CNN, forward": ("SAGANClassifier(10)", "float32", "1,3,32,32", "128,3,32,32", "forward"),
    "CNN, half": ("SAGANClassifier(10)", "bfloat16", "1,3,32,32", "96,3,32,32", "training"),
    "ViT, half": ("VisionTransformer(10)", "bfloat16", "1,3,32,32", "40,3,32,32", "training"),
    "U-Net": (
        "models.UNet(timed=False)",
        "float32",
        "1,3,32,32",
        "24,3,32,32",
        "training",
    ),
    "U-Net's form": (
        "SelfAttention2d.unet(64, head_dim=16)",
        "float32",
        "1,64,9,7",
        "4,64,101,97",
        "training",
    ),
    **{
        f"{kind}, {mode}": (
            f"{kind}Attention2d.unet(64, head_dim=16)",
            "float32",
            "1,64,9,8",
            "2,64,131,127",
            mode,
        )
        for kind in ("Window", "Neighborhood", "Axial", "CrissCross")
        for mode in ("forward", "training")
    },
    "ViT, convolutions": (
        "VisionTransformer(10, stem='conv')",
        "float32",
        "1,3,32,32",
        "24,3,32,32",
        "training",
    ),
}


@pytest.mark.skipif(not CAN_MEASURE, reason="the peak of a process cannot be reset here")
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_within_15_percent_of_a_fresh_process(case):
    module, dtype, _, text, mode = case
    wants = mode == "training" and "Attention" in module
    measured = measured_peak(*case, wants)
    network = eval(module, vars(cvattn)).to(getattr(torch, dtype))
    given = shape(text, getattr(torch, dtype), wants=wants)
    predicted = predict_peak(network, given, training=mode == "training")
    assert predicted > 64 * MIB, predicted
    assert predicted == pytest.approx(measured, rel=0.15)
