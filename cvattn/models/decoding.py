"""From a network that says what may come next to the sequence that it means.

Greedy and beam search ask a step function, and know nothing of the network behind it:
``step(tokens, rows)`` takes for each hypothesis its last token (n,), and which row of the call
before it continues (n,), None for the same rows in the same order; it returns logits (n, V) of what
follows. The first call has the token BEGIN for each sample. Hypotheses that have ended are not
asked for again: the batch shrinks.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cvattn.core import Decoder, DecoderCache
from cvattn.core.alphabet import BEGIN, END, PAD

Step = Callable[[Tensor, Tensor | None], Tensor]


class EncoderDecoder(Protocol):
    """What :class:`Continuation` can drive, such as :class:`cvattn.models.Transformer`."""

    decoder: Decoder

    @property
    def encode(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """What is given, in tensors of B samples -> memory (B, S, D) and its mask (B, 1, 1, S)."""

    @property
    def decode(self) -> Callable[[Tensor, Tensor, Tensor, DecoderCache | None], Tensor]:
        """Ids (B, T), memory, its mask and a cache -> logits (B, T, V)."""


class Hypotheses(NamedTuple):
    """The sequence found for each sample.

    Attributes:
        tokens: (B, T) int64, without BEGIN, with END (where one came within ``max_length``), then
            PAD; T is the longest one's length.
        log_probs: (B,) float32, of the whole sequence, END included.
    """

    tokens: Tensor
    log_probs: Tensor


class Continuation:
    """The step function of an encoder-decoder: each call costs one token, with cached keys.

    Args:
        network: in eval mode.
        memory, memory_mask: what its ``encode`` gave.
    """

    def __init__(self, network: EncoderDecoder, memory: Tensor, memory_mask: Tensor) -> None:
        self.network = network
        self.memory, self.memory_mask = memory, memory_mask
        self.cache = network.decoder.new_cache()

    def __call__(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        if rows is not None:
            self.memory, self.memory_mask = self.memory[rows], self.memory_mask[rows]
            self.cache.select(rows)
        logits = self.network.decode(tokens[:, None], self.memory, self.memory_mask, self.cache)
        logits = logits[:, -1].float()
        # What is no part of an answer; the network has learned so, and must not have the choice.
        return logits.index_fill(1, torch.tensor([PAD, BEGIN], device=logits.device), -torch.inf)


def generate(
    network: EncoderDecoder,
    *inputs: Tensor,
    max_length: int,
    width: int = 1,
    length_penalty: float = 0.0,
) -> Hypotheses:
    """What the network answers to ``inputs`` (as its ``encode`` takes them).

    Args:
        max_length: most tokens of an answer, END included.
        width: of the beam; 1 is greedy search.
        length_penalty: see :func:`beam_search`.
    """
    with torch.no_grad():
        memory, memory_mask = network.encode(*inputs)
        step = Continuation(network, memory, memory_mask)
        first = torch.full((len(memory),), BEGIN, device=memory.device)
        if width == 1:
            return greedy(step, first, max_length=max_length)
        return beam_search(step, first, width, max_length=max_length, length_penalty=length_penalty)


@torch.no_grad()
def greedy(step: Step, first: Tensor, *, max_length: int, end_id: int = END) -> Hypotheses:
    """The likeliest token each time, until END or ``max_length`` tokens.

    Args:
        first: (B,) int64, the token that each sample begins with.

    Raises:
        ValueError: ``max_length`` below 1.
    """
    _check(max_length)
    tokens = first.new_full((len(first), max_length), PAD)
    log_probs = torch.zeros(len(first), device=first.device)
    samples, rows, last = torch.arange(len(first), device=first.device), None, first
    length = 0
    while len(samples) and length < max_length:
        best, last = step(last, rows).float().log_softmax(-1).max(-1)
        tokens[samples, length] = last
        log_probs[samples] += best
        length += 1
        going = last != end_id
        rows = None
        if not going.all():
            rows = going.nonzero()[:, 0]
            samples, last = samples[rows], last[rows]
    return Hypotheses(tokens[:, :length], log_probs)


@torch.no_grad()
def beam_search(
    step: Step,
    first: Tensor,
    width: int,
    *,
    max_length: int,
    length_penalty: float = 0.0,
    end_id: int = END,
) -> Hypotheses:
    """The best of the complete sequences that a beam of ``width`` hypotheses comes upon.

    Complete is what ends in END or has ``max_length`` tokens. Complete hypotheses leave the beam,
    which gets narrower (Sutskever et al., "Sequence to Sequence Learning", 2014), and a sample is
    done when nothing in its beam can become better than what is complete. Width 1 is greedy search;
    with V tokens, a width of V^max_length sees every sequence.

    Args:
        first: (B,) int64, the token that each sample begins with.
        length_penalty: alpha; a sequence of n tokens is judged by its log-probability divided by
            ((5 + n) / 6)^alpha (Wu et al., "Google's Neural Machine Translation System", 2016).
            0 judges by probability alone, which prefers short ones.

    Raises:
        ValueError: ``width`` or ``max_length`` below 1, a negative ``length_penalty``.
    """
    _check(max_length)
    if width < 1 or length_penalty < 0.0:
        raise ValueError(f"width={width} must be 1 or more, length_penalty={length_penalty} >= 0")

    def judged(sums: Tensor, length: int) -> Tensor:
        return sums / ((5 + length) / 6) ** length_penalty

    batch, device = len(first), first.device
    found = first.new_full((batch, max_length), PAD)
    log_probs = torch.full((batch,), -torch.inf, device=device)
    values, lengths = log_probs.clone(), torch.zeros_like(first)  # as judged; of the tokens
    # Of the samples that go on: (A,), and their beams, (A, K) sums with -inf where there is none.
    samples = torch.arange(batch, device=device)
    sums = torch.zeros(batch, 1, device=device)
    prefixes = first.new_empty(batch, 1, 0)
    rows, last = None, first
    for length in range(1, max_length + 1):
        if not len(samples):
            break
        steps = step(last, rows).float().log_softmax(-1)
        live = sums > -torch.inf
        totals = steps.new_full((*live.shape, steps.shape[1]), -torch.inf)
        totals[live] = sums[live][:, None] + steps
        sums, index = totals.flatten(1).topk(min(width, totals[0].numel()))
        parent, token = index // steps.shape[1], index % steps.shape[1]
        kept = prefixes.gather(1, parent[..., None].expand(-1, -1, length - 1))
        prefixes = torch.cat([kept, token[..., None]], dim=-1)
        complete = (token == end_id) | (length == max_length)
        value, place = judged(sums.masked_fill(~complete, -torch.inf), length).max(1)
        better = value > values[samples]
        winners, place = samples[better], place[better]
        found[winners] = PAD
        found[winners, :length] = prefixes[better, place]
        log_probs[winners], values[winners] = sums[better, place], value[better]
        lengths[winners] = length
        sums = sums.masked_fill(complete, -torch.inf)
        # Sums only fall, and no length is judged more mildly than the longest.
        going = judged(sums.amax(1), max_length) > values[samples]
        number = (live.flatten().cumsum(0) - 1).view(live.shape)  # of each row of the call
        samples, sums, prefixes = samples[going], sums[going], prefixes[going]
        live = sums > -torch.inf
        rows, last = number.gather(1, parent)[going][live], token[going][live]
    return Hypotheses(found[:, : int(lengths.amax()) if batch else 0], log_probs)


def _check(max_length: int) -> None:
    if max_length < 1:
        raise ValueError(f"max_length={max_length}: at least one token, END, must be allowed")
