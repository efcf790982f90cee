"""Which route attention takes, and why: a decision about shapes, dtype and device alone."""

from typing import Literal, NamedTuple

import torch

from cvattn.core.attention import processor
from cvattn.core.attention.call import AttentionCall, count_scores, exporting

# Above this many bytes no route stores all L x S scores. Beyond it they leave the caches, and
# C libraries give such blocks back to the system, so that each use pays for fresh pages.
SCORES_BOUND = 16 * 2**20
# Half-precision tiles of fewer scores a sample than this do not repay the casts.
LEAST_HALF_SCORES = 128 * 128
# One vector of float32: with fewer keys torch's CPU kernel takes the row's maximum number by
# number, skips NaN, and gives 0 for a row of nothing but NaN, as if all of it were hidden.
LEAST_FUSED_KEYS = 16
# Up to so many keys and so narrow heads torch's CPU kernel is slower than plain products.
SHORT_KEYS, SHORT_WIDTH = 64, 32
# CUDA's grids have so many places for samples, and as many for heads.
GRID_LIMIT = 2**16 - 1
# Scores of fewer bytes do not repay what the plain products' calls cost.
LEAST_SHORT_SCORES = 2**17

RouteName = Literal["fused", "padded", "tiled", "direct"]


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
_SHORT = "torch's CPU kernel is slower where few keys meet narrow heads"
_EMULATED = "this CPU emulates half-precision products: float32 tiles are faster"
_TRANSFORMED = "torch's fused kernels have no forward mode, second derivative or vmap"
_NOTHING = "there is nothing to compute, which some of torch's kernels refuse"
_NOT_TRANSFORMED = "compilers do not follow the derivatives of tiles under transforms"


def choose_route(call: AttentionCall) -> Route:
    """The route for a call. The thresholds were measured: ``benchmarks/NOTES.md``."""
    if call.device == "meta":
        return Route("direct", "shapes alone: nothing is stored, nothing to be padded", {})
    if exporting():
        return _for_export(call)
    if call.device == "cpu":
        return _on_cpu(call)
    return _on_accelerator(call)


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
    if not refused and _is_short(call):
        refused["fused"] = _SHORT
    if not refused:
        return Route("fused", "torch's CPU kernel takes equal widths", refused)
    if emulated and call.length * call.key_length >= LEAST_HALF_SCORES:
        return own_route(call, refused, why=_EMULATED)
    return own_route(call, refused)


def _is_short(call: AttentionCall) -> bool:
    """Whether each softmax is over so few keys that two plain products are faster on a CPU."""
    few = call.key_length <= SHORT_KEYS and call.head_dim <= SHORT_WIDTH
    stored = count_scores(call) * call.dtype.itemsize
    plain = call.dtype == torch.float32 and not call.masked
    return few and plain and LEAST_SHORT_SCORES <= stored <= SCORES_BOUND


def _on_accelerator(call: AttentionCall) -> Route:
    """CUDA's rules: unequal widths in multiples of 16 bytes run fused, in float16 to float32."""
    refused: dict[RouteName, str] = {}
    if call.built_mask * call.dtype.itemsize > SCORES_BOUND:
        refused["fused"] = refused["padded"] = _BUILT
    if count_scores(call) == 0:
        refused["fused"] = refused["padded"] = _NOTHING
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
        return _no_accelerated_kernel(call)
    if call.dropout:
        return "with dropout torch's CPU kernel gives way to storing all scores"
    if call.bias_grad:
        return "for a bias's gradient torch's CPU kernel gives way to storing all scores"
    return None


def _no_accelerated_kernel(call: AttentionCall) -> str | None:
    if call.dtype == torch.float64:
        return "no fused kernel takes float64"
    if call.bias_grad and not call.grad:
        return "for a bias alone torch's kernel keeps nothing to compute its gradient from"
    if call.heads > GRID_LIMIT:
        return "there are more heads than a grid of torch's kernels has places"
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
