"""Networks of others: their grids, windows, words and classes, as numbers."""

import pytest
import torch
from conditioned import WORDS, Conditioned, Queries

from cvattn import VisionTransformer, capture_attention, explore
from cvattn.maps import attention_heat, rollout_heat
from cvattn.maps.grids import Layout


@pytest.fixture
def conditioned():
    torch.manual_seed(5)
    text = torch.randn(1, len(WORDS), 6)
    return Conditioned().eval(), text, torch.randn(2, 3, 14, 10)


def unpacked(seen):
    return seen.shares / 255 * seen.peaks[..., None]


def test_attention_to_words_is_kept_word_by_word(conditioned):
    network, text, images = conditioned
    page = explore(
        network, images, words=WORDS, forward=lambda model, x: model(x, text.expand(len(x), -1, -1))
    )
    blocks = {block.name: block for block in page.content.weights.blocks}
    assert list(blocks) == ["fine", "self_attention", "coarse"]
    assert page.content.weights.without_grid == ["text"]
    assert [b.grid for b in blocks.values()] == [(14, 10), (7, 5), (7, 5)]
    assert [b.kind for b in blocks.values()] == ["cross", "self", "cross"]
    assert [b.rows for b in blocks.values()] == ["words", "positions", "words"]
    assert blocks["coarse"].words == WORDS
    assert (blocks["coarse"].distance, len(blocks["self_attention"].distance)) == ([], 2)
    with torch.no_grad(), capture_attention(network) as maps:
        network(images, text.expand(2, -1, -1))
    for index, name in enumerate(blocks):
        found = unpacked(page.content.weights.seen[1][index])
        want = maps[name][1]
        want = (want.mT if blocks[name].words else want).numpy()
        assert (abs(found - want) <= want.max(-1, keepdims=True) / 255).all()
    assert page.content.heats == []
    assert [caption["guesses"] for caption in page.content.captions] == [[], []]


def test_pooled_positions_still_share_one_between_their_words(conditioned):
    network, text, _ = conditioned
    page = explore(
        network,
        torch.randn(1, 3, 44, 38),
        forward=lambda model, x: model(x, text.expand(len(x), -1, -1)),
    )
    fine = page.content.weights.blocks[0]
    assert fine.full == (44, 38) != fine.grid
    assert fine.words == [f"word {index}" for index in range(1, 6)]
    sums = unpacked(page.content.weights.seen[0][0]).sum(1)
    assert abs(sums - 1).max() < len(WORDS) / 255


def test_mistakes_with_words(conditioned):
    network, text, images = conditioned

    def forward(model, x):
        return model(x, text.expand(len(x), -1, -1))

    with pytest.raises(ValueError, match="4 words, but fine has 5 keys"):
        explore(network, images, words=WORDS[:4], forward=forward)
    with pytest.raises(ValueError, match="no block attends to or from as many tokens"):
        explore(network, images, words=WORDS, forward=forward, layers=["self_attention"])
    with pytest.raises(ValueError, match="class_names: the network gives no logits"):
        explore(network, images, class_names=["a"], forward=forward)


def test_tokens_that_attend_to_positions():
    network, images = Queries().eval(), torch.randn(1, 3, 7, 5)
    with torch.no_grad(), capture_attention(network) as maps:
        network(images)
    assert maps.layout["attention"] == Layout(None, (7, 5))
    page = explore(network, images)
    (block,), (seen,) = page.content.weights.blocks, page.content.weights.seen[0]
    assert (block.rows, block.grid, block.drawn) == ("tokens", (7, 5), (7, 5))
    assert block.words == ["token 1", "token 2", "token 3"]
    want = maps["attention"][0].numpy()
    assert (abs(unpacked(seen) - want) <= want.max(-1, keepdims=True) / 255).all()


def test_windows_are_told_by_their_size():
    from timm.models.swin_transformer import SwinTransformer

    torch.manual_seed(1)
    network = SwinTransformer(
        img_size=(24, 36),
        patch_size=2,
        depths=(2, 2),
        embed_dim=8,
        num_heads=(2, 4),
        window_size=3,
    ).eval()
    page = explore(network, torch.randn(1, 3, 24, 36), targets=0)
    blocks = page.content.weights.blocks
    assert [b.label for b in blocks] == [f"layers.{i}.blocks.{j}" for i in (0, 1) for j in (0, 1)]
    assert {b.kind for b in blocks} == {"window 3 × 3"}
    assert [b.full for b in blocks] == [(12, 18)] * 2 + [(6, 9)] * 2


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_heat_of_the_likeliest_classes(pool):
    """On patches of one pixel attention_heat is on the grid of the blocks too."""
    torch.manual_seed(3)
    network = VisionTransformer(
        11, image_size=(7, 5), patch_size=1, pool=pool, embed_dim=12, num_heads=3, num_layers=2
    ).eval()
    images = torch.randn(2, 3, 7, 5)
    names = [f"class {index}" for index in range(11)]
    page = explore(network, images, class_names=names, targets=2)
    best = network(images).topk(2).indices
    names = list(attention_heat(network, images, target=0))
    for place in range(2):
        heats = attention_heat(network, images, target=best[:, place])
        for image in range(2):
            assert (
                page.content.captions[image]["guesses"][place][0] == f"class {best[image, place]}"
            )
            found = page.content.heats[image][place]
            assert len(found) == 3  # two layers and their rollout
            for name, heat in zip(names, found, strict=False):
                want = heats[name][image].mean(0).numpy()
                assert abs(heat - want).max() <= 1e-4 * want.max()
            # A patch is a pixel here, so that nothing is interpolated.
            target = best[:, place]
            want = rollout_heat(network, images, target=target)[image].numpy()
            assert found[-1].shape == want.shape == (7, 5)
            assert want.max() > want.min() >= 0
            assert abs(found[-1] - want).max() <= 1e-4 * want.max()
    assert not any(parameter.grad is not None for parameter in network.parameters())


class Answer:
    def __init__(self, logits):
        self.logits = logits


def test_answers_with_logits_are_taken_and_tuples_are_not():
    torch.manual_seed(3)
    network = VisionTransformer(
        5, image_size=(6, 4), patch_size=2, embed_dim=12, num_heads=3, num_layers=1
    ).eval()
    images = torch.randn(1, 3, 6, 4)
    for forward, guesses in (
        (lambda model, x: Answer(model(x)), 3),
        (lambda model, x: (model(x),), 0),
        (lambda model, x: model(x).half(), 3),
    ):
        page = explore(network, images, forward=forward)
        assert len(page.content.captions[0]["guesses"]) == guesses
        assert len(page.content.heats) == (guesses > 0)
    with pytest.raises(ValueError, match="6 class_names for 5 outputs"):
        explore(network, images, class_names=list("abcdef"))
    found = explore(network, images, class_names=["a"]).content.captions[0]["guesses"]
    assert {name for name, _ in found} <= {"a", *(f"output {i}" for i in range(1, 5))}
    with pytest.raises(ValueError, match="targets=4 must be in"):
        explore(network, images, targets=4)
