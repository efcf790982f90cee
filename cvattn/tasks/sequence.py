"""Learning to answer with a sequence of characters."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import CharErrorRate

from cvattn.core import Alphabet
from cvattn.core.alphabet import BEGIN, PAD
from cvattn.models.decoding import Continuation, greedy
from cvattn.tasks.base import NetworkTask
from cvattn.tasks.optimisation import OptimizerFactory

Batch = tuple[tuple[Tensor, ...], Tensor]


class SequenceTask(NetworkTask):
    """Teacher forcing in training; what is measured is what the network says by itself.

    Logs once an epoch ``{train,val,test}/loss`` (cross-entropy of the tokens, padding left out,
    with the right tokens before each) and, of greedy decoding, ``{val,test}/accuracy`` (answers
    that are right as a whole), ``cer`` (edits for each character of the truth) and
    ``token_accuracy`` (tokens of the truth that the answer has in their place, END included).
    ``trainer.predict`` gives the answers as strings, a batch at a time.

    Args:
        network: ``encode(*inputs) -> (memory, mask)``, ``decode(ids, memory, mask, cache) ->
            logits``, and both in turn when it is called with ``(*inputs, ids)``, such as
            :class:`cvattn.models.Transformer`.
        alphabet: the characters, in the order of their ids.
        max_length: most tokens of an answer, END included.
        optimizer, warmup, final, label_smoothing: as in :class:`NetworkTask`.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        alphabet: Sequence[str],
        max_length: int,
        optimizer: OptimizerFactory,
        warmup: float = 0.1,
        final: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            network,
            optimizer=optimizer,
            warmup=warmup,
            final=final,
            label_smoothing=label_smoothing,
        )
        if not callable(getattr(network, "encode", None)):
            raise TypeError(
                f"{type(network).__name__} answers with no sequence: it has no encode() and "
                "decode(); models for this task are reader and transformer"
            )
        self.alphabet = Alphabet(alphabet)
        self.max_length = max_length
        vocab = len(self.alphabet)
        self.measures = nn.ModuleDict({stage: _Measures(vocab) for stage in ("val", "test")})

    @property
    def shown(self) -> dict[str, str]:
        return {
            "val/accuracy": "val exact",
            "test/accuracy": "test exact",
            "test/token_accuracy": "tokens",
            "test/cer": "CER",
        }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch
        self.size = tuple(side for given in (*inputs, targets[:, :-1]) for side in given.shape[1:])
        logits = self.network(*inputs, targets[:, :-1])
        return self._loss("train", logits, targets)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._judge("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._judge("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[str]:
        """What the network answers to each of a batch, by greedy decoding."""
        inputs, _ = batch
        memory, mask = self.network.encode(*inputs)  # type: ignore[operator]
        return [self.alphabet.decode(row) for row in self._answers(memory, mask).tolist()]

    def _answers(self, memory: Tensor, mask: Tensor | None) -> Tensor:
        """Ids (B, T) of greedy decoding."""
        step = Continuation(self.network, memory, mask)  # type: ignore[arg-type]
        first = torch.full((len(memory),), BEGIN, device=memory.device)
        return greedy(step, first, max_length=self.max_length).tokens

    def _loss(self, stage: str, logits: Tensor, targets: Tensor) -> Tensor:
        wanted = targets[:, 1:]
        loss = F.cross_entropy(
            logits.float().flatten(0, 1),
            wanted.flatten(),
            ignore_index=PAD,
            label_smoothing=self.label_smoothing if stage == "train" else 0.0,
        )
        if stage == "train":  # a GPU is not waited for, to say how many tokens there were
            self.note_training("train/loss", loss, len(targets))
        else:
            self.log_epoch(f"{stage}/loss", loss, int((wanted != PAD).sum()))
        return loss

    def _judge(self, stage: str, batch: Batch) -> None:
        inputs, targets = batch
        memory, mask = self.network.encode(*inputs)  # type: ignore[operator]
        logits = self.network.decode(targets[:, :-1], memory, mask, None)  # type: ignore[operator]
        self._loss(stage, logits, targets)
        answers = self._answers(memory, mask)
        said = [self.alphabet.decode(row) for row in answers.tolist()]
        truth = [self.alphabet.decode(row) for row in targets.tolist()]
        wanted = targets[:, 1:]
        # PAD where the answer was shorter; it is never right there.
        placed = F.pad(answers, (0, max(0, wanted.shape[1] - answers.shape[1])), value=PAD)
        measures = cast(_Measures, self.measures[stage])
        right = [float(a == b) for a, b in zip(said, truth, strict=True)]
        measures.accuracy.update(memory.new_tensor(right, dtype=torch.float32))
        measures.cer.update(said, truth)
        measures.token_accuracy.update(placed[:, : wanted.shape[1]], wanted)
        for name, metric in measures.named_children():
            self.log_epoch(f"{stage}/{name}", cast(Metric, metric), len(targets))


class _Measures(nn.Module):
    """Of answers, in one stage."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.accuracy = MeanMetric()
        self.cer = CharErrorRate()
        self.token_accuracy = MulticlassAccuracy(vocab, average="micro", ignore_index=PAD)
