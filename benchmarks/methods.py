"""A case's methods as things that can be run: modules with equal weights, inputs, one step."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from cases import BOTH, MHA, MHA_WEIGHTS, OURS, ROW, TIMM, TOKEN_SDPA, Case
from forms import build_form
from peers import (
    CommonSelfAttention,
    SdpaSelfAttention,
    TokenSdpa,
    timm_attention,
    torch_attention,
)
from torch import Tensor, nn

from cvattn import MultiHeadAttention, SelfAttention2d
from cvattn.core import masks

SEED = 20263
# Large enough that attention's part of the output is not lost beside x in bfloat16.
GAMMA = 2.0
TINY_BATCH, TINY_SIDE, TINY_TOKENS = 8, 16, 16
# Distance / length (2-norms), of attention's part of the output and of the input's gradient.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


class Method(NamedTuple):
    """A module, how it is called, and the memory format of its input."""

    module: nn.Module
    call: Callable[[nn.Module, Tensor], Tensor]
    layout: torch.memory_format


class Data(NamedTuple):
    """The input, and the gradient that comes back to the output."""

    x: Tensor
    upstream: Tensor


def build_method(case: Case, name: str) -> Method:
    """The named method of the case. Every method of a case gets the same weights."""
    torch.manual_seed(SEED)
    layout = torch.channels_last if name.endswith("channels_last") else torch.contiguous_format
    kind = name.removesuffix(" channels_last")
    call: Callable[[nn.Module, Tensor], Tensor] = _call
    module: nn.Module
    if case.kind in ("map", "pooled"):
        ours = _our_block(case)
        peers = {"common": CommonSelfAttention, "SDPA": SdpaSelfAttention}
        module = ours if kind == OURS else peers[kind](ours)
    elif len(case.shape) == 4:
        module = build_form(case, kind)
    else:
        tokens = _our_tokens(case)
        modules = {
            TOKEN_SDPA: TokenSdpa,
            TIMM: timm_attention,
            MHA: torch_attention,
            MHA_WEIGHTS: torch_attention,
        }
        module = modules[kind](tokens) if kind in modules else tokens
        call = {ROW: _call_row, MHA: _call_torch, MHA_WEIGHTS: _call_torch_weights}.get(kind, _call)
        if case.mask:
            call = _masked_call(case, kind)
    dtype = getattr(torch, case.dtype)
    return Method(module.to(dtype=dtype, memory_format=layout).train(), call, layout)


def make_data(case: Case, layout: torch.memory_format, *, tiny: bool = False) -> Data:
    """Equal numbers for every method; ``tiny`` is for loading kernels without using memory."""
    shape = case.shape
    if tiny:
        batch = min(shape[0], TINY_BATCH)  # one sample alone takes other kernels
        grid = (TINY_SIDE, TINY_SIDE)
        shape = (batch, shape[1], *grid) if len(shape) == 4 else (batch, TINY_TOKENS, shape[2])
    generator = torch.Generator().manual_seed(SEED)
    x, upstream = (
        torch.randn(shape, generator=generator).to(getattr(torch, case.dtype)) for _ in range(2)
    )
    if len(shape) == 4:
        x, upstream = (t.contiguous(memory_format=layout) for t in (x, upstream))
    return Data(x.requires_grad_(case.passes == BOTH), upstream)


def step(case: Case, method: Method, data: Data) -> tuple[Tensor, ...]:
    """(output,) of a forward pass, or (output, gradient of x, gradients of all parameters)."""
    if case.passes != BOTH:
        with torch.no_grad():
            return (method.call(method.module, data.x),)
    output = method.call(method.module, data.x)
    wanted = [data.x, *method.module.parameters()]
    return (output.detach(), *torch.autograd.grad(output, wanted, data.upstream))


def exact_step(case: Case) -> tuple[Tensor, ...]:
    """The subject's step in float64, on the weights and numbers that the case's dtype has."""
    method = build_method(case, case.subject)
    data = make_data(case, method.layout)
    x = data.x.detach().double().requires_grad_(data.x.requires_grad)
    exact = method._replace(module=method.module.double())
    return step(case, exact, Data(x, data.upstream.double()))


def distance(case: Case, data: Data, ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """How far apart two methods are: the larger of the relative 2-norms of output and gradient.

    x is taken out of a block's output, and the upstream gradient out of its gradient: the residual
    would hide that attention itself differs.
    """
    residual = len(case.shape) == 4
    worst = 0.0
    for mine, other, through in zip(ours[:2], theirs[:2], data, strict=False):
        a, b = mine.detach().float(), other.detach().float()
        if residual:
            a, b = a - through.detach().float(), b - through.detach().float()
        worst = max(worst, float((a - b).norm() / b.norm()))
    return worst


def _our_block(case: Case) -> SelfAttention2d:
    channels = case.shape[1]
    block = (
        SelfAttention2d.biggan(channels, spectral_norm=False)
        if case.kind == "pooled"
        else SelfAttention2d(channels)
    )
    with torch.no_grad():
        # Scores with a standard deviation near 2: a softmax that is neither flat nor a single 1.
        qk_channels = block.query.weight.shape[0]
        for layer, width in (
            (block.query, qk_channels),
            (block.key, qk_channels),
            (block.value, 4),
        ):
            layer.weight.normal_(std=channels**-0.5 * (4 / width) ** 0.25)
        block.gamma.fill_(GAMMA)
    return block


def _our_tokens(case: Case) -> MultiHeadAttention:
    module = MultiHeadAttention(case.shape[2], case.heads)
    with torch.no_grad():
        for layer in (module.q_proj, module.k_proj, module.v_proj, module.out_proj):
            layer.bias.normal_(std=0.1)  # they start at 0, which hides one put in the wrong place
    return module


def _call(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


def _masked_call(case: Case, kind: str) -> Callable[[nn.Module, Tensor], Tensor]:
    """The call with the case's mask, as each side takes it: True hides in ``nn.MHA``."""

    def call(module: nn.Module, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        if case.mask == "causal" and kind == MHA:
            hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
            return module(x, x, x, attn_mask=hidden, is_causal=True, need_weights=False)[0]
        if case.mask == "causal":
            return module(x, is_causal=True)
        # From half of the tokens to all of them.
        lengths = torch.linspace(tokens / 2, tokens, batch).long()
        seen = masks.length_mask(lengths, tokens)
        if kind == MHA:
            return module(x, x, x, key_padding_mask=~seen[:, 0, 0], need_weights=False)[0]
        return module(x, attn_mask=seen)

    return call


def _call_row(module: nn.Module, x: Tensor) -> Tensor:
    return module(x, need_weights=True, rows=[0])[0]


def _call_torch(module: nn.Module, x: Tensor) -> Tensor:
    return module(x, x, x, need_weights=False)[0]


def _call_torch_weights(module: nn.Module, x: Tensor) -> Tensor:
    return module(x, x, x)[0]
