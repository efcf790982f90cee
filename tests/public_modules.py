"""Every public module, small, with what it is called with."""

from functools import partial

import pytest
import torch

from cvattn import SelfAttention2d
from cvattn.blocks import (
    AxialAttention2d,
    AxisAttention2d,
    CrissCrossAttention2d,
    CrossAttention2d,
    MapAttention,
    NeighborhoodAttention2d,
    SelfAttention1d,
    SelfAttention3d,
    WindowAttention2d,
)
from cvattn.blocks.group_norm import MapGroupNorm
from cvattn.blocks.local_attention2d import LocalAttention2d
from cvattn.blocks.self_attention import SelfAttention
from cvattn.core import (
    AxialRotary,
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    MultiHeadAttention,
    Rotary,
)
from cvattn.core.feed_forward import FeedForward, QuickGELU
from cvattn.core.initial_values import ComputedTable
from cvattn.core.norms import RMSNorm
from cvattn.core.positions import LearnedGridPositions, SinusoidalPositions
from cvattn.core.relative_bias import RelativeGridBias
from cvattn.core.residual import DropPath, LayerScale
from cvattn.core.rotary import RotaryTable
from cvattn.models import (
    SAGAN,
    Reader,
    SAGANClassifier,
    SAGANDiscriminator,
    SAGANGenerator,
    SegmentationNetwork,
    TimmCNN,
    Transformer,
    UNet,
    VisionTransformer,
)
from cvattn.models.attention_pool import AttentionPool
from cvattn.models.controls import ConvolutionControl, WideConvolution
from cvattn.models.image_tokens import ImageTokens
from cvattn.models.sagan_gan_layers import ClassBatchNorm, DiscriminatorBlock, GeneratorBlock
from cvattn.models.token_decoder import TokenDecoder
from cvattn.models.trained_input import TrainedInput
from cvattn.models.unet_layers import ResidualBlock, TimeEmbedding, UNetStage
from cvattn.models.whitening import PatchWhitening

TOKENS = torch.randn(2, 7, 24)
MAP = torch.randn(2, 24, 5, 7)
IMAGES = torch.randn(2, 3, 32, 32)
IDS = torch.tensor([[3, 5, 2, 0], [4, 1, 6, 7]])
NOISE = torch.randn(2, 7)
SMALL_IMAGES = torch.randn(2, 3, 16, 16)
GAN = {"image_size": 16, "width": 12, "classes": 5}
TIMES, LABELS = torch.tensor([0.3, 0.9]), torch.tensor([4, 1])
LINES = (torch.randn(2, 1, 32, 90), torch.tensor([90, 61]), IDS)
VIT = {"embed_dim": 24, "num_heads": 3, "ffn_dim": 40, "num_layers": 2, "patch_size": 8}
SEQ = {"embed_dim": 24, "num_heads": 3, "ffn_dim": 40}

# class -> its options, one dictionary for each case; the arguments; the inputs.
CASES = {
    SelfAttention2d: (
        [
            {},
            {"gamma_init": 0.7},
            {"num_heads": 3},
            {"kv_pool": 2},
            {"gamma_init": None, "norm_groups": 3, "grid": (5, 7)},
        ],
        (24,),
        (MAP,),
    ),
    SelfAttention1d: ([{"kv_pool": 2}], (24,), (MAP.flatten(2),)),
    SelfAttention3d: ([{"norm_groups": 6}], (24,), (MAP[:, :, None],)),
    CrossAttention2d: ([{}, {"norm_groups": 3, "gamma_init": None}], (24,), (MAP, TOKENS)),
    WindowAttention2d: ([{"window": 3, "relative_bias": True}], (24,), (MAP,)),
    NeighborhoodAttention2d: ([{"window": 3, "relative_bias": True}], (24,), (MAP,)),
    AxisAttention2d: ([{"axis": "row"}], (24,), (MAP,)),
    AxialAttention2d: ([{"norm_groups": 3}], (24,), (MAP,)),
    CrissCrossAttention2d: ([{"gamma_init": None}], (24,), (MAP,)),
    MapGroupNorm: ([{}], (3, 24), (MAP,)),
    MultiHeadAttention: (
        [
            {},
            {"bias": False},
            {"add_bias_kv": True, "add_zero_attn": True},
            {"qk_norm": "layer", "qkv_bias": "qv"},
            {"qk_norm": "rms"},
        ],
        (24, 3),
        (TOKENS,),
    ),
    FeedForward: (
        [
            {},
            {"activation": "relu", "bias": False},
            {"activation": "swiglu", "norm": "layer"},
            {"activation": "quick_gelu", "norm": "rms"},
        ],
        (24, 40),
        (TOKENS,),
    ),
    RMSNorm: ([{}], (24,), (TOKENS,)),
    QuickGELU: ([{}], (), (TOKENS,)),
    Rotary: ([{}, {"max_length": 3}], (8,), (7, {"start": 2})),
    AxialRotary: (
        [{}, {"coordinates": "centered", "pairs": "halves", "prefix": 2}],
        (8, (5, 7)),
        ((5, 7),),
    ),
    EncoderLayer: (
        [{}, {"layer_scale": 0.3, "norm_first": False}, {"norm": "rms", "ffn_norm": True}],
        (24, 3, 40),
        (TOKENS,),
    ),
    Encoder: ([{}, {"layer_scale": 0.3, "drop_path": 0.2}], (24, 3, 40, 2), (TOKENS,)),
    DecoderLayer: ([{}, {"norm_first": False}], (24, 3, 40), (TOKENS, TOKENS)),
    Decoder: ([{}, {"norm_first": False}], (24, 3, 40, 2), (TOKENS, TOKENS)),
    LayerScale: ([{}], (24, 0.3), (TOKENS,)),
    DropPath: ([{}], (0.3,), (TOKENS,)),
    SinusoidalPositions: ([{}, {"max_length": 3}], (24,), (TOKENS,)),
    LearnedGridPositions: ([{}], (24, (1, 7)), (TOKENS, {"grid": (1, 7)})),
    AttentionPool: ([{}, {"norm": "rms"}], (24, 3, 40), (TOKENS,)),
    RelativeGridBias: ([{}], (3, (5, 7)), ((5, 7),)),
    ConvolutionControl: ([{"positions": 35}], (24,), (MAP,)),
    WideConvolution: ([{"positions": 35, "dilation": 2}], (24,), (MAP,)),
    PatchWhitening: ([{}], (24,), (MAP,)),
    SAGANClassifier: (
        [
            {"widths": (8, 16, 8), "attention": attention, "attention_after": ("stem", "stage2")}
            for attention in ("common", "pooled", "biggan", "unet", "frozen", "convolution", "none")
        ],
        (5,),
        (IMAGES,),
    ),
    ClassBatchNorm: ([{}], (24, 5), (MAP, LABELS)),
    GeneratorBlock: ([{"classes": 5, "upsampling": "bilinear"}], (24, 12), (MAP, LABELS)),
    DiscriminatorBlock: ([{}, {"first": True}], (24, 12), (MAP,)),
    SAGANGenerator: (
        [GAN | {"noise_dim": 7, "attention": "frozen", "spectral_norm_labels": False}],
        (3,),
        (NOISE, LABELS),
    ),
    SAGANDiscriminator: (
        [GAN | {"attention": "convolution", "init": "xavier"}],
        (3,),
        (SMALL_IMAGES, LABELS),
    ),
    SAGAN: ([GAN | {"noise_dim": 7, "spectral_norm_generator": False}], (), (NOISE, LABELS)),
    VisionTransformer: (
        [
            VIT | extra
            for extra in (
                {},
                {"positions": "sincos"},
                {"positions": "sincos", "pool": "cls", "relative_bias": True},
                {"pool": "cls", "stem": "conv", "layer_scale": 1e-4, "drop_path": 0.1},
                {"pool": "attention", "num_registers": 2, "rotary": {}, "positions": "none"},
                {"class_token": True, "pre_norm": True, "fc_norm": True, "norm": "rms"},
            )
        ],
        (5,),
        (IMAGES,),
    ),
    Transformer: ([SEQ, SEQ | {"norm_first": False}], (11, 12), (IDS, IDS)),
    Reader: ([SEQ, SEQ | {"tied": True}, SEQ | {"positions": "counted"}], (12,), LINES),
    TimeEmbedding: ([{}], (5, 24), (TIMES, torch.float32)),
    ResidualBlock: ([{"embed_dim": 7}], (24, 12), (MAP, TOKENS[:, 0, :7])),
    UNetStage: ([{"size": (5, 7), "attention": "unet"}], (24, 12), (MAP,)),
    UNet: (
        [
            {"classes": 4, "attention": attention}
            for attention in ("unet", "common", "window", "none", "frozen", "convolution")
        ],
        (),
        (IMAGES, TIMES, LABELS),
    ),
    TrainedInput: ([{}], (3,), (IMAGES,)),
    TimmCNN: (
        [{}, {"attention": {"after": "blocks.2", "block": "biggan"}, "small_images": True}],
        ("lcnet_035", 5),
        (IMAGES,),
    ),
    SegmentationNetwork: (
        [
            {"encoder": "test_resnet", "image_size": (32, 32), "head": head, "width": 24}
            for head in ("fcn", "attention", "dilated")
        ],
        (43,),
        (IMAGES,),
    ),
}
ABSTRACT = {
    ComputedTable,
    TokenDecoder,
    MapAttention,
    SelfAttention,
    LocalAttention2d,
    RotaryTable,
    ImageTokens,
}


def _cases():
    for kind, (options, args, inputs) in CASES.items():
        for number, each in enumerate(options):
            yield pytest.param(partial(kind, *args, **each), inputs, id=f"{kind.__name__}-{number}")
    presets = {
        "biggan": SelfAttention2d.biggan,
        "biggan plain": partial(SelfAttention2d.biggan, spectral_norm=False),
        "unet": partial(SelfAttention2d.unet, head_dim=8, groups=6),
        "non_local": SelfAttention2d.non_local,
        "non_local plain": partial(SelfAttention2d.non_local, batch_norm=False),
    }
    for name, preset in presets.items():
        yield pytest.param(partial(preset, 24), (MAP,), id=name)


every_module = pytest.mark.parametrize(("make", "inputs"), list(_cases()))
