"""check_attention passes what is right, and of each wrong block the right check names the fault."""

import copy
import inspect
import re

import pytest
import torch
import wrong_blocks as wrong
from timm.layers.attention import Attention
from torch import nn
from wrong_blocks import CHANNELS, HEADS, WIDTH

from cvattn import MultiHeadAttention, SelfAttention2d
from cvattn.testing import AttentionCheckError, check_attention
from cvattn.testing.checks import CHECKS

TOKENS, MAP = torch.empty(1, 7, WIDTH), torch.empty(1, CHANNELS, 5, 7)
ON_MAPS = {"weights", "mixing", "permutation", "transpose", "samples", "gamma", "gradients"}
ON_TOKENS = {"weights", "mixing", "permutation", "samples", "eval", "gradients"}
MASKED = {"mask", "sample_masks", "empty_rows", "causal", "causal_mask"}


def example_for(module):
    return MAP if isinstance(module, wrong.Map | SelfAttention2d) else TOKENS


def failures(module, **options):
    with pytest.raises(AttentionCheckError) as caught:
        check_attention(module, example_for(module), **options)
    return caught.value.report.failed


def torch_mask(attn_mask):
    """(B, 1, L, S), True = may attend -> (B * heads, L, S), True = hidden."""
    return None if attn_mask is None else (~attn_mask).expand(-1, HEADS, -1, -1).flatten(0, 1)


# name: (module, checks that must pass)
RIGHT = {
    "SelfAttention2d": (SelfAttention2d(CHANNELS), {*ON_MAPS, "dot_product", "eval"}),
    "several heads": (
        SelfAttention2d(CHANNELS, qk_channels=6, value_channels=10, num_heads=2),
        {*ON_MAPS, "dot_product", "eval"},
    ),
    "trained gamma": (SelfAttention2d(CHANNELS, gamma_init=-0.3), {*ON_MAPS, "eval"}),
    "biggan": (SelfAttention2d.biggan(CHANNELS), ON_MAPS),
    "pooled by 3": (SelfAttention2d(CHANNELS, kv_pool=3, qk_channels=5), {*ON_MAPS, "eval"}),
    "a copied Self_Attn": (wrong.Map(), {*ON_MAPS, "dot_product", "eval"}),
    "MultiHeadAttention": (
        MultiHeadAttention(WIDTH, HEADS, dropout=0.2),
        {*ON_TOKENS, *MASKED, "dot_product"},
    ),
    "with extra keys": (
        MultiHeadAttention(WIDTH, HEADS, add_bias_kv=True, add_zero_attn=True),
        {*ON_TOKENS, *MASKED},
    ),
    "tokens in steps": (wrong.Tokens(), {*ON_TOKENS, *MASKED, "dot_product"}),
}


@pytest.mark.parametrize(("module", "wanted"), RIGHT.values(), ids=RIGHT.keys())
@pytest.mark.parametrize("seed", [0, 1])
def test_right_blocks_pass(module, wanted, seed):
    report = check_attention(module, example_for(module), seed=seed)
    assert report.failed == {}
    assert wanted <= set(report.passed)
    assert set(report.passed) | set(report.not_applicable) == {"sizes", *CHECKS}
    assert all(reason for reason in report.not_applicable.values())


def test_torch_multi_head_attention_fails_on_empty_rows_alone():
    """Trap 1. The rest of it is right, once its masks are turned."""
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def call(module, x, attn_mask=None):
        mask = torch_mask(attn_mask)
        return module(x, x, x, attn_mask=mask, average_attn_weights=False)

    assert set(failures(module, call=call)) == {"empty_rows"}
    report = check_attention(module, TOKENS, call=call, skip=("empty_rows",))
    assert {*ON_TOKENS, "mask", "sample_masks"} <= set(report.passed)
    assert "empty_rows" not in report.passed | report.not_applicable


def test_trap_2_timm_refuses_mask_with_causality_fused_and_drops_it_unfused():
    module = Attention(WIDTH, HEADS)
    report = check_attention(module, TOKENS)
    assert {"mask", "sample_masks", "empty_rows", "gradients"} <= set(report.passed)
    if "is_causal" not in inspect.signature(module.forward).parameters:
        pytest.skip("this timm's Attention has no is_causal")
    assert "causal" in report.passed
    assert "refuses the two together" in report.not_applicable["causal_mask"]
    assert "call=" in report.not_applicable["weights"]
    module.fused_attn = False
    found = failures(module, skip=("empty_rows",))
    assert "is ignored" in found["causal_mask"]


# block: {every check that fails: words of its finding}
WRONG = {
    wrong.ChannelSoftmax: {
        "weights": "softmax over channels without a dot product",
        "mixing": "changes no other token's output.*without a dot product",
    },
    wrong.MapChannelSoftmax: {"mixing": "softmax over channels without a dot product"},
    wrong.NoQuery: {
        "mixing": "do not depend on the query: no dot product",
        "dot_product": "no softmax of the products",
    },
    wrong.NoKey: {
        "mixing": "weights from the query alone",
        "dot_product": "no softmax of the products",
        "permutation": "in another order",
        "gradients": r"no gradient reaches k.weight, k.bias",
    },
    wrong.OverQueries: {"weights": "softmax runs over the queries"},
    wrong.MapOverQueries: {"weights": "softmax runs over the queries"},
    wrong.OverHeads: {"weights": "softmax runs over the heads"},
    wrong.OverBatch: {"weights": "softmax runs over the batch", "samples": "over the batch"},
    wrong.NoSoftmax: {"weights": "no softmax at all"},
    wrong.HeadsMixed: {
        "dot_product": r"tokens and heads mixed.*\.view\(B \* heads, -1, head_dim\) without a",
        "permutation": r"never \.view\(B \* heads, -1, head_dim\) alone",
    },
    wrong.HeadsMixedBack: {"permutation": "join them the same way"},
    wrong.FlippedMask: {"mask": "polarity is flipped: True = may attend"},
    wrong.IgnoredMask: {"mask": "the mask is ignored"},
    wrong.TransposedMask: {"mask": "queries and keys exchanged"},
    wrong.AddedMask: {"mask": "added to the scores as 0 and 1", "causal": "ignored"},
    wrong.MaskAfterSoftmax: {"mask": "applied after the softmax", "causal": "ignored"},
    wrong.LargeNegativeMask: {"empty_rows": "large negative number instead of -inf"},
    wrong.EmptyRowsNaN: {"empty_rows": "makes the output NaN.*0/0"},
    wrong.RepeatedMasks: {"sample_masks": r"repeat_interleave\(heads, 0\), not \.repeat"},
    wrong.CausalSeesNext: {"causal": "the next token, one step ahead.*off by one"},
    wrong.CausalHidesItself: {"causal": "off by one and hides the token itself"},
    wrong.CausalBackwards: {"causal": "queries and keys exchanged, or True and False"},
    wrong.CausalIgnored: {"causal": "is_causal is ignored"},
    wrong.CausalDropsMask: {"causal_mask": "the mask is ignored"},
    wrong.SecondScale: {"dot_product": "factor on the scores is 0.2,.*scaled twice"},
    wrong.ScaledByWidth: {"dot_product": r"sqrt\(embed_dim\) instead of sqrt\(head_dim\)"},
    wrong.ScaledByHeads: {"dot_product": "divided by the number of heads"},
    wrong.KeyValueSwapped: {"dot_product": r"softmax\(q v\^T\).*exchanged"},
    wrong.DropoutInEval: {"eval": "dropout in eval"},
    wrong.OtherInEval: {"eval": "depends on self.training"},
    wrong.WeightsDetached: {"gradients": r"no gradient reaches q.weight, q.bias, k.weight"},
    wrong.SecondInput: {"gradients": "gradient of the input.*finite differences"},
    wrong.SidesSwapped: {
        "sizes": r"maps \(16, 5, 5\) work and \(16, 5, 7\) do not.*H and W swapped"
    },
    wrong.SidesSwappedNoResidual: {"sizes": "gave an output of.*H and W swapped"},
    wrong.SidesSwappedQuietly: {
        "dot_product": "no softmax of the products",
        "permutation": "H and W swapped",
        "transpose": "H and W swapped",
    },
    wrong.TokensByView: {
        "dot_product": "no softmax of the products",
        "permutation": "channels and heads mixed by a reshape",
        "transpose": "H and W",
    },
    wrong.GammaUnused: {"gamma": "gamma has no effect", "gradients": "no gradient reaches gamma"},
    wrong.NoResidual: {"gamma": "residual is dropped"},
    wrong.ResidualInside: {"gamma": "inside the product"},
}


def test_every_wrong_block_is_in_the_table():
    right = {wrong.Tokens, wrong.Map}
    there = {
        each
        for each in vars(wrong).values()
        if isinstance(each, type) and issubclass(each, nn.Module)
    }
    assert there == set(WRONG) | right


@pytest.mark.sweep(26)
@pytest.mark.parametrize(
    ("block", "expected"), WRONG.items(), ids=lambda x: getattr(x, "__name__", "")
)
@pytest.mark.parametrize("seed", [0, 1])
def test_wrong_blocks_are_named(block, expected, seed):
    torch.manual_seed(seed)
    found = failures(block(), seed=seed)
    assert set(found) == set(expected)
    for name, words in expected.items():
        assert re.search(words, found[name]), found[name]
        assert "Expected: " in found[name]
        assert "Likely: " in found[name]


# Without weights to look at: which check still sees it. The scale and an exchange of key and value
# under each other's names cannot be seen then.
BLIND = {
    wrong.ChannelSoftmax: "mixing",
    wrong.NoQuery: "mixing",
    wrong.OverQueries: "weights",
    wrong.MapOverQueries: "weights",
    wrong.OverBatch: "samples",
    wrong.HeadsMixed: "permutation",
    wrong.FlippedMask: "mask",
    wrong.RepeatedMasks: "sample_masks",
    wrong.CausalSeesNext: "causal",
    wrong.SidesSwappedQuietly: "transpose",
    wrong.NoResidual: "gamma",
}


@pytest.mark.parametrize(("block", "check"), BLIND.items(), ids=lambda x: getattr(x, "__name__", x))
def test_wrong_blocks_that_give_no_weights(block, check):
    def output(module, x):
        result = module(x)
        return result[0] if isinstance(result, tuple) else result

    def masked(module, x, attn_mask=None, is_causal=False):
        return module(x, attn_mask=attn_mask, is_causal=is_causal)[0]

    takes_masks = issubclass(block, wrong.Tokens)
    assert check in failures(block(), call=masked if takes_masks else output)


def test_trap_9_repeated_masks_in_torchs_own_module():
    def call(module, x, attn_mask=None):
        mask = None if attn_mask is None else (~attn_mask[:, 0]).repeat(HEADS, 1, 1)
        return module(x, x, x, attn_mask=mask, need_weights=False)[0]

    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    found = failures(module, call=call, skip=("empty_rows",))
    assert set(found) == {"sample_masks"}
    assert "repeat_interleave" in found["sample_masks"]


def test_batch_and_tokens_exchanged():
    """batch_first=False, given the batch first: the samples attend to each other."""
    module = nn.MultiheadAttention(WIDTH, HEADS)
    found = failures(module, call=lambda module, x: module(x, x, x, need_weights=False)[0])
    assert "batch_first" in found["samples"]


@pytest.mark.parametrize(
    "module",
    [SelfAttention2d(CHANNELS), SelfAttention2d.biggan(CHANNELS), MultiHeadAttention(WIDTH, HEADS)],
    ids=["SelfAttention2d", "biggan", "MultiHeadAttention"],
)
@pytest.mark.parametrize("training", [True, False])
def test_leaves_everything_as_it_was(module, training):
    module = copy.deepcopy(module).train(training)
    next(module.children()).eval()  # a mode of its own
    kept = copy.deepcopy(module.state_dict())
    modes = [part.training for part in module.modules()]
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    with torch.enable_grad():
        check_attention(module, example_for(module))
        assert torch.is_grad_enabled()
    assert torch.equal(torch.rand(3), wanted)
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(value, kept[name]) for name, value in module.state_dict().items())
    assert all(each.grad is None for each in module.parameters())
    assert {each.dtype for each in module.parameters()} == {torch.float32}


def test_older_spectral_norm_keeps_a_computed_tensor_and_is_copied():
    module = wrong.Map()
    nn.utils.spectral_norm(module.key_conv)
    module(torch.randn(2, CHANNELS, 5, 7))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(module)
    report = check_attention(module, MAP)
    assert {*ON_MAPS, "dot_product"} <= set(report.passed)
    assert "moves in training" in report.not_applicable["eval"]


def test_modules_that_insist_on_float32():
    class Casts(wrong.Tokens):
        def softmax(self, scores):
            return scores.float().softmax(-1)

    report = check_attention(Casts(), TOKENS)
    assert "float64" in report.not_applicable["gradients"]
    assert {"weights", "permutation", "mask", "causal", "dot_product"} <= set(report.passed)

    class CastsAndFlips(Casts, wrong.FlippedMask):
        pass

    assert set(failures(CastsAndFlips())) == {"mask"}


def test_positions_are_said_and_then_not_asked_for():
    class Placed(wrong.Tokens):
        def __init__(self):
            super().__init__()
            self.place = nn.Parameter(torch.randn(7, WIDTH))

        def forward(self, x, **terms):
            return super().forward(x + self.place, **terms)

    assert set(failures(Placed())) == {"permutation"}
    assert "positions=True" in failures(Placed())["permutation"]
    report = check_attention(Placed(), TOKENS, positions=True)
    assert {"permutation", "dot_product"} <= set(report.not_applicable)
    # **terms names nothing: masks must not be guessed.
    assert "takes no attn_mask=" in report.not_applicable["mask"]


def test_masks_of_other_names_are_pointed_at():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = MultiHeadAttention(WIDTH, HEADS)

        def forward(self, x, key_padding_mask=None):
            return self.inner(x)

    report = check_attention(Named(), TOKENS)
    assert "key_padding_mask" in report.not_applicable["mask"]


@pytest.mark.parametrize("shape", [(7, 7), (3, 7, 7)])
def test_masks_are_handed_over_in_the_shape_that_is_taken(shape):
    class Strict(wrong.Tokens):
        def forward(self, x, *, attn_mask=None):
            if attn_mask is not None:
                if attn_mask.shape != shape:
                    raise ValueError(f"no masks of {attn_mask.shape}")
                attn_mask = attn_mask.view(-1, 1, 7, 7)
            return super().forward(x, attn_mask=attn_mask)

    report = check_attention(Strict(), TOKENS)
    assert str(shape) in report.passed["mask"]
    where = report.passed if len(shape) == 3 else report.not_applicable
    assert "sample_masks" in where

    class Refuses(wrong.Tokens):
        def forward(self, x, *, attn_mask=None):
            if attn_mask is not None:
                raise ValueError("not today")
            return super().forward(x)

    assert "not today" in failures(Refuses())["mask"]


def test_square_examples_are_widened():
    """Where H = W nothing shows that the sides are swapped."""
    square = torch.empty(1, CHANNELS, 4, 4)
    report = check_attention(wrong.Map(), square)
    assert "(3, 16, 4, 6)" in report.passed["sizes"]
    with pytest.raises(AttentionCheckError, match="H and W swapped"):
        check_attention(wrong.SidesSwapped(), square)
    with pytest.raises(AttentionCheckError) as caught:
        check_attention(wrong.SidesSwappedQuietly(), square)
    assert "transpose" in caught.value.report.failed

    class OneSize(wrong.Map):
        def forward(self, x):
            if x.shape[2:] != (4, 4):
                raise ValueError("4x4 only")
            return super().forward(x)

    report = check_attention(OneSize(), square)
    assert "one size only" in report.passed["sizes"]
    assert "square" in report.not_applicable["transpose"]


@pytest.mark.parametrize("seed", range(4))
def test_large_weights_are_no_fault(seed):
    """A softmax that has settled on one key hides the others without any mask."""
    torch.manual_seed(seed)
    module = MultiHeadAttention(WIDTH, HEADS)
    with torch.no_grad():
        for layer in (module.q_proj, module.k_proj):
            layer.weight.mul_(30)
    assert set(check_attention(module, TOKENS, seed=seed).passed) >= MASKED


def test_given_projections_are_used():
    module = wrong.Tokens()
    report = check_attention(module, TOKENS, projections=("q", "k", "v"))
    assert "factor" in report.passed["dot_product"]
    exchanged = failures(module, projections=("q", "v", "k"))["dot_product"]
    assert "softmax(q v^T)" in exchanged  # what is named v here is the key


def test_a_module_that_cannot_run_says_what_to_do():
    found = failures(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
    assert set(found) == {"sizes"}
    assert "TypeError" in found["sizes"]
    assert "call=lambda module, x" in found["sizes"]
    assert "gave a str" in failures(wrong.Tokens(), call=lambda module, x: "words")["sizes"]


def test_report_and_error_read_well():
    report = check_attention(wrong.Tokens(), TOKENS)
    text = str(report)
    assert text.startswith("Tokens: 13 checks passed, 0 failed, 2 not applicable\n")
    assert "\n  passed mask: " in text
    with pytest.raises(AssertionError, match=r"FlippedMask fails 1 check:\n  mask: ") as caught:
        check_attention(wrong.FlippedMask(), TOKENS)
    assert "FAILED mask" in str(caught.value.report)
    assert caught.value.report.not_applicable["sample_masks"] == "not made, since 'mask' failed"


ARGUMENTS = {
    "2 dimensions": ({"example": torch.empty(7, 15)}, "expected tokens"),
    "few tokens": ({"example": torch.empty(1, 3, 15)}, "too few tokens"),
    "one row": ({"example": torch.empty(1, 16, 1, 9)}, "2 rows"),
    "unknown name": ({"skip": ("causality",)}, "no check 'causality' to skip; there are: causal"),
    "a string": ({"skip": "mask"}, r"skip=\('mask',\)"),
    "unknown layer": ({"projections": ("q", "k", "w")}, "there is no w"),
    "two layers": ({"projections": ("q", "k")}, "three submodules"),
}


@pytest.mark.parametrize(("options", "message"), ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_refuses_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        check_attention(wrong.Tokens(), **{"example": TOKENS} | options)
