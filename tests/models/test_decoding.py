"""Greedy and beam search against enumeration; the cache and padding inside a real network."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cvattn.core.alphabet import BEGIN, END, PAD
from cvattn.models import Transformer
from cvattn.models.decoding import Continuation, beam_search, generate, greedy

VOCAB = 4


class Table:
    """A step function that gives every prefix of every sample logits of its own.

    Attributes:
        calls: how many hypotheses were asked for, each time.
    """

    def __init__(self, batch: int, seed: int) -> None:
        self.seed = seed
        self.prefixes: list[tuple[int, ...]] = [(sample,) for sample in range(batch)]
        self.calls: list[int] = []

    def logits(self, prefix: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, *prefix)) % 2**31)
        return 2 * torch.randn(VOCAB, generator=generator)

    def __call__(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        rows = torch.arange(len(self.prefixes)) if rows is None else rows
        pairs = zip(rows.tolist(), tokens.tolist(), strict=True)
        self.prefixes = [(*self.prefixes[row], token) for row, token in pairs]
        self.calls.append(len(tokens))
        return torch.stack([self.logits(prefix) for prefix in self.prefixes])


def every_sequence(table: Table, sample: int, longest: int) -> dict[tuple[int, ...], float]:
    """{tokens: log-probability} of what ends in END or has ``longest`` tokens, enumerated."""
    found = {}
    for tokens in itertools.product(range(VOCAB), repeat=longest):
        cut = tokens[: tokens.index(END) + 1] if END in tokens else tokens
        prefix, total = (sample, BEGIN), 0.0
        for token in cut:
            total += float(table.logits(prefix).log_softmax(-1)[token])
            prefix = (*prefix, token)
        found[cut] = total
    return found


def first(batch: int) -> Tensor:
    return torch.full((batch,), BEGIN)


def cut(row: Tensor) -> tuple[int, ...]:
    tokens = row.tolist()
    return tuple(tokens[: tokens.index(END) + 1] if END in tokens else tokens)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), longest=st.integers(1, 3), penalty=st.sampled_from([0, 0.7, 2]))
def test_a_beam_that_sees_everything_finds_the_best(seed, longest, penalty):
    table = Table(3, seed)
    found = beam_search(
        Table(3, seed), first(3), VOCAB**longest, max_length=longest, length_penalty=penalty
    )
    for sample, (row, log_prob) in enumerate(zip(*found, strict=True)):
        every = every_sequence(table, sample, longest)
        assert math.isclose(sum(map(math.exp, every.values())), 1.0, rel_tol=1e-5)
        best = max(every, key=lambda t: every[t] / ((5 + len(t)) / 6) ** penalty)
        assert cut(row) == best
        assert float(log_prob) == pytest.approx(every[best], rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 5),
    longest=st.integers(1, 6),
    penalty=st.sampled_from([0.0, 1.3]),
)
def test_a_beam_of_one_is_greedy(seed, batch, longest, penalty):
    want = greedy(Table(batch, seed), first(batch), max_length=longest)
    got = beam_search(
        Table(batch, seed), first(batch), 1, max_length=longest, length_penalty=penalty
    )
    assert torch.equal(got.tokens, want.tokens)
    torch.testing.assert_close(got.log_probs, want.log_probs)


def test_greedy_takes_the_likeliest_and_its_probability():
    table = Table(4, 5)
    found = greedy(Table(4, 5), first(4), max_length=6)
    for sample, row in enumerate(found.tokens):
        prefix, total = (sample, BEGIN), 0.0
        for token in cut(row):
            steps = table.logits(prefix).log_softmax(-1)
            assert token == int(steps.argmax())
            prefix, total = (*prefix, token), total + float(steps[token])
        assert float(found.log_probs[sample]) == pytest.approx(total, rel=1e-5)
        assert not row[len(cut(row)) :].any()  # padding


def test_what_has_ended_is_not_asked_for_again():
    table = Table(9, 3)
    found = greedy(table, first(9), max_length=6)
    lengths = torch.tensor([len(cut(row)) for row in found.tokens])
    assert len(set(lengths.tolist())) > 2
    assert table.calls == [int((lengths > t).sum()) for t in range(int(lengths.max()))]
    beams = Table(9, 3)
    beam_search(beams, first(9), 3, max_length=6)
    assert beams.calls[0] == 9
    assert max(beams.calls) <= 27
    assert beams.calls[-1] < beams.calls[1]


def test_a_wider_beam_is_sometimes_better():
    """Otherwise the tests above would say little about beams."""
    pairs = [
        [beam_search(Table(9, seed), first(9), width, max_length=5) for width in (1, 4)]
        for seed in range(4)
    ]
    gains = torch.cat([wide.log_probs - narrow.log_probs for narrow, wide in pairs])
    assert (gains > 1e-3).sum() > 3


class Recomputing(Continuation):
    """As :class:`Continuation`, without a cache: the whole prefix each time."""

    prefix: Tensor | None = None

    def __call__(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        if rows is not None:
            self.memory, self.memory_mask = self.memory[rows], self.memory_mask[rows]
            self.prefix = self.prefix[rows]
        tokens = tokens[:, None]
        self.prefix = tokens if self.prefix is None else torch.cat([self.prefix, tokens], dim=1)
        logits = self.network.decode(self.prefix, self.memory, self.memory_mask, None)[:, -1]
        return logits.index_fill(1, torch.tensor([PAD, BEGIN]), -torch.inf)


def small() -> Transformer:
    model = Transformer(9, 8, embed_dim=12, num_heads=3, ffn_dim=17).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # a fresh one says nearly the same to everything
            parameter.add_(0.35 * torch.randn_like(parameter))
    return model


def ragged(lengths: list[int]) -> Tensor:
    source = torch.randint(3, 9, (len(lengths), max(lengths)))
    return source.masked_fill(torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None], PAD)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(0, 99))
def test_with_and_without_cache_each_step_is_the_same(lengths, seed):
    torch.manual_seed(seed)
    model, source = small().double(), ragged(lengths)
    memory = model.encode(source)
    logits: list[list[Tensor]] = [[], []]
    answers = []
    for kept, step in zip(logits, (Continuation, Recomputing), strict=True):
        step = step(model, *memory)

        def recorded(tokens, rows, step=step, kept=kept):
            kept.append(step(tokens, rows).double())
            return kept[-1]

        with torch.no_grad():
            answers.append(
                [
                    greedy(recorded, first(len(lengths)), max_length=7).tokens,
                    beam_search(type(step)(model, *memory), first(len(lengths)), 3, max_length=5)[
                        0
                    ],
                ]
            )
    assert len(logits[0]) == len(logits[1])
    for with_cache, without in zip(*logits, strict=True):
        # Logits are handed over in float32: each may be rounded up here and down there.
        once = torch.finfo(torch.float32).eps
        torch.testing.assert_close(with_cache, without, rtol=once, atol=once)
    for found, want in zip(*answers, strict=True):
        assert torch.equal(found, want)


def test_padding_of_the_source_is_not_looked_at():
    """Whatever stands for it: the same bits come out. Nor does more of it matter."""
    model, source = small(), ragged([7, 2, 4])
    want = generate(model, source, max_length=9)
    longer = torch.cat([source, torch.full((3, 4), PAD)], dim=1)
    assert torch.equal(generate(model, longer, max_length=9).tokens, want.tokens)
    with torch.no_grad():
        model.source_embedding.weight[PAD] = 7 * torch.randn(12)
    got = generate(model, source, max_length=9)
    assert torch.equal(got.tokens, want.tokens)
    assert torch.equal(got.log_probs, want.log_probs)


def test_each_sample_is_answered_as_if_alone():
    model, lengths = small(), [7, 2, 4, 5]
    source = ragged(lengths)
    for width in (1, 3):
        together = generate(model, source, max_length=9, width=width)
        for i, length in enumerate(lengths):
            alone = generate(model, source[i : i + 1, :length], max_length=9, width=width)
            assert cut(together.tokens[i]) == cut(alone.tokens[0])


def test_answers_are_made_of_characters_and_an_end():
    model = small()
    with torch.no_grad():
        model.head.bias[[PAD, BEGIN]] += 50
    found = generate(model, ragged([7, 2, 4]), max_length=9).tokens
    assert not (found == BEGIN).any()
    assert all(PAD not in cut(row) for row in found)


def test_refused():
    with pytest.raises(ValueError, match="max_length=0"):
        greedy(Table(1, 0), first(1), max_length=0)
    with pytest.raises(ValueError, match="width=0"):
        beam_search(Table(1, 0), first(1), 0, max_length=3)
    with pytest.raises(ValueError, match=r"length_penalty=-0\.5"):
        beam_search(Table(1, 0), first(1), 2, max_length=3, length_penalty=-0.5)


def test_a_longer_answer_may_still_become_better():
    """END or A with probability 1/2 each; after A comes A until four have come, then END."""

    def step(tokens: Tensor, rows: Tensor | None) -> Tensor:
        logits = torch.full((len(tokens), VOCAB), -torch.inf)
        step.length += 1
        if step.length == 1:
            logits[:, [END, 3]] = 0.0
        else:
            logits[:, 3 if step.length <= 4 else END] = 0.0
        return logits

    for penalty, want in ((0.0, (END,)), (2.0, (3, 3, 3, 3, END))):
        step.length = 0
        found = beam_search(step, first(2), 2, max_length=6, length_penalty=penalty)
        assert {cut(row) for row in found.tokens} == {want}
        torch.testing.assert_close(found.log_probs, torch.full((2,), math.log(0.5)))
