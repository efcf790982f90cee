"""SequenceTask: its figures against ones made by hand from the network's own answers."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from plain_trainer import trainer
from torch import nn

from cvattn.core import Alphabet
from cvattn.core.alphabet import PAD
from cvattn.data import StringsData
from cvattn.data.sequences.base import padded_targets
from cvattn.models import Transformer
from cvattn.models.decoding import generate
from cvattn.tasks import SequenceTask

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*", "ignore:.*does not have many workers.*", "ignore:.*logging interval.*"
)
LONGEST = 6


def data() -> StringsData:
    return StringsData(
        operation="copy",
        alphabet="abcd",
        max_length=4,
        train_size=40,
        val_size=11,
        test_size=29,
        batch_size=20,
        eval_batch_size=17,
    )


def make(**options) -> SequenceTask:
    torch.manual_seed(3)
    network = Transformer(7, 7, embed_dim=12, num_heads=3, ffn_dim=17, dropout=0.0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return SequenceTask(
        network,
        alphabet=list("abcd"),
        max_length=LONGEST,
        optimizer=partial(torch.optim.AdamW, lr=3e-3),
        **options,
    )


def edits(a: str, b: str) -> int:
    """Wagner and Fischer's table."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, before = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


class Agreeing(StringsData):
    """Strings of which every third has for its answer what the network says."""

    network: nn.Module

    def samples(self, split, index, epoch=0):
        (source,), target = super().samples(split, index, epoch)
        said = generate(self.network, source, max_length=LONGEST).tokens.tolist()
        texts = [self.alphabet.decode(row) for row in target.tolist()]
        texts[::3] = [self.alphabet.decode(row) for row in said[::3]]
        return (source,), padded_targets(texts, self.alphabet)


def test_metrics_are_those_of_free_running_over_the_whole_set(tmp_path):
    task = make(label_smoothing=0.2)
    lists = Agreeing(alphabet="abcd", max_length=4, test_size=29, eval_batch_size=29)
    lists.network = task.network.eval()
    (result,) = trainer(tmp_path).test(task, datamodule=lists, verbose=False)
    alphabet, network = Alphabet("abcd"), task.network.eval()
    (source,), target = lists.samples("test", torch.arange(29))
    answers = generate(network, source, max_length=LONGEST).tokens.tolist()
    said = [alphabet.decode(row) for row in answers]
    truth = [alphabet.decode(row) for row in target.tolist()]
    with torch.no_grad():
        logits = network(source, target[:, :-1])
    wanted = target[:, 1:]
    loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD)
    assert result["test/loss"] == pytest.approx(loss.item(), rel=1e-5)
    right = sum(a == b for a, b in zip(said, truth, strict=True)) / 29
    assert result["test/accuracy"] == pytest.approx(right)
    wrong = sum(edits(a, b) for a, b in zip(said, truth, strict=True)) / len("".join(truth))
    assert result["test/cer"] == pytest.approx(wrong)
    hits = tokens = 0
    for answer, row in zip(answers, wanted.tolist(), strict=True):
        real = [token for token in row if token != PAD]
        tokens += len(real)
        padded = answer + [PAD] * len(real)
        hits += sum(a == b for a, b in zip(padded, real, strict=False))
    assert result["test/token_accuracy"] == pytest.approx(hits / tokens)
    assert 0.3 < right < 0.9
    assert len(set(map(len, truth))) > 2


def test_label_smoothing_is_for_training_alone_and_padding_for_nothing(tmp_path):
    task, lists = make(label_smoothing=0.2), data()
    lists.setup()
    inputs, target = next(iter(lists.train_dataloader()))
    assert (target == PAD).any()
    with torch.no_grad():
        logits = task.network(*inputs, target[:, :-1])
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    run.fit(task, datamodule=lists)
    steps = logits.log_softmax(-1)
    real = target[:, 1:] != PAD
    own = steps.gather(2, target[:, 1:, None])[..., 0]
    smoothed = -(0.8 * own + 0.2 * steps.mean(-1))[real].mean()
    assert run.callback_metrics["train/loss"].item() == pytest.approx(smoothed.item(), rel=1e-5)


def test_the_size_of_a_sample_is_that_of_its_padded_tensors(tmp_path):
    task, lists = make(), data()
    trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0).fit(
        task, datamodule=lists
    )
    (source,), target = next(iter(data().train_dataloader()))  # of epoch 0
    assert task.size == (source.shape[1], target.shape[1] - 1)
    info = lists.describe()
    assert [x.shape[1] for x in info.zeros(task.size)] == list(task.size)
    assert info.zeros(info.size)[1].shape == (1, 5)


def test_a_network_that_answers_with_no_sequence_is_refused():
    with pytest.raises(TypeError, match=r"Linear answers with no sequence.*reader and transformer"):
        SequenceTask(nn.Linear(2, 3), alphabet="ab", max_length=3, optimizer=torch.optim.SGD)
