"""Reader: blind to padding, causal, and each line is read as if it were alone."""

import pytest
import torch
from oracles import assert_near
from torch import Tensor

from cvattn.core.positions import sincos_2d
from cvattn.models import Reader
from cvattn.models.decoding import generate

PAD, VOCAB = 0, 9
WIDTHS, LENGTHS = (39, 8, 25), (2, 5, 3)


def make(**options) -> Reader:
    sizes = {"height": 32, "in_channels": 2, "stem": (4, 6), "embed_dim": 12, "num_heads": 3}
    torch.manual_seed(17)
    model = Reader(VOCAB, **(sizes | {"ffn_dim": 17} | options)).eval()
    with torch.no_grad():  # norms and biases too: fresh ones hide what they do
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def batch(dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    images = torch.randn(3, 2, 32, 40, dtype=dtype)
    ids = torch.randint(3, VOCAB, (3, 5))
    ids = ids.masked_fill(torch.arange(5) >= torch.tensor(LENGTHS)[:, None], PAD)
    return images, torch.tensor(WIDTHS), ids


both = pytest.mark.parametrize("positions", ["absolute", "counted"])


@both
@pytest.mark.parametrize("training", [True, False])
def test_whatever_is_in_the_padding_the_same_bits_come_out(training, positions):
    model = make(positions=positions).train(training)
    images, widths, ids = batch()
    real = ids != PAD
    want = model(images, widths, ids)
    beyond = (torch.arange(40) >= widths[:, None])[:, None, None].expand_as(images)
    for filling in (7 * torch.randn_like(images), torch.full_like(images, float("nan"))):
        other = torch.where(beyond, filling, images)
        assert torch.equal(model(other, widths, ids)[real], want[real])
        found, plain = (generate(model, x, widths, max_length=7) for x in (other, images))
        assert torch.equal(found.tokens, plain.tokens)
        assert torch.equal(found.log_probs, plain.log_probs)
    with torch.no_grad():
        model.target_embedding.weight[PAD] = 5 * torch.randn(12)
    assert torch.equal(model(images, widths, ids)[real], want[real])


@both
def test_no_gradient_reaches_the_padding(positions):
    model = make(positions=positions)
    images, widths, ids = batch()
    images.requires_grad_()
    model(images, widths, ids)[ids != PAD].square().sum().backward()
    assert not images.grad[1, :, :, 8:].any()
    assert images.grad[1, :, :, :8].any(dim=(0, 1)).all()  # every column within counts


@both
def test_each_line_is_alone_and_more_padding_changes_nothing(positions):
    model = make(positions=positions).double()
    images, widths, ids = batch(torch.float64)
    together = model(images, widths, ids)
    wider = torch.cat([images, torch.randn(3, 2, 32, 33, dtype=torch.float64)], dim=3)
    real = ids != PAD
    assert_near(model(wider, widths, ids)[real], together[real])
    for i, (width, length) in enumerate(zip(WIDTHS, LENGTHS, strict=True)):
        alone = model(images[i : i + 1, :, :, :width], widths[i : i + 1], ids[i : i + 1, :length])
        assert_near(together[i : i + 1, :length], alone)


@both
def test_the_future_of_the_target_changes_nothing_before_it(positions):
    model, (images, widths, _) = make(positions=positions).double(), batch(torch.float64)
    ids = torch.randint(3, VOCAB, (3, 6))
    want = model(images, widths, ids)
    for t in range(5):
        other = ids.clone()
        other[:, t + 1 :] = (ids[:, t + 1 :] - 3 + 1) % (VOCAB - 3) + 3
        got = model(images, widths, other)
        assert (got[:, : t + 1] - want[:, : t + 1]).abs().max() <= 1e-12
        assert (got[:, t + 1 :] - want[:, t + 1 :]).abs().max() > 1e-4


@both
def test_every_column_is_read_and_where_it_stands_matters(positions):
    model = make(positions=positions).double()
    images, _, ids = batch(torch.float64)
    widths, ids = torch.full((3,), 40), ids.masked_fill(ids == PAD, 4)
    want = model(images, widths, ids)
    for column in range(40):
        moved = images.clone()
        moved[:, :, :, column] += 1
        assert (model(moved, widths, ids) - want).abs().max() > 1e-5
    for shift in ((16, 2), (8, 3)):  # whole tokens up or sideways
        assert (model(images.roll(*shift), widths, ids) - want).abs().max() > 1e-3


def test_positions_of_wide_lines_continue_the_table():
    model = make()
    rows, columns = model.memory_grid(torch.zeros(1, 2, 32, 600))
    assert (rows, columns) == (2, 75)
    want = sincos_2d(rows, columns, 12)
    assert torch.equal(model._positions(columns).reshape(-1, 12), want)
    assert torch.equal(model._positions(64), model._positions(columns)[:, :64])
    memory, mask = model.encode(torch.randn(1, 2, 32, 600), torch.tensor([600]))
    assert memory.shape == (1, 150, 12)
    assert mask.all()


@both
def test_an_empty_line_gives_finite_logits_and_gradients(positions):
    model, (images, widths, ids) = make(positions=positions), batch()
    widths[1] = 0
    logits = model(images, widths, ids)
    assert torch.isfinite(logits).all()
    logits.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_characters_are_counted_from_what_each_column_has_of_them():
    """By a loop; lines of any width, and only the columns that are there."""
    model = make(positions="counted").double()
    images, widths, _ = batch(torch.float64)
    memory, mask = model.encode(images, widths)
    got = model.characters_before(memory, mask)
    for sample, columns in enumerate((5, 1, 4)):
        before = 0.0
        for column in range(got.shape[1]):
            tokens = memory[sample].view(2, -1, 12)[:, column]
            share = torch.sigmoid(tokens @ model.share.weight[0] + model.share.bias).mean().item()
            share = share if column < columns else 0.0
            assert got[sample, column].item() == pytest.approx(before + share / 2, abs=1e-12)
            before += share
    with pytest.raises(ValueError, match="does not count characters"):
        make().characters_before(memory, mask)


def test_cross_attention_looks_for_the_character_by_its_number():
    """Keys moved on by a character are those of the next query: scores depend on the difference."""
    model = make(positions="counted").double()
    images, widths, _ = batch(torch.float64)
    memory, mask = model.encode(images, widths)
    ids = torch.full((3, 4), 5)
    place = model.characters_before(memory, mask)
    want = model.decode(ids, memory, mask)
    model.characters_before = lambda *_: place + 1.0
    moved = model.decode(ids, memory, mask)
    assert (moved - want).abs().max() > 1e-4
    rotary = model.rotary
    model.rotary.forward = lambda length, start=0: rotary.at(torch.arange(length) + start + 1)
    assert_near(model.decode(ids, memory, mask), want)


def test_what_a_column_holds_is_told_from_its_window():
    """Two layers with a window of 3: nothing from more than 2 columns off, wherever it lies."""
    model = make(positions="counted", window=3).double()
    images = torch.randn(1, 2, 32, 16 * 8, dtype=torch.float64)
    widths = torch.tensor([128])
    want = model.encode(images, widths)[0].view(2, 16, 12)
    moved = images.clone()
    moved[..., 0] += 1  # the stem carries it to the first two columns
    got = model.encode(moved, widths)[0].view(2, 16, 12)
    changed = (got - want).abs().amax(dim=(0, 2)) > 1e-9
    assert changed[0]
    assert not changed[5:].any()
    shifted = model.encode(torch.roll(images, 24, dims=3), widths)[0].view(2, 16, 12)
    assert_near(shifted[:, 8:11], want[:, 5:8])  # three columns on, away from both edges


@pytest.mark.parametrize("length", [4, 9])
def test_a_counting_reader_decodes_with_a_cache_as_without(length):
    model = make(positions="counted").double()
    images, widths, _ = batch(torch.float64)
    memory, mask = model.encode(images, widths)
    ids = torch.randint(3, VOCAB, (3, length))
    want, cache = model.decode(ids, memory, mask), model.decoder.new_cache()
    for t in range(length):
        assert_near(model.decode(ids[:, t : t + 1], memory, mask, cache)[:, 0], want[:, t])


def test_tied_weights_are_one_tensor():
    tied, free = make(tied=True), make()
    assert tied.head.weight is tied.target_embedding.weight
    assert free.head.weight is not free.target_embedding.weight
    count = sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters())
    assert count == VOCAB * 12


def test_refused():
    with pytest.raises(ValueError, match="height=40 is not divisible by 16"):
        Reader(VOCAB, height=40)
    with pytest.raises(ValueError, match="embed_dim=10 is not divisible by num_heads=4"):
        Reader(VOCAB, embed_dim=10)
    with pytest.raises(ValueError, match="positions='relative'; expected 'absolute' or 'counted'"):
        Reader(VOCAB, positions="relative")
    with pytest.raises(ValueError, match="window=4 must be odd"):
        Reader(VOCAB, positions="counted", window=4)
    with pytest.raises(ValueError, match="head_dim=6 must be divisible by 4"):
        Reader(VOCAB, positions="counted", embed_dim=24, num_heads=4)
    model = make()
    with pytest.raises(ValueError, match="reads lines 32 pixels high, these are 24"):
        model.encode(torch.zeros(1, 2, 24, 40), torch.tensor([40]))
    with pytest.raises(ValueError, match="built for 2 channels, the images have 1"):
        model.encode(torch.zeros(1, 1, 32, 40), torch.tensor([40]))
