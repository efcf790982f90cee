"""Which route attention takes, and why: a decision about shapes, dtype and device alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor

# Above this many bytes no route stores all L x S scores. Beyond it they leave the caches, and
# C libraries give such blocks back to the system, so that each use pays for fresh pages.
SCORES_BOUND = 16 * 2**20
# Half-precision tiles of fewer scores a sample than this do not repay the casts.
LEAST_HALF_SCORES = 128 * 128
# One vector of float32: with fewer keys torch's CPU kernel takes the row's maximum number by
# number, skips NaN, and gives 0 for a row of nothing but NaN, as if all of it were hidden.
LEAST_FUSED_KEYS = 16

RouteName = Literal["fused", "padded", "tiled", "direct"]


class AttentionCall(NamedTuple):
    """A call of :func:`attention`, as the plan sees it.

    Attributes:
        head_dim: E, width of query and key.
        value_dim: Ev, width of the value.
        dtype: in which the products are made (under autocast, autocast's).
        device: "cpu", "cuda", ...
        built_mask: elements of the mask that the fused kernels would need built for them (causal
            with L != S, or several of mask, bias and causality); 0 = none, or one is there already.
        bias_grad: a gradient of ``attn_bias`` is wanted.
        dropout: weights are dropped.
    """

    batch: int
    heads: int
    length: int
    key_length: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: str
    built_mask: int = 0
    bias_grad: bool = False
    dropout: bool = False


def count_scores(call: AttentionCall) -> int:
    """Number of scores, batch and heads included."""
    return call.batch * call.heads * call.length * call.key_length


class Route(NamedTuple):
    """How attention is computed and why, and why not by the others.

    - ``fused``: ``F.scaled_dot_product_attention``, where torch has a kernel for it.
    - ``padded``: the same, q and k (or v) padded with zero columns to widths that a kernel takes.
    - ``tiled``: row blocks of the scores, recomputed in the backward pass.
    - ``direct``: the plain products of the reference, storing all scores.
    """

    name: RouteName
    reason: str
    refused: dict[RouteName, str]


# Fixed texts: sizes in them would be formatted in each call, and compilers cannot.
_FEW = f"the scores are at most {SCORES_BOUND >> 20} MiB and fit the caches"
_MANY = f"the scores are more than the {SCORES_BOUND >> 20} MiB that may be stored"
_BUILT = "a mask with an entry for each score would have to be built"
_EMULATED = "this CPU emulates half-precision products: float32 tiles are faster"

_records: list[list[tuple[AttentionCall, Route]]] = []


@contextmanager
def record_routes() -> Iterator[list[tuple[AttentionCall, Route]]]:
    """Collect each call of :func:`attention` made inside the block, and the route that it took."""
    record: list[tuple[AttentionCall, Route]] = []
    _records.append(record)
    try:
        yield record
    finally:
        _records[:] = [each for each in _records if each is not record]


def note_route(call: AttentionCall, route: Route) -> None:
    """Tell all open :func:`record_routes` blocks."""
    for record in _records:
        record.append((call, route))


def describe_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
) -> AttentionCall:
    """The call as the plan sees it."""
    device = query.device.type
    autocast = not query.is_meta and torch.is_autocast_enabled(device)
    built = 0
    # An export takes torch's operators in any case, and its sizes must stay open.
    if not _exporting():
        shapes = [tuple(term.shape) for term in (attn_mask, attn_bias) if term is not None]
        if is_causal and (shapes or query.shape[2] != key.shape[2]):
            shapes.append((query.shape[2], key.shape[2]))
            built = torch.Size(torch.broadcast_shapes(*shapes)).numel()
        elif len(shapes) > 1:
            built = torch.Size(torch.broadcast_shapes(*shapes)).numel()
    return AttentionCall(
        batch=query.shape[0],
        heads=query.shape[1],
        length=query.shape[2],
        key_length=key.shape[2],
        head_dim=query.shape[3],
        value_dim=value.shape[3],
        dtype=torch.get_autocast_dtype(device) if autocast else query.dtype,
        device=device,
        built_mask=built,
        bias_grad=attn_bias is not None and attn_bias.requires_grad and torch.is_grad_enabled(),
        dropout=dropout_p > 0.0,
    )


def choose_route(call: AttentionCall) -> Route:
    """The route for a call. The thresholds were measured: ``benchmarks/NOTES.md``."""
    if call.device == "meta":
        return Route("direct", "shapes alone: nothing is stored, nothing to be padded", {})
    if _exporting():
        return _for_export(call)
    if call.device == "cpu":
        return _on_cpu(call)
    return _on_accelerator(call)


# torch 2.10's compiler takes is_exporting() for True in every program. What is constant in one is
# asked outside of it.
@torch.compiler.assume_constant_result
def _exporting() -> bool:
    return torch.compiler.is_exporting()


def _on_cpu(call: AttentionCall) -> Route:
    size = count_scores(call) * call.dtype.itemsize
    half = call.dtype.itemsize == 2
    refused: dict[RouteName, str] = {}
    if call.head_dim != call.value_dim:
        refused["fused"] = "for unequal widths torch's CPU kernel gives way to storing all scores"
        refused["padded"] = "computes with the padding: slower than tiles and plain products"
    elif half:
        refused["fused"] = "torch's CPU kernel has a slow backward pass in half precision"
    elif call.dropout:
        refused["fused"] = "with dropout torch's CPU kernel gives way to storing all scores"
    elif call.bias_grad:
        refused["fused"] = (
            "for a bias's gradient torch's CPU kernel gives way to storing all scores"
        )
    elif call.built_mask * call.dtype.itemsize > SCORES_BOUND:
        refused["fused"] = _BUILT
    elif call.key_length < LEAST_FUSED_KEYS:
        refused["fused"] = "for so few keys torch's CPU kernel turns rows of NaN into 0"
    else:
        return Route("fused", "torch's CPU kernel takes equal widths", refused)
    if size > SCORES_BOUND:
        return Route("tiled", _MANY, refused | {"direct": _MANY})
    emulated = half and compute_dtype(torch.device("cpu"), call.dtype) != call.dtype
    if emulated and call.length * call.key_length >= LEAST_HALF_SCORES:
        return Route("tiled", _EMULATED, refused | {"direct": _EMULATED})
    return Route("direct", _FEW, refused | {"tiled": _FEW})


def _on_accelerator(call: AttentionCall) -> Route:
    """CUDA's rules: unequal widths in multiples of 16 bytes run fused, in float16 to float32."""
    refused: dict[RouteName, str] = {}
    if call.dtype == torch.float64:
        refused["fused"] = refused["padded"] = "no fused kernel takes float64"
    elif call.built_mask * call.dtype.itemsize > SCORES_BOUND:
        refused["fused"] = refused["padded"] = _BUILT
    elif (call.head_dim, call.value_dim) == padded_widths(call):
        return Route("fused", "fused kernels take these widths", refused)
    else:
        refused["fused"] = "a width is not a multiple of 16 bytes"
        return Route("padded", "zero columns up to multiples of 16 bytes", refused)
    if count_scores(call) * call.dtype.itemsize > SCORES_BOUND:
        return Route("tiled", _MANY, refused | {"direct": _MANY})
    return Route("direct", _FEW, refused | {"tiled": _FEW})


def _for_export(call: AttentionCall) -> Route:
    """Operators of torch alone; a size left open must not become limited by a comparison."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    refused: dict[RouteName, str] = {"tiled": "an exported program has operators of torch alone"}
    if call.head_dim == call.value_dim:
        return Route("fused", "exported, one width", refused)
    if statically_known_true(count_scores(call) * call.dtype.itemsize <= SCORES_BOUND):
        return Route("direct", "exported, few scores", refused)
    return Route("padded", "exported, many scores or sizes left open", refused)


def width_step(call: AttentionCall) -> int:
    """Fused kernels on accelerators take widths in multiples of 16 bytes; CPUs any."""
    return 1 if call.device == "cpu" else 16 // call.dtype.itemsize


def padded_widths(call: AttentionCall) -> tuple[int, int]:
    """Widths of (query and key, value) that a fused kernel takes."""
    if call.device == "cpu":
        widest = max(call.head_dim, call.value_dim)
        return widest, widest
    step = width_step(call)
    return -(-call.head_dim // step) * step, -(-call.value_dim // step) * step


def compute_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision on CPUs without such instructions, where products are emulated.

    float16 never pays: 40 to 100 times slower than float32 on the CPUs that torch knows.
    """
    if device.type != "cpu" or dtype.itemsize != 2:
        return dtype
    return torch.bfloat16 if dtype == torch.bfloat16 and _has_bfloat16() else torch.float32


def _has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    if not hasattr(torch.cpu, "get_capabilities"):  # torch 2.10
        return torch.cpu._is_avx512_bf16_supported()
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
