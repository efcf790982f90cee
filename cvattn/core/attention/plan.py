"""Which route attention takes, and why: a decision about shapes, dtype and device alone."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cvattn.core.attention import processor

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
        grad: gradients of query, key or value are wanted.
        bias_grad: a gradient of ``attn_bias`` is wanted.
        dropout: weights are dropped.
        transformed: inside a transform of torch.func, or forward-mode differentiation.
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
    grad: bool = True
    bias_grad: bool = False
    dropout: bool = False
    transformed: bool = False


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
_TRANSFORMED = "torch's fused kernels have no forward mode, second derivative or vmap"
_NOT_TRANSFORMED = "compilers do not follow the derivatives of tiles under transforms"


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
    if not exporting():
        shapes = [tuple(term.shape) for term in (attn_mask, attn_bias) if term is not None]
        alone = not is_causal or (not shapes and query.shape[2] == key.shape[2])
        shapes += [] if alone else [(query.shape[2], key.shape[2])]
        if len(shapes) > 1 or not alone:
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
        grad=torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)),
        bias_grad=attn_bias is not None and attn_bias.requires_grad and torch.is_grad_enabled(),
        dropout=dropout_p > 0.0,
        transformed=_is_transformed(),
    )


def _is_transformed() -> bool:
    """Whether torch.func (grad, vmap, jvp, ...) or a level of dual numbers is at work.

    Asked of the process's state, not of the tensors: those of an inner transform do not show what
    an outer one has wrapped.
    """
    # A level of torch.func.jvp, too, is one of dual numbers. No public function tells either.
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def choose_route(call: AttentionCall) -> Route:
    """The route for a call. The thresholds were measured: ``benchmarks/NOTES.md``."""
    if call.device == "meta":
        return Route("direct", "shapes alone: nothing is stored, nothing to be padded", {})
    if exporting():
        return _for_export(call)
    if call.device == "cpu":
        return _on_cpu(call)
    return _on_accelerator(call)


# torch 2.10's compiler takes is_exporting() for True in every program. What is constant in one is
# asked outside of it.
@torch.compiler.assume_constant_result
def exporting() -> bool:
    """Whether a program is being made for elsewhere, whose sizes must stay open."""
    return torch.compiler.is_exporting()


def _on_cpu(call: AttentionCall) -> Route:
    half = call.dtype.itemsize == 2
    emulated = half and processor.compute_dtype(torch.device("cpu"), call.dtype) != call.dtype
    refused: dict[RouteName, str] = {}
    if call.head_dim != call.value_dim:
        refused["padded"] = "computes with the padding: slower than tiles and plain products"
    elif half and not call.transformed and (emulated or not processor.has_half_kernel()):
        refused["fused"] = "torch's CPU kernel is slow where half precision is emulated"
    elif half and not call.transformed and call.grad:
        refused["fused"] = "torch's CPU kernel has a slow backward pass in half precision"
    elif call.built_mask * call.dtype.itemsize > SCORES_BOUND:
        refused["fused"] = _BUILT
    if (unable := why_impossible("fused", call)) is not None:
        refused["fused"] = unable
    if not refused:
        return Route("fused", "torch's CPU kernel takes equal widths", refused)
    if emulated and call.length * call.key_length >= LEAST_HALF_SCORES:
        return own_route(call, refused, why=_EMULATED)
    return own_route(call, refused)


def _on_accelerator(call: AttentionCall) -> Route:
    """CUDA's rules: unequal widths in multiples of 16 bytes run fused, in float16 to float32."""
    refused: dict[RouteName, str] = {}
    if call.built_mask * call.dtype.itemsize > SCORES_BOUND:
        refused["fused"] = refused["padded"] = _BUILT
    for name in _FUSED:
        unable = why_impossible(name, call)
        if unable is not None:
            refused[name] = unable
    if "fused" not in refused:
        return Route("fused", "fused kernels take these widths", refused)
    if "padded" not in refused:
        return Route("padded", "zero columns up to multiples of 16 bytes", refused)
    return own_route(call, refused)


def own_route(call: AttentionCall, refused: dict[RouteName, str], why: str | None = None) -> Route:
    """Plain products while the scores are few, else tiles."""
    if why is None and count_scores(call) * call.dtype.itemsize > SCORES_BOUND:
        why = _MANY
    unable = why_impossible("tiled", call)
    if why is None or unable is not None:
        return Route(
            "direct", _FEW if unable is None else unable, refused | {"tiled": unable or _FEW}
        )
    return Route("tiled", why, refused | {"direct": why})


_FUSED: tuple[RouteName, ...] = ("fused", "padded")


def why_impossible(name: RouteName, call: AttentionCall) -> str | None:
    """Why a route cannot compute a call as it promises to, at any speed; None = it can."""
    if name == "direct":
        return None
    if name == "tiled":
        if exporting():
            return "an exported program has operators of torch alone"
        if call.transformed and torch.compiler.is_compiling():
            return _NOT_TRANSFORMED
        return None
    if call.transformed:
        return _TRANSFORMED
    if name == "fused" and (call.head_dim, call.value_dim) != padded_widths(call):
        if call.device == "cpu":
            return "for unequal widths torch's CPU kernel gives way to storing all scores"
        return "a width is not a multiple of 16 bytes"
    if call.device != "cpu":
        return "no fused kernel takes float64" if call.dtype == torch.float64 else None
    if call.dropout:
        return "with dropout torch's CPU kernel gives way to storing all scores"
    if call.bias_grad:
        return "for a bias's gradient torch's CPU kernel gives way to storing all scores"
    return None


def _for_export(call: AttentionCall) -> Route:
    """Operators of torch alone; a size left open must not become limited by a comparison."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    unable = why_impossible("tiled", call)
    refused: dict[RouteName, str] = {} if unable is None else {"tiled": unable}
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
