import pytest
import torch
from torch import nn

from cvattn.harness import precision
from cvattn.harness.precision import probe_precision
from cvattn.models import SAGAN, SAGANClassifier, UNet


def test_the_network_and_the_random_state_are_left_alone():
    network = SAGANClassifier(5, widths=(4, 8, 5), image_size=(11, 9))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    state = torch.get_rng_state()
    decision = probe_precision(network, torch.randn(11, 3, 11, 9), channels_last=True)
    assert decision.choice in ("bf16-mixed", "32-true")
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    torch.set_rng_state(state)


@pytest.mark.parametrize(
    ("network", "inputs"),
    [
        (
            SAGAN(3, image_size=16, classes=3, noise_dim=5, width=4),
            (torch.randn(5, 5), torch.arange(5) % 3),
        ),
        (
            UNet(3, image_size=(16, 24), classes=3, width=8),
            (torch.randn(5, 3, 16, 24), torch.rand(5), torch.arange(5) % 3),
        ),
    ],
    ids=["noise and labels", "images, times and labels"],
)
def test_images_alone_become_channels_last(network, inputs):
    seen = []
    network.register_forward_pre_hook(lambda _, given: seen.append(given))
    probe_precision(network, *inputs, channels_last=True)
    assert seen
    for given, wanted in [pair for call in seen for pair in zip(call, inputs, strict=True)]:
        assert torch.equal(given, wanted)
        assert given.ndim != 4 or given.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("losses", "times", "choice", "reason"),
    [
        ((2.0, 2.01), (3.0, 1.0), "bf16-mixed", "3.0 times"),
        ((2.0, 2.01), (1.1, 1.0), "32-true", "1.1 times"),
        ((2.0, 2.5), (3.0, 1.0), "32-true", "25% off"),
        ((2.0, float("nan")), (3.0, 1.0), "32-true", "off"),
    ],
)
def test_bf16_must_be_right_and_faster(monkeypatch, losses, times, choice, reason):
    measured = dict(zip((False, True), zip(losses, times, strict=True), strict=True))
    monkeypatch.setattr(precision, "_measure", lambda *_, enabled: measured[enabled])
    decision = probe_precision(nn.Identity(), torch.zeros(1), channels_last=False)
    assert decision.choice == choice
    assert reason in decision.reason
