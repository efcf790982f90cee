"""The scores behind given weights: q and k as the module's own layers make them."""

import math
from collections.abc import Iterator

from torch import Tensor

from cvattn.testing.report import Finding, failed, not_applicable, passed
from cvattn.testing.subject import Subject

# Names of the layers that give q, k and v in code that people copy.
SEPARATE = [
    ("query", "key", "value"),
    ("query_conv", "key_conv", "value_conv"),
    ("q_proj", "k_proj", "v_proj"),
    ("to_q", "to_k", "to_v"),
    ("q", "k", "v"),
    ("w_q", "w_k", "w_v"),
    ("W_q", "W_k", "W_v"),
    ("theta", "phi", "g"),
    ("f", "g", "h"),
]
TOGETHER = ["qkv", "to_qkv", "qkv_proj", "in_proj"]


def find_projections(subject: Subject) -> tuple[str, ...] | str:
    """Names of the submodules for q, k, v, or of the one for all three; or why there are none."""
    if subject.projections is not None:
        return tuple(subject.projections)
    places: dict[str, list[str]] = {}
    for path, _ in subject.module.named_modules():
        if "parametrizations" not in path:
            places.setdefault(path.rsplit(".", 1)[-1], []).append(path)
    for names in [*SEPARATE, *((name,) for name in TOGETHER)]:
        if all(len(places.get(name, [])) == 1 for name in names):
            return tuple(places[name][0] for name in names)
    return "the layers of q, k and v are not found by name: projections=(q, k, v) names them"


def check_dot_product(subject: Subject) -> Finding:
    """The weights are softmax(factor * q k^T) of the module's own q and k, and which factor."""
    if subject.positions:
        return not_applicable("positions=True: scores may have a positional term")
    names = find_projections(subject)
    if isinstance(names, str):
        return not_applicable(names)
    x = subject.draw()
    made: dict[str, Tensor] = {}
    handles = [
        subject.module.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: made.update({name: output.detach()})
        )
        for name in names
    ]
    try:
        weights = subject.weights(x)
    finally:
        for handle in handles:
            handle.remove()
    if weights is None:
        return not_applicable("it gives no weights; return (output, weights) from call=")
    batch, tokens = x.shape[0], subject.tokens
    if weights.ndim == 3 and not weights.shape[0] % batch:
        weights = weights.unflatten(0, (batch, -1))
    if weights.ndim != 4 or weights.shape[-2] != tokens:
        return not_applicable("the weights have no shape (batch, heads, tokens, keys)")
    layers = [_tokens(made[name], tokens) for name in names if name in made]
    if len(layers) != len(names) or any(layer is None for layer in layers):
        return not_applicable(f"{', '.join(names)} give no tokens while the weights are computed")
    if weights.shape[-1] != tokens:
        return not_applicable("the keys are pooled: there are fewer of them than tokens")
    return _compare(subject, weights, [layer for layer in layers if layer is not None])


def _compare(subject: Subject, weights: Tensor, layers: list[Tensor]) -> Finding:
    heads = weights.shape[1]
    expected = "softmax(q k^T / sqrt(head_dim)), or without a factor as in SAGAN"
    for q, k, v, how in _splits(layers, heads):
        if (factor := _factor(subject, weights, q, k)) is not None:
            if how == "mixed":
                return failed(
                    "the weights belong to q and k with tokens and heads mixed",
                    expected,
                    "heads split by .view(B * heads, -1, head_dim) without a transpose: use "
                    ".view(B, N, heads, head_dim).transpose(1, 2)",
                )
            return _judge(factor, q.shape[-1], heads)
        if v.shape[-1] == q.shape[-1]:
            for name, a, b in (("q v^T", q, v), ("v k^T", v, k), ("k k^T", k, k), ("q q^T", q, q)):
                if _factor(subject, weights, a, b) is not None:
                    return failed(
                        f"the weights are softmax({name})",
                        expected,
                        "query, key and value exchanged in the products, or under each other's "
                        "names (then projections= names them in order)",
                    )
    return failed(
        "the weights are no softmax of the products of q and k",
        expected,
        "a softmax without a dot product, over another axis, or averaged over heads; or scores "
        "changed on purpose (normalised q and k, an added bias: then skip=('dot_product',))",
    )


def _judge(factor: float, width: int, heads: int) -> Finding:
    right = 1 / math.sqrt(width)
    known = {
        right: "1/sqrt(head_dim)",
        1.0: "none, as in SAGAN",
    }
    for value, name in known.items():
        if math.isclose(factor, value, rel_tol=1e-4):
            return passed(f"weights = softmax(factor * q k^T), factor {value:.4g} ({name})")
    causes = {
        right**2: "the scores are scaled twice",
        right / heads: "the scores are also divided by the number of heads",
        right / math.sqrt(heads): "divided by sqrt(embed_dim) instead of sqrt(head_dim)",
        1 / right: "multiplied by sqrt(head_dim) instead of divided",
    }
    cause = next((c for v, c in causes.items() if math.isclose(factor, v, rel_tol=1e-4)), None)
    return failed(
        f"the factor on the scores is {factor:.4g}, with head_dim {width} and {heads} heads",
        f"1/sqrt(head_dim) = {right:.4g}, or 1 as in SAGAN",
        cause or "a second factor on the scores (a learned one: then skip=('dot_product',))",
    )


def _tokens(output: Tensor, tokens: int) -> Tensor | None:
    """(B, N, D) from what a layer gave: tokens, a map, or channels before tokens."""
    if not isinstance(output, Tensor):
        return None
    if output.ndim == 4:
        output = output.flatten(2).mT
    elif output.ndim == 3 and output.shape[1] != tokens:
        output = output.mT
    return output if output.ndim == 3 and output.shape[1] == tokens else None


def _splits(layers: list[Tensor], heads: int) -> Iterator[tuple[Tensor, Tensor, Tensor, str]]:
    """q, k, v as (B, heads, N, d), in every way that heads are laid out in channels."""
    for how in ("heads first", "heads last", "mixed", "heads outside"):
        if len(layers) == 3:
            if how != "heads outside" and not any(each.shape[-1] % heads for each in layers):
                q, k, v = (_split(each, heads, how) for each in layers)
                yield q, k, v, how
        elif layers[0].shape[-1] % (3 * heads) == 0:
            if how == "heads outside":  # for each head its q, k and v together
                q, k, v = _split(layers[0], heads, "heads first").chunk(3, -1)
            else:
                q, k, v = (_split(each, heads, how) for each in layers[0].chunk(3, -1))
            yield q, k, v, how


def _split(x: Tensor, heads: int, how: str) -> Tensor:
    batch, tokens, width = x.shape
    if how == "heads first":
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)
    if how == "heads last":
        return x.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)
    return x.reshape(batch, heads, tokens, width // heads)


def _factor(subject: Subject, weights: Tensor, a: Tensor, b: Tensor) -> float | None:
    """The factor with which weights = softmax(factor * a b^T), or None where there is none."""
    # Softmax adds one constant to each row of the logarithms: compare what is left without it.
    logs, scores = weights.double().log(), a.double() @ b.double().mT
    known = logs.isfinite() & (logs > -60)  # smaller ones have lost their digits
    count = known.sum(-1, keepdim=True).clamp(min=1)

    def centred(term: Tensor) -> Tensor:
        term = term.masked_fill(~known, 0.0)
        return (term - term.sum(-1, keepdim=True) / count).masked_fill(~known, 0.0)

    logs, scores = centred(logs), centred(scores)
    size = (scores * scores).sum()
    if size == 0 or logs.abs().max() == 0:
        return None
    factor = ((logs * scores).sum() / size).item()
    off = (logs - factor * scores).abs().max() / logs.abs().max()
    return factor if off <= math.sqrt(subject.tolerance) else None
