"""Strings and their answers: right, reproducible, and never in two parts."""

import pytest
import torch

from cvattn.core.alphabet import BEGIN, END, PAD
from cvattn.data import StringsData

PLAIN = {"reverse": lambda s: s[::-1], "sort": lambda s: "".join(sorted(s)), "copy": str}


def pairs(data: StringsData, split: str, index, epoch: int = 0) -> list[tuple[str, str]]:
    (source,), target = data.samples(split, torch.as_tensor(index), epoch)
    decode = data.alphabet.decode
    return [(decode(s), decode(t)) for s, t in zip(source.tolist(), target.tolist(), strict=True)]


@pytest.mark.parametrize("operation", PLAIN)
def test_answers_are_those_of_python(operation):
    data = StringsData(operation=operation, max_length=7)
    found = pairs(data, "train", range(500))
    assert all(answer == PLAIN[operation](string) for string, answer in found)
    lengths = [len(string) for string, _ in found]
    assert set(lengths) == set(range(1, 8))
    assert {character for string, _ in found for character in string} == set(
        data.alphabet.characters
    )


def test_rows_are_begin_characters_end_padding():
    (source,), target = StringsData().samples("val", torch.arange(61))
    for row, sequence in ((source, False), (target, True)):
        for ids in row.tolist():
            end = ids.index(END)
            assert ids[end + 1 :] == [PAD] * (len(ids) - end - 1)
            assert (ids[0] == BEGIN) == sequence
            assert min(ids[sequence:end]) >= 3


def test_a_string_depends_on_seed_epoch_and_index_alone():
    data = StringsData(seed=5)
    want = pairs(data, "train", range(40), epoch=3)
    assert pairs(data, "train", [31, 7, 7], epoch=3) == [want[31], want[7], want[7]]
    assert pairs(StringsData(seed=5), "train", range(40), epoch=3) == want
    for other in (
        pairs(data, "train", range(40), epoch=4),
        pairs(StringsData(seed=6), "train", range(40), 3),
    ):
        assert sum(a == b for a, b in zip(other, want, strict=True)) < 5
    fixed = [pairs(StringsData(seed=s), "test", range(40), e) for s, e in ((5, 3), (6, 4))]
    assert fixed[0] == fixed[1]


def test_no_string_is_in_two_parts():
    """Of an alphabet so small that they would meet at once."""
    data = StringsData(alphabet="abcde", max_length=4)
    parts = {
        split: {string for string, _ in pairs(data, split, range(20000))}
        for split in ("train", "val", "test")
    }
    assert not parts["train"] & parts["val"]
    assert not parts["train"] & parts["test"]
    assert not parts["val"] & parts["test"]
    assert len(parts["train"]) > 300  # about half of all 780
    assert len(parts["test"]) > 150


def test_batches_of_an_epoch():
    data = StringsData(train_size=103, val_size=13, test_size=17, batch_size=10, eval_batch_size=7)
    data.setup()
    batches = list(data.train_dataloader())
    assert [len(target) for _, target in batches] == [10] * 10
    assert sum(len(target) for _, target in data.test_dataloader()) == 17
    info = data.describe()
    assert (info.train_size, info.val_size, info.test_size) == (103, 13, 17)
    assert len(info.fingerprint) == 16
    other = StringsData(operation="copy", test_size=17)
    other.setup()
    assert other.describe().fingerprint != info.fingerprint
    source, target = data.example_inputs(5)
    assert source.shape[0] == target.shape[0] == 5
    assert not (target == END).all(0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operation": "revers"}, "did you mean 'reverse'"),
        ({"alphabet": "abc"}, "at least 4 characters"),
        ({"alphabet": "abca"}, "alphabet: 'a': each character may be in the alphabet once"),
        ({"min_length": 0}, "min_length must be at least 1"),
        ({"min_length": 5, "max_length": 4}, "max_length must be at least 5"),
        ({"test_size": 0}, "test_size must be at least 1"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StringsData(**options)


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_epoch_gives_every_string_once_and_like_lengths_together(world_size):
    from cvattn.data.sequences.base import SequenceBatches

    data = StringsData()

    def loader(rank: int = 0, count: int = 103) -> SequenceBatches:
        return SequenceBatches(
            lambda index, epoch: data.samples("train", index, epoch),
            lambda index, epoch: data.lengths("train", index, epoch),
            count,
            batch_size=6,
            train=True,
            seed=7,
            rank=rank,
            world_size=world_size,
        )

    parts = [loader(rank).batch_indices(epoch=2) for rank in range(world_size)]
    batches = [torch.cat(step) for step in zip(*parts, strict=True)]
    order = torch.cat(batches)
    assert len(batches) == 17
    assert len(order.unique()) == len(order) == 102
    assert not torch.equal(order, torch.cat(loader().batch_indices(epoch=3)))
    lengths = [data.lengths("train", batch, 2) for batch in batches]
    spread = [int(each.max() - each.min()) for each in lengths]
    assert sum(spread) / len(spread) < 2  # about 8 at random
    means = torch.stack([each.double().mean() for each in lengths])
    assert (means.diff() > 0).any()
    assert (means.diff() < 0).any()  # short and long ones come in turn
    assert len(loader(count=5).batch_indices()[0]) == -(-5 // world_size)
    (source,), _ = data.samples("train", batches[0], 2)
    assert torch.equal(((source != PAD).sum(1) - 1), lengths[0])
