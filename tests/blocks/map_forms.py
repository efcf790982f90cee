"""The forms of attention blocks on maps, and the formula of those that see all of a map."""

from functools import partial

import torch
import torch.nn.functional as F
from oracles import fill, loop_attention
from torch import Tensor, nn

from cvattn import SelfAttention2d

CHANNELS = 12
FORMS = {
    "common": partial(SelfAttention2d, CHANNELS),
    "biggan": partial(SelfAttention2d.biggan, CHANNELS, spectral_norm=False),
    "unet": partial(SelfAttention2d.unet, CHANNELS, head_dim=4, groups=3),
    "unet, one head": partial(SelfAttention2d.unet, CHANNELS, groups=6),
    "unet, where": partial(SelfAttention2d.unet, CHANNELS, head_dim=6, groups=1, grid=(5, 7)),
    "non_local": partial(SelfAttention2d.non_local, CHANNELS),
    "non_local, plain": partial(SelfAttention2d.non_local, CHANNELS, batch_norm=False),
    "everything": partial(
        SelfAttention2d,
        CHANNELS,
        qk_channels=6,
        value_channels=10,
        num_heads=2,
        norm_groups=4,
        scale=0.3,
        gamma_init=0.5,
        grid=(3, 2),
    ),
}


def acting(block: nn.Module) -> nn.Module:
    """In eval mode, with other values than its first, so that it does something to its input."""
    fill(block)
    for module in block.modules():
        if getattr(module, "gamma", None) is not None:
            module.gamma.data.fill_(-0.7)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return block.eval()


def formula(block: SelfAttention2d, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """One sample after the other, of its real positions alone, from the block's weights."""
    samples = []
    for b, image in enumerate(x):
        real = torch.ones_like(image[0]).bool() if mask is None else mask[b]
        samples.append(image.clone())
        if real.any():
            samples[-1][:, real] = _of_positions(block, image, real)
    return torch.stack(samples)


def _of_positions(block: SelfAttention2d, image: Tensor, real: Tensor) -> Tensor:
    tokens = image[:, real]  # (C, n)
    normed = tokens
    if block.norm is not None:
        groups = tokens.unflatten(0, (block.norm.num_groups, -1))
        mean = groups.mean((1, 2), keepdim=True)
        variance = groups.var((1, 2), unbiased=False, keepdim=True)
        normed = ((groups - mean) / (variance + block.norm.eps).sqrt()).flatten(0, 1)
        normed = normed * block.norm.weight[:, None] + block.norm.bias[:, None]
    q = _heads(block, block.query, normed)
    k, v = (
        _heads(block, layer, normed, image=None if block.kv_pool == 1 else image, real=real)
        for layer in (block.key, block.value)
    )
    bias = None
    if block.relative_bias is not None:
        bias = _offset_bias(block.relative_bias.table, real)
    output, _ = loop_attention(q, k, v, attn_bias=bias, scale=block.scale)
    attended = output[0].transpose(1, 2).flatten(0, 1)  # (heads * d, n)
    if isinstance(block.proj, nn.Sequential):
        conv, norm = block.proj
        attended = _linear(conv, attended)
        attended = F.batch_norm(
            attended[None], norm.running_mean, norm.running_var, norm.weight, norm.bias
        )[0]
    elif block.proj is not None:
        attended = _linear(block.proj, attended)
    return tokens + (attended if block.gamma is None else block.gamma * attended)


def _heads(block, layer, tokens, *, image=None, real=None) -> Tensor:
    """(1, heads, n, d); pooled where an image is given, over the squares of what is real."""
    projected = _linear(layer, tokens)
    if image is not None:
        whole = projected.new_full((projected.shape[0], *real.shape), float("-inf"))
        whole[:, real] = projected
        side, squares = block.kv_pool, []
        for top in range(0, real.shape[0], side):
            for left in range(0, real.shape[1], side):
                if real[top : top + side, left : left + side].any():
                    squares.append(whole[:, top : top + side, left : left + side].amax((1, 2)))
        projected = torch.stack(squares, 1)
    return projected.unflatten(0, (block.num_heads, -1)).mT[None]


def _linear(layer: nn.Conv2d, tokens: Tensor) -> Tensor:
    out = layer.weight[:, :, 0, 0] @ tokens
    return out if layer.bias is None else out + layer.bias[:, None]


def _offset_bias(table: Tensor, real: Tensor) -> Tensor:
    heads, rows, columns = table.shape
    places = real.nonzero().tolist()
    bias = table.new_empty(heads, len(places), len(places))
    for i, (y, x) in enumerate(places):
        for j, (v, u) in enumerate(places):
            row = min(max(v - y, -(rows // 2)), rows // 2) + rows // 2
            column = min(max(u - x, -(columns // 2)), columns // 2) + columns // 2
            bias[:, i, j] = table[:, row, column]
    return bias[None]
