"""Tools that replace or rebuild layers: the block lives on, or its place is refused, or it raises.

The tools are the real ones: sync and frozen norms of torch and timm, fusion, quantisation, LoRA.
"""

import copy

import pytest
import timm
import torch
import torchvision
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval, parametrizations
from torchvision.ops import FrozenBatchNorm2d

from cvattn import SelfAttention2d, insert_attention, remove_attention

IMAGES = (2, 3, 33, 47)


def small() -> nn.Module:
    return Small().eval()


class Small(nn.Module):
    """Convolutions with and without a norm behind, all functions as modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 7, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.stage = nn.Sequential(nn.Conv2d(7, 6, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, 5)
        for norm in (self.bn1, self.stage[1]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        return self.head(self.stage(self.relu2(self.conv2(x))).mean((2, 3)))


PLACES = [name for name, _ in Small().named_modules() if name and name != "head"]


def sync(model: nn.Module) -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def timm_frozen(model: nn.Module) -> nn.Module:
    return freeze_batch_norm_2d(model)


def torchvision_frozen(model: nn.Module) -> nn.Module:
    """As detectors' users do it."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(module.num_features, eps=module.eps)
            frozen.load_state_dict(module.state_dict(), strict=False)
            model.set_submodule(name, frozen)
    return model


def fused(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.fuse_modules(
        model, [["conv1", "bn1"], ["stage.0", "stage.1", "stage.2"]]
    )


def fused_with_activation(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.fuse_modules(
        model, [["conv1", "bn1", "relu1"], ["conv2", "relu2"], ["stage.0", "stage.1"]]
    )


def fused_by_hand(model: nn.Module) -> nn.Module:
    for first, second in (("conv1", "bn1"), ("stage.0", "stage.1")):
        conv, norm = model.get_submodule(first), model.get_submodule(second)
        model.set_submodule(first, fuse_conv_bn_eval(conv, norm))
        model.set_submodule(second, nn.Identity())
    return model


def dynamically_quantised(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


def parametrized(model: nn.Module) -> nn.Module:
    for name in ("conv1", "conv2", "stage.0"):
        parametrizations.weight_norm(model.get_submodule(name))
    return model


def unmerged_lora(model: nn.Module) -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["conv1", "conv2", "stage.0"])
    return peft.inject_adapter_in_model(config, model)  # which begin at 0


def other_activations(model: nn.Module) -> nn.Module:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU):
            model.set_submodule(name, nn.LeakyReLU(0.0))
    return model


def copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


TOOLS = [
    sync,
    timm_frozen,
    torchvision_frozen,
    fused,
    fused_with_activation,
    fused_by_hand,
    dynamically_quantised,
    parametrized,
    unmerged_lora,
    other_activations,
    copied,
]


@pytest.mark.parametrize("tool", TOOLS, ids=[tool.__name__ for tool in TOOLS])
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_block_lives_on_or_says_that_it_does_not(tool):
    lived, raised, refused = [], [], []
    images = torch.randn(IMAGES)
    for place in PLACES:
        model = small()
        try:
            insert_attention(model, after=place, example=torch.zeros(IMAGES))
        except ValueError as error:
            assert "insert after" in str(error)  # noqa: PT017
            refused.append(place)
            continue
        model.get_submodule(place).inserted_attention.gamma.data.fill_(0.7)
        with torch.no_grad():
            want = model(images)
            model = tool(model)
            try:
                got = model(images)
            except RuntimeError as error:
                assert f"the attention behind '{place}' does not run any more" in str(error)  # noqa: PT017
                raised.append(place)
                continue
        # Dynamic quantisation changes the head itself, by up to a step of 8 bits.
        tolerance = 0.05 if tool is dynamically_quantised else 1e-5
        assert (got - want).abs().max() <= tolerance * want.abs().max(), place
        lived.append(place)
    assert "stage" in lived
    assert {"bn1", "stage.1", "conv1", "stage.0"} == set(refused)
    if tool not in (fused, fused_with_activation, unmerged_lora, other_activations):
        assert not raised


def test_case_7_sync_norms():
    model = torchvision.models.resnet18(num_classes=5).eval()
    with pytest.raises(ValueError, match=r"'bn1' is a norm .*; insert after 'relu' instead"):
        insert_attention(model, after=["bn1", "layer3.0.bn2"])
    with pytest.raises(ValueError, match=r"'layer3.0.bn2' is a norm .*; insert after"):
        insert_attention(model, after="layer3.0.bn2")
    insert_attention(model, after=["relu", "layer3.0"])
    for name in ("relu", "layer3.0"):
        model.get_submodule(name).inserted_attention.gamma.data.fill_(1.0)
    images = torch.randn(1, 3, 64, 96)
    want = model(images)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    assert torch.equal(model(images), want)


def test_norms_of_timm_and_what_is_inside_them():
    model = timm.create_model("efficientnet_b0", num_classes=5)
    for place in ("bn1", "bn1.act"):
        with pytest.raises(ValueError, match="'bn1' is a norm"):
            insert_attention(model, after=place)


def test_a_lost_block_can_be_taken_out_and_put_in_again():
    model = insert_attention(small(), after=["relu1", "stage"], example=torch.zeros(IMAGES))
    model.relu1 = nn.ReLU()
    images = torch.randn(IMAGES)
    for other in (model, copy.deepcopy(model)):
        with pytest.raises(RuntimeError, match=r"behind 'relu1' does not run any more"):
            other(images)
    remove_attention(model)
    model(images)
    assert not model._forward_pre_hooks
    insert_attention(model, after="relu1", example=torch.zeros(IMAGES))
    model(images)


def test_the_loss_shows_in_compiled_models_too():
    model = insert_attention(small(), after=["relu1", "stage"], example=torch.zeros(IMAGES))
    images = torch.randn(IMAGES)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images), model(images))
    broken = copy.deepcopy(model)
    broken.relu1 = nn.ReLU()
    torch._dynamo.reset()
    with pytest.raises(RuntimeError):
        torch.compile(broken, backend="eager")(images)


def test_hooks_that_others_move_do_no_harm():
    """Fusion moves the last layer's hooks to the layer that it makes."""
    model = insert_attention(small(), after="relu2", example=torch.zeros(IMAGES))
    model.conv1.register_forward_hook(next(iter(model.relu2._forward_hooks.values())))
    images = torch.randn(IMAGES)
    assert torch.equal(model(images), remove_attention(model)(images))


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
def test_quantised_maps_are_refused():
    class Quantises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Quantises())
    with pytest.raises(ValueError, match=r"gives a map of quint8.*before quantisation"):
        insert_attention(model, after="1")
    assert isinstance(insert_attention(model, after="0")[0].inserted_attention, SelfAttention2d)
