"""torch's own attention modules, fused and not, and softmaxes that modules compute themselves."""

import math
import warnings
from typing import Any

import pytest
import torch
from oracles import assert_near
from torch import Tensor, nn

from cvattn.maps import capture_attention

MASKS = {
    "padding": {"src_key_padding_mask": torch.arange(7) >= torch.tensor([[7], [3], [5]])},
    "float padding": {
        "src_key_padding_mask": torch.zeros(3, 7).masked_fill(torch.arange(7) > 4, -math.inf)
    },
    "causal": {"mask": nn.Transformer.generate_square_subsequent_mask(7), "is_causal": True},
    "bool": {"mask": torch.ones(7, 7, dtype=torch.bool).triu(3)},
    "one for each head": {
        "mask": torch.arange(588).view(12, 7, 7) % 5 < torch.arange(12).view(12, 1, 1) % 3
    },
    "none": {},
}


def cast(value: Any) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if floating else value


@pytest.mark.usefixtures("float64")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("norm_first", [False, True], ids=["post", "pre"])
@pytest.mark.parametrize("heads", [4, 3], ids=["even", "odd"])
def test_torch_modules_fused_and_not(masks, norm_first, heads):
    """The same weights by both ways, the output that of each, bit for bit."""
    if "mask" in masks and masks["mask"].ndim == 3 and heads == 3:
        pytest.skip("made for four heads")
    torch.manual_seed(3)
    layer = nn.TransformerEncoderLayer(24, heads, 40, batch_first=True, norm_first=norm_first)
    model = (
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first and heads == 4)
        .double()
        .eval()
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, masks = torch.randn(3, 7, 24), {name: cast(mask) for name, mask in masks.items()}
    found = {}
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            before = model(x, **masks)
            with capture_attention(model) as maps:
                assert torch.equal(model(x, **masks), before)
            with capture_attention(model, rows=[5, 2]) as some:
                model(x, **masks)
        found[grad] = maps
        assert list(maps) == ["layers.0.self_attn", "layers.1.self_attn"]
        for name, weights in maps.items():
            assert_near(some[name].detach(), weights[:, :, [5, 2]].detach())
    hidden = masks.get("src_key_padding_mask")
    real = torch.ones(3, 7, dtype=torch.bool)
    if hidden is not None:
        real = (~hidden if hidden.dtype == torch.bool else hidden == 0).expand(3, 7)
    for name in found[True]:
        slow, fused = (found[grad][name].transpose(1, 2)[real] for grad in (True, False))
        assert_near(fused.detach(), slow.detach(), name)


def test_inputs_and_weights_of_torch_modules_in_every_shape():
    """Unbatched, sequence first, other widths, extra keys, weights asked for."""
    for options, shape, kv in (
        ({"batch_first": False}, (7, 3, 24), (5, 3, 24)),
        ({"batch_first": True}, (7, 24), (5, 24)),
        ({"batch_first": True, "kdim": 10, "vdim": 12}, (3, 7, 24), None),
        ({"batch_first": True, "add_bias_kv": True, "add_zero_attn": True}, (3, 7, 24), (3, 5, 24)),
        ({"batch_first": True, "bias": False}, (3, 7, 24), (3, 5, 24)),
    ):
        torch.manual_seed(3)
        block = nn.MultiheadAttention(24, 4, **options).double().eval()
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.3)
        query = torch.randn(shape, dtype=torch.float64)
        key, value = (torch.randn(kv or (3, 5, width), dtype=torch.float64) for width in (10, 12))
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                _, want = block(query, key, value, average_attn_weights=False)
                for need_weights in (True, False):
                    with capture_attention(block) as maps:
                        block(query, key, value, need_weights=need_weights)
                    got = maps[""].detach()
                    assert_near(got.reshape(want.shape), want.detach(), str(options))
                    assert maps.cross == {""}
                    with capture_attention(block) as maps:
                        block(key=key, value=value, query=query)
                    assert_near(maps[""].detach(), got)


class Softmax(nn.Module):
    """A softmax of its own, in a module of some name, beside another that is no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.to_scores = nn.Linear(6, 6)
        self.gate = nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.gate(x)
        return (self.to_scores(x) @ x.mT).softmax(-1) @ x


class CrossAttn(Softmax):
    pass


def test_which_softmaxes_are_weights():
    x = torch.randn(2, 5, 6)
    with capture_attention(Softmax()) as maps:
        Softmax()(x)  # of another model
    assert not maps
    for model, names in (
        (nn.ModuleDict({"mixer": Softmax()}), {"mixer": 2}),
        (nn.ModuleDict({"mixer": Softmax(), "theirs": CrossAttn()}), {"theirs": 2}),
        (
            nn.ModuleDict({"mixer": Softmax(), "real": nn.MultiheadAttention(6, 2)}),
            {"real": 1},
        ),
    ):
        whole = Whole(model)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*runs more than once in a pass")
            with capture_attention(whole) as maps:
                whole(x)
            assert {n.removeprefix("parts."): len(r) for n, r in maps.runs.items()} == names
            with capture_attention(whole, softmaxes=True) as everything:
                whole(x)
        assert "parts.mixer" in everything
    assert everything["parts.mixer"].shape == (2, 1, 5, 5)
    assert torch.equal(everything["parts.real"], maps["parts.real"])
    with torch.no_grad():
        mixer = model["mixer"]
        gated = x * x.softmax(-1)
        assert torch.equal(
            everything["parts.mixer"][:, 0], (mixer.to_scores(gated) @ gated.mT).softmax(-1)
        )


class Whole(nn.Module):
    def __init__(self, parts: nn.ModuleDict) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts.values():
            x = part(x, x, x)[0] if isinstance(part, nn.MultiheadAttention) else part(x)
        return x
