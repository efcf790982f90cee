"""Transformer: causal, blind to padding, and equal to torch's stacks put together by hand."""

import math

import pytest
import torch
from oracles import assert_near
from torch import Tensor, nn

from cvattn.core.positions import sinusoidal_1d
from cvattn.models import Transformer
from cvattn.weights import from_torch, to_torch

PAD = 3
SOURCE_VOCAB, TARGET_VOCAB = 13, 11
either_norm = pytest.mark.parametrize("norm_first", [True, False], ids=["pre-norm", "post-norm"])


def make(**options) -> Transformer:
    sizes = {"embed_dim": 12, "num_heads": 3, "ffn_dim": 17, "pad_id": PAD}
    model = Transformer(SOURCE_VOCAB, TARGET_VOCAB, **(sizes | options)).double().eval()
    with torch.no_grad():  # norms and biases too: fresh ones hide what they do
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def tokens(lengths: tuple[int, ...], size: int, vocab: int) -> Tensor:
    """Random ids other than padding, then padding."""
    ids = torch.randint(PAD + 1, vocab, (len(lengths), size))
    for row, length in zip(ids, lengths, strict=True):
        row[length:] = PAD
    return ids


SOURCE_LENGTHS, TARGET_LENGTHS = (7, 4, 1), (2, 5, 3)


def batch() -> tuple[Tensor, Tensor]:
    return tokens(SOURCE_LENGTHS, 7, SOURCE_VOCAB), tokens(TARGET_LENGTHS, 5, TARGET_VOCAB)


@pytest.mark.usefixtures("float64")
@either_norm
def test_equals_torch_stacks_put_together_by_hand(norm_first):
    model = make(norm_first=norm_first, num_encoder_layers=3, num_decoder_layers=2)
    source, target = batch()
    encoder, decoder = to_torch(model.encoder).eval(), to_torch(model.decoder).eval()
    assert isinstance(encoder, nn.TransformerEncoder)
    assert isinstance(decoder, nn.TransformerDecoder)

    def embed(weight: Tensor, ids: Tensor) -> Tensor:
        return weight[ids] * math.sqrt(12) + sinusoidal_1d(ids.shape[1], 12).double()

    source_padding, target_padding = source == PAD, target == PAD
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    memory = encoder(
        embed(model.source_embedding.weight, source), src_key_padding_mask=source_padding
    )
    out = decoder(
        embed(model.target_embedding.weight, target),
        memory,
        tgt_mask=future,
        tgt_key_padding_mask=target_padding,
        memory_key_padding_mask=source_padding,
    )
    want = out @ model.head.weight.T + model.head.bias
    real = ~target_padding
    # The table of positions was made in float32, and so limits the comparison.
    assert_near(model(source, target)[real], want[real])
    model.positions.table = sinusoidal_1d(512, 12).double()
    assert_near(model(source, target)[real], want[real])


@either_norm
def test_the_future_of_the_target_changes_nothing_before_it(norm_first):
    model = make(norm_first=norm_first)
    source, target = batch()[0], tokens((7, 7, 7), 7, TARGET_VOCAB)
    want = model(source, target)
    for t in range(6):
        other = target.clone()
        other[:, t + 1 :] = (target[:, t + 1 :] - PAD) % (TARGET_VOCAB - PAD - 1) + PAD + 1
        assert (other[:, t + 1 :] != target[:, t + 1 :]).all()
        got = model(source, other)
        assert (got[:, : t + 1] - want[:, : t + 1]).abs().max() <= 1e-12
        assert (got[:, t + 1 :] - want[:, t + 1 :]).abs().max() > 1e-3


@either_norm
def test_more_padding_changes_nothing(norm_first):
    model = make(norm_first=norm_first)
    source, target = batch()
    want = model(source, target)
    longer_source = torch.cat([source, torch.full((3, 4), PAD)], dim=1)
    longer_target = torch.cat([target, torch.full((3, 2), PAD)], dim=1)
    got = model(longer_source, longer_target)[:, :5]
    real = target != PAD
    assert_near(got[real], want[real])


def test_what_lies_under_padding_changes_nothing():
    """The embedding of the padding token is 0; whatever it becomes, no real token may see it."""
    model = make()
    source, target = batch()
    real = target != PAD
    want = model(source, target)[real]
    with torch.no_grad():
        # Not a constant: layer norm would take that away.
        model.source_embedding.weight[PAD] = 7 * torch.randn(12)
        model.target_embedding.weight[PAD] = 5 * torch.randn(12)
    assert_near(model(source, target)[real], want)
    memory, mask = model.encode(source)
    noise = torch.where((source == PAD)[..., None], torch.randn_like(memory), memory)
    assert not torch.equal(noise, memory)
    assert_near(model.decode(target, noise, mask)[real], want)


def test_padding_in_front_of_the_target_is_hidden_by_its_mask():
    """At the end causality alone would hide it; in front only the mask does."""
    model = make()
    source, target = batch()
    target = target.flip(1)
    real = target != PAD
    assert not real[:, 0].all()
    want = model(source, target)[real]
    with torch.no_grad():
        model.target_embedding.weight[PAD] = 5 * torch.randn(12)
    assert_near(model(source, target)[real], want)


def test_each_sample_is_alone():
    model = make()
    source, target = batch()
    together = model(source, target)
    for i, (s, t) in enumerate(zip(SOURCE_LENGTHS, TARGET_LENGTHS, strict=True)):
        alone = model(source[i : i + 1, :s], target[i : i + 1, :t])
        assert_near(together[i : i + 1, :t], alone)


def test_source_and_its_order_matter():
    model = make()
    source, target = tokens((7, 7), 7, SOURCE_VOCAB), tokens((5, 5), 5, TARGET_VOCAB)
    want = model(source, target)
    assert (model(source.flip(1), target) - want).abs().max() > 1e-3
    assert (model(source.roll(1, 0), target) - want).abs().max() > 1e-3


def test_a_source_of_padding_alone_gives_finite_logits_and_gradients():
    model = make()
    source, target = batch()
    source[1] = PAD
    logits = model(source, target)
    assert torch.isfinite(logits).all()
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


def test_it_trains_and_the_padding_embedding_stays_0():
    model = Transformer(SOURCE_VOCAB, TARGET_VOCAB, embed_dim=12, num_heads=3, pad_id=PAD)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    source, target = batch()
    losses = []
    for _ in range(20):
        logits = model(source, target[:, :-1])
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=PAD
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert not model.source_embedding.weight[PAD].any()
    assert not model.target_embedding.weight[PAD].any()


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@either_norm
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_weights_of_torchs_own_transformer_come_in(norm_first, training):
    """``nn.Transformer`` around the same embeddings agrees on padded batches, dropout being 0."""
    theirs = nn.Transformer(
        12,
        3,
        num_encoder_layers=3,
        num_decoder_layers=2,
        dim_feedforward=17,
        dropout=0.0,
        batch_first=True,
        norm_first=norm_first,
        dtype=torch.float64,
    ).train(training)
    model = make(num_encoder_layers=3, num_decoder_layers=2, dropout=0.0, norm_first=norm_first)
    model.encoder, model.decoder = from_torch(theirs.encoder), from_torch(theirs.decoder)
    model.train(training)
    model.positions.table = sinusoidal_1d(512, 12).double()
    source, target = batch()
    padding = {
        "src_key_padding_mask": source == PAD,
        "tgt_key_padding_mask": target == PAD,
        "memory_key_padding_mask": source == PAD,
    }
    out = theirs(
        model._embed(model.source_embedding, source),
        model._embed(model.target_embedding, target),
        tgt_mask=torch.ones(5, 5, dtype=torch.bool).triu(1),
        **padding,
    )
    real = target != PAD
    assert_near(model(source, target)[real], model.head(out)[real])
