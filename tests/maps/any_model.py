"""Networks of other libraries, small, and how each says itself what it attends to."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

Weights = dict[str, Tensor]
SIZE = (48, 80)


@dataclass(frozen=True)
class Case:
    """A network, what it is given besides images, and its own account of its weights."""

    build: Callable[[], nn.Module]
    weights: Callable[[nn.Module, Callable[[], Any]], Weights]
    run: Callable[[nn.Module, Tensor], Any] = lambda model, images: model(images)
    size: tuple[int, int] = SIZE
    channels: int = 3
    blurred: bool = False  # convolutions before the attention spread what they see
    float32: bool = False  # its own softmax is in float32, whatever it is given

    def images(self) -> Tensor:
        torch.manual_seed(5)
        return torch.randn(2, self.channels, *self.size, dtype=torch.float64)


def of_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=5, **options)


def unfused(model: nn.Module, run: Callable[[], Any]) -> Weights:
    """timm's own softmax, as its dropout gets it."""
    seen: Weights = {}
    handles, blocks = [], []
    for name, block in model.named_modules():
        if hasattr(block, "attn_drop"):
            blocks.append((block, getattr(block, "fused_attn", False)))
            block.fused_attn = False

            def note(_: nn.Module, args: tuple, __: Tensor, name: str = name) -> None:
                seen[name] = args[0].detach()

            handles.append(block.attn_drop.register_forward_hook(note))
    run()
    for handle in handles:
        handle.remove()
    for block, fused in blocks:
        block.fused_attn = fused
    return seen


def of_torch(model: nn.Module, run: Callable[[], Any]) -> Weights:
    """``nn.MultiheadAttention`` asked again for its weights, on the inputs that it was given."""
    given: dict[str, tuple] = {}
    blocks = {n: m for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)}
    handles = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: given.update({name: (args, kwargs)}),
            with_kwargs=True,
        )
        for name, block in blocks.items()
    ]
    run()
    for handle in handles:
        handle.remove()
    return {
        name: blocks[name](*args, **kwargs | {"need_weights": True, "average_attn_weights": False})[
            1
        ].detach()
        for name, (args, kwargs) in given.items()
    }


def of_transformers(names: str) -> Callable[[nn.Module, Callable[[], Any]], Weights]:
    """What an eager twin gives for ``output_attentions``."""

    def weights(model: Any, _: Callable[[], Any]) -> Weights:
        config = copy.deepcopy(model.config)
        twin = type(model)._from_config(config, attn_implementation="eager").double().eval()
        twin.load_state_dict(model.state_dict())
        found = twin(Case.images(CASES_BY_MODEL[type(model).__name__]), output_attentions=True)
        return {names.format(i): w for i, w in enumerate(found.attentions)}

    return weights


CASES_BY_MODEL: dict[str, Case] = {}


def of_diffusers(model: Any, run: Callable[[], Any]) -> Weights:
    """The scores of diffusers' processor without fused attention."""
    from diffusers.models.attention_processor import Attention, AttnProcessor

    seen: Weights = {}
    blocks = [(n, m) for n, m in model.named_modules() if isinstance(m, Attention)]
    before = [block.processor for _, block in blocks]
    for name, block in blocks:
        block.set_processor(AttnProcessor())
        scores = block.get_attention_scores

        def note(*args: Any, name: str = name, block: Any = block, scores: Any = scores) -> Tensor:
            found = scores(*args)
            seen[name] = found.detach().unflatten(0, (-1, block.heads))
            return found

        block.get_attention_scores = note
    run()
    for (_, block), processor in zip(blocks, before, strict=True):
        del block.get_attention_scores
        block.set_processor(processor)
    return seen


def of_monai(model: nn.Module, run: Callable[[], Any]) -> Weights:
    """What MONAI saves if it is told to."""
    from monai.networks.blocks.selfattention import SABlock

    blocks = [(n, m) for n, m in model.named_modules() if isinstance(m, SABlock)]
    for _, block in blocks:
        block.save_attn = True
    run()
    return {name: block.att_mat for name, block in blocks}


def swin_of_torchvision(model: nn.Module, run: Callable[[], Any]) -> Weights:
    """All positions with all, where they share a window after the shift; maps that divide."""
    from torchvision.models.swin_transformer import ShiftedWindowAttention

    given: dict[str, Tensor] = {}
    blocks = {n: m for n, m in model.named_modules() if isinstance(m, ShiftedWindowAttention)}
    handles = [
        block.register_forward_pre_hook(
            lambda _, args, name=name: given.update({name: args[0].detach()})
        )
        for name, block in blocks.items()
    ]
    run()
    for handle in handles:
        handle.remove()
    return {name: _windows_by_hand(blocks[name], x) for name, x in given.items()}


def _windows_by_hand(block: Any, x: Tensor) -> Tensor:
    height, width, channels = x.shape[1:]
    (side_y, side_x), (by_y, by_x) = block.window_size, block.shift_size
    by_y, by_x = by_y * (side_y < height), by_x * (side_x < width)
    assert height % side_y == width % side_x == 0
    q, k, _ = block.qkv(x.flatten(1, 2)).unflatten(-1, (3, block.num_heads, -1)).unbind(2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (channels // block.num_heads) ** -0.5
    y, x_ = (
        t.flatten()
        for t in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    y, x_ = (y - by_y) % height, (x_ - by_x) % width  # where the shift takes it
    # Windows, and within them the parts that the roll has brought together.
    part = torch.stack([y // side_y, x_ // side_x, y >= height - by_y, x_ >= width - by_x])
    together = (part[:, :, None] == part[:, None]).all(0)
    table = block.relative_position_bias_table.unflatten(0, (2 * side_y - 1, 2 * side_x - 1))
    dy, dx = y[:, None] - y, x_[:, None] - x_
    inside = (dy.abs() < side_y) & (dx.abs() < side_x)
    bias = table[(dy + side_y - 1) * inside, (dx + side_x - 1) * inside].permute(2, 0, 1)
    return (scores + bias).masked_fill(~together, float("-inf")).softmax(-1)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(24, 4, 40, batch_first=True)
    return nn.Sequential(
        nn.Conv2d(3, 24, 16, 16), nn.Flatten(2), Turned(), nn.TransformerEncoder(layer, 2)
    )


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mT


def transformers_vit() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        image_size=SIZE, patch_size=16,
    )  # fmt: skip
    return transformers.ViTModel(config)


def transformers_clip() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        image_size=48, patch_size=16,
    )  # fmt: skip
    return transformers.CLIPVisionModel(config)


UNET = {"in_channels": 3, "out_channels": 3, "block_out_channels": (16, 32), "norm_num_groups": 8}


def diffusers_unet() -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    return diffusers.UNet2DModel(
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
        layers_per_block=1, **UNET,
    )  # fmt: skip


def diffusers_words() -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    return diffusers.UNet2DConditionModel(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=2,
        layers_per_block=1, cross_attention_dim=20, **UNET,
    )  # fmt: skip


def diffusers_autoencoder() -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def monai_vit() -> nn.Module:
    nets = pytest.importorskip("monai.networks.nets")
    return nets.ViT(
        3, SIZE, (16, 16), hidden_size=24, mlp_dim=40, num_layers=2, num_heads=4,
        classification=True, spatial_dims=2,
    )  # fmt: skip


def monai_unet() -> nn.Module:
    nets = pytest.importorskip("monai.networks.nets")
    return nets.DiffusionModelUNet(
        2, 3, 3, channels=(8, 16), attention_levels=(False, True), num_res_blocks=1,
        num_head_channels=8, norm_num_groups=8,
    )  # fmt: skip


def at_time(model: nn.Module, images: Tensor, *more: Tensor) -> Any:
    return model(images, torch.tensor([3, 90]), *more)


def with_words(model: nn.Module, images: Tensor) -> Any:
    words = torch.arange(280.0, dtype=images.dtype).sin().reshape(2, 7, 20)
    return at_time(model, images, words)


SMALL = (16, 24)
CASES: dict[str, Case] = {
    "timm ViT": Case(of_timm("vit_tiny_patch16_224", depth=2, img_size=SIZE), unfused),
    "timm ViT, unfused": Case(of_timm("vit_tiny_patch16_224", depth=2, img_size=SIZE), unfused),
    "timm DINOv2, registers": Case(
        of_timm("vit_small_patch14_reg4_dinov2", depth=2, img_size=(42, 70)), unfused, size=(42, 70)
    ),
    "timm DINOv3": Case(of_timm("vit_small_patch16_dinov3", depth=2), unfused),
    "timm DeiT, distilled": Case(
        of_timm("deit_tiny_distilled_patch16_224", depth=2, img_size=SIZE), unfused
    ),
    "timm PVT": Case(of_timm("pvt_v2_b0"), unfused, size=(64, 96), blurred=True),
    "torchvision ViT": Case(
        lambda: torchvision.models.VisionTransformer(48, 16, 2, 4, 24, 40, num_classes=5),
        of_torch, size=(48, 48),
    ),
    "torchvision Swin": Case(
        lambda: torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [3, 5]),
        swin_of_torchvision, size=(48, 80),
    ),
    "torch TransformerEncoder": Case(encoder, of_torch),
    "transformers ViT": Case(
        transformers_vit, of_transformers("layers.{}.attention"), float32=True
    ),
    "transformers CLIP": Case(
        transformers_clip, of_transformers("encoder.layers.{}.self_attn"), size=(48, 48),
        float32=True,
    ),
    "diffusers UNet2DModel": Case(
        diffusers_unet, of_diffusers, at_time, size=SMALL, blurred=True, float32=True
    ),
    "diffusers UNet2DConditionModel": Case(
        diffusers_words, of_diffusers, with_words, size=SMALL, blurred=True
    ),
    "diffusers AutoencoderKL": Case(
        diffusers_autoencoder, of_diffusers, size=SMALL, blurred=True, float32=True
    ),
    "MONAI ViT": Case(monai_vit, of_monai),
    "MONAI DiffusionModelUNet": Case(monai_unet, of_monai, at_time, size=SMALL, blurred=True),
}  # fmt: skip


def transformers_swin() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=SIZE, patch_size=4, embed_dim=12, depths=[2, 2], num_heads=[2, 4], window_size=5
    )
    return transformers.SwinModel(config)


def monai_swin() -> nn.Module:
    nets = pytest.importorskip("monai.networks.nets")
    return nets.SwinUNETR(3, 2, feature_size=12, spatial_dims=2)


def no_account(*_: Any) -> Weights:
    raise AssertionError("of these the place is tested alone, or elsewhere")


# Of windows: the map need not divide into them.
WINDOWED: dict[str, Case] = {
    "timm Swin": Case(
        of_timm("swin_tiny_patch4_window7_224", depths=(2, 2, 1, 1), img_size=(64, 96)),
        no_account, size=(64, 96),
    ),
    "timm Swin v2": Case(
        of_timm("swinv2_tiny_window8_256", depths=(2, 2, 1, 1), img_size=(64, 128)),
        no_account, size=(64, 128),
    ),
    "timm MaxViT": Case(
        of_timm("maxvit_rmlp_pico_rw_256", img_size=(64, 96)),
        no_account, size=(64, 96), blurred=True,
    ),
    "transformers Swin": Case(transformers_swin, no_account),
    "MONAI SwinUNETR": Case(monai_swin, no_account, size=(64, 96)),
}  # fmt: skip
CASES_BY_MODEL |= {
    "ViTModel": CASES["transformers ViT"],
    "CLIPVisionModel": CASES["transformers CLIP"],
}


def made(case: Case) -> nn.Module:
    torch.manual_seed(3)
    return case.build().double().eval()
