"""Calls of attention and blocks that the GPU battery computes, with numbers that are drawn once.

Prime and unequal sizes, maps that are not square, gamma that is not 0, masks that hide something.
All is drawn on the CPU, so that every device and dtype gets the same.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

import torch
from gpu_checks import Place, Yardstick, neighbour
from torch import Tensor, nn

from cvattn import (
    AxialAttention2d,
    CrissCrossAttention2d,
    MultiHeadAttention,
    NeighborhoodAttention2d,
    SelfAttention2d,
    WindowAttention2d,
)
from cvattn.blocks import MapAttention
from cvattn.core import attention, use_route
from cvattn.core.attention import reference_attention
from cvattn.core.attention.call import describe_call
from cvattn.core.attention.plan import RouteName, why_impossible

SEED = 20267
HALVES = (torch.bfloat16, torch.float16)
LOWER = (torch.float32, *HALVES)


class Call(NamedTuple):
    """Query, key, value, the rest of a call, and the gradient that comes back to its output."""

    tokens: tuple[Tensor, Tensor, Tensor]
    terms: dict[str, Any]
    upstream: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Call":
        """There, in that dtype; masks stay bool."""

        def moved(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return x.to(device, dtype if x.is_floating_point() else x.dtype)

        terms = {name: moved(x) for name, x in self.terms.items()}
        return Call(tuple(map(moved, self.tokens)), terms, moved(self.upstream))

    def near(self, k: int, dtype: torch.dtype) -> "Call":
        """The k-th neighbour in that dtype of the numbers that are multiplied."""
        query, key, value = (neighbour(x, k, dtype) for x in self.tokens)
        return self._replace(tokens=(query, key, value))

    def run(self, function: Callable[..., Tensor] = attention, **more: Any) -> list[Tensor]:
        """Output, and the gradients of query, key, value, and of a bias where there is one."""
        wanted = [x.detach().requires_grad_() for x in self.tokens]
        terms = dict(self.terms)
        if "attn_bias" in terms:
            terms["attn_bias"] = terms["attn_bias"].detach().requires_grad_()
            wanted.append(terms["attn_bias"])
        output = function(*wanted[:3], **terms, **more)
        return [output.detach(), *torch.autograd.grad(output, wanted, self.upstream)]


def draw(*shape: int, seed: int = SEED) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_call(
    *,
    batch: int = 2,
    heads: int = 3,
    length: int = 67,
    key_length: int = 131,
    width: int = 16,
    value_width: int | None = None,
    mask: str = "",
    bias: str = "",
    is_causal: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Call:
    """A call in float64, of numbers that ``dtype`` has.

    Args:
        mask: "keys" = samples end early; "pairs" = of each pair, and a row that sees nothing.
        bias: "heads" = shared by the samples; "samples" = of each.
    """
    value_width = width if value_width is None else value_width
    sizes = ((length, width), (key_length, width), (key_length, value_width))
    tokens = [draw(batch, heads, *size, seed=SEED + i) for i, size in enumerate(sizes)]
    terms: dict[str, Any] = {}
    if mask == "keys":
        ends = torch.linspace(key_length / 2, key_length - 1, batch).long()
        terms["attn_mask"] = (torch.arange(key_length) < ends[:, None])[:, None, None]
    if mask == "pairs":
        seen = draw(length, key_length, seed=SEED + 5) > -0.5
        seen[length // 2] = False
        terms["attn_mask"] = seen
    if bias:
        shape = (1 if bias == "heads" else batch, heads, length, key_length)
        terms["attn_bias"] = draw(*shape, seed=SEED + 6)
    if is_causal:
        terms["is_causal"] = True
    upstream = draw(batch, heads, length, value_width, seed=SEED + 7)
    call = Call((tokens[0], tokens[1], tokens[2]), terms, upstream)
    return call.to("cpu", dtype).to("cpu", torch.float64)


# What each route has to compute; the last ones are those that kernels like least.
CALLS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "narrow query and key": {"width": 4, "value_width": 32},
    "odd widths": {"width": 5, "value_width": 11},
    "keys hidden": {"mask": "keys"},
    "pairs hidden": {"mask": "pairs"},
    "bias": {"bias": "heads"},
    "bias of each sample": {"bias": "samples"},
    "causal": {"is_causal": True},
    "causal, square": {"is_causal": True, "key_length": 67},
    "mask, bias, causal": {"mask": "pairs", "bias": "heads", "is_causal": True},
    "one key": {"key_length": 1},
    "one query": {"length": 1, "is_causal": True},
    "128 wide": {"width": 128},
    "264 wide": {"width": 264, "length": 19},
    "512 wide values": {"width": 64, "value_width": 512, "length": 19},
}

BLOCKS: Mapping[str, Callable[[], nn.Module]] = {
    "common": lambda: SelfAttention2d(32),
    "common, dim 96": lambda: SelfAttention2d(96),
    "BigGAN": lambda: SelfAttention2d.biggan(32, spectral_norm=False),
    "U-Net": lambda: SelfAttention2d.unet(32, head_dim=16, groups=8),
    "non-local": lambda: SelfAttention2d.non_local(32, batch_norm=False),
    "relative bias": lambda: SelfAttention2d.unet(32, head_dim=8, groups=8, grid=(11, 13)),
    "window": lambda: WindowAttention2d.unet(32, window=4, groups=8, head_dim=16),
    "neighborhood": lambda: NeighborhoodAttention2d.unet(32, window=5, groups=8, head_dim=16),
    "dilated": lambda: NeighborhoodAttention2d.unet(32, window=3, dilation=2, groups=8),
    "axial": lambda: AxialAttention2d.unet(32, groups=8, head_dim=16),
    "criss-cross": lambda: CrissCrossAttention2d.unet(32, groups=8, head_dim=16),
}
TOKENS: Mapping[str, Callable[[], nn.Module]] = {
    "tokens": lambda: MultiHeadAttention(48, 3),
    "tokens, norm of q and k": lambda: MultiHeadAttention(48, 3, qk_norm="rms"),
}


def make_block(name: str) -> nn.Module:
    """A block in float64 on the CPU, all of whose parts do something."""
    torch.manual_seed(SEED)
    block = (BLOCKS | TOKENS)[name]().double()
    with torch.no_grad():
        for module in block.modules():
            if isinstance(module, MapAttention):
                if module.gamma is not None:
                    module.gamma.fill_(0.75)
                if module.proj is not None:
                    module.proj.weight.normal_(std=0.2)
        for parameter in block.parameters():
            if parameter.ndim == 1 and not parameter.any():
                parameter.normal_(std=0.1)  # a bias of 0 hides that it is put in the wrong place
    return block


def make_input(name: str) -> Tensor:
    """What the block takes, in float64 on the CPU."""
    if name in TOKENS:
        return draw(3, 37, 48)
    return draw(3, 96 if "96" in name else 32, 11, 13)


def run_block(
    block: nn.Module,
    x: Tensor,
    *,
    layout: torch.memory_format = torch.contiguous_format,
    **terms: Any,
) -> list[Any]:
    """Output, gradient of the input, and those of all parameters (one whole) of a weighted sum."""
    if x.ndim == 4:
        x = x.contiguous(memory_format=layout)
    x = x.detach().requires_grad_()
    output = block(x, **terms)
    upstream = draw(*output.shape, seed=SEED + 9).to(output)
    wanted = [x, *block.parameters()]
    found = torch.autograd.grad(output, wanted, upstream, allow_unused=True)
    slopes = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]
    return [output.detach(), slopes[0], slopes[1:]]


def rounded(module: nn.Module, x: Tensor, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """Copies in float64 of the numbers that they have in ``dtype``."""
    return copy.deepcopy(module).to(dtype).double(), x.to(dtype).double()


def yardstick_of(
    call: Call,
    place: Place,
    dtype: torch.dtype,
    run: Callable[[Call, Callable[..., Tensor]], list[Any]] = Call.run,
) -> Yardstick:
    """Of a call, or of what ``run(call, attention)`` computes of it."""

    def both(k: int) -> tuple[list[Any], list[Any]]:
        moved = call.near(k, dtype)
        with use_route("direct"):
            own = run(moved.to(place.device, dtype), attention)
        return own, run(moved, reference_attention)

    return Yardstick(both, dtype)


def routes_for(call: Call) -> list[RouteName]:
    """What the plan may take for such a call."""
    query, key, value = (x.detach().requires_grad_() for x in call.tokens)
    terms = dict(call.terms)
    if "attn_bias" in terms:
        terms["attn_bias"] = terms["attn_bias"].detach().requires_grad_()
    seen = describe_call(query, key, value, **terms)
    return [name for name in get_args(RouteName) if why_impossible(name, seen) is None]
