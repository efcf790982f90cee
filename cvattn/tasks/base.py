"""What every task does: optimiser, schedule, and means over an epoch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric

from cvattn.cost import count_macs
from cvattn.data import Facts
from cvattn.tasks.optimisation import (
    OptimizerFactory,
    check_schedule,
    parameter_groups,
    warmup_cosine,
)


class Criterion(NamedTuple):
    """What says which weights of a run are best: a metric of the validation, and its direction.

    Attributes:
        metric: as it is logged, "val/accuracy" say.
        mode: "max" or "min".
    """

    metric: str
    mode: Literal["max", "min"]

    def score(self, value: float) -> float:
        """The value where more is better, its negative where less is: what a search maximises."""
        return value if self.mode == "max" else -value


class NetworkTask(pl.LightningModule):
    """Base of the tasks.

    Args:
        network: what is trained.
        optimizer: takes the parameter groups and returns the optimiser.
        warmup, final: of the schedule (:func:`warmup_cosine`).
        label_smoothing: of the training loss; validation and test losses have none.

    Attributes:
        size: of a sample of the last batch that was trained on, padding included.
        criterion: what the best checkpoint, early stopping and sweeps go by.
        target: what each sample of its data has to be learned (:class:`cvattn.data.Facts`); None:
            the task does not say.
    """

    criterion: Criterion = Criterion("val/accuracy", "max")
    target: ClassVar[str | None] = None

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerFactory,
        warmup: float,
        final: float,
        label_smoothing: float,
    ) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1)")
        check_schedule(warmup, final)
        self.network = network
        self.optimizer = optimizer
        self.warmup = warmup
        self.final = final
        self.label_smoothing = label_smoothing
        self.size: tuple[int, ...] = ()
        self._noted: dict[str, tuple[Tensor, int]] = {}
        self._means_logged = False

    @classmethod
    def network_values(cls, info: Facts) -> dict[str, Any]:
        """Values that a network leaves open for its task, beside those that the data says."""
        return {}

    @classmethod
    def criterion_of(cls, arguments: Mapping[str, Any]) -> Criterion:
        """What it is judged by if it is built with these arguments."""
        return cls.criterion

    @property
    def shown(self) -> dict[str, str]:
        """The metrics that a run ends with, and what people call them."""
        raise NotImplementedError

    def meet(self, info: Facts) -> list[str]:
        """Called when the data has been read, before training.

        Returns:
            What a person should know of the run that begins.

        Raises:
            ValueError: the task cannot learn from it.
        """
        return []

    def settle(self) -> bool:
        """Called when averaged weights have taken the place of the trained ones.

        Returns:
            Whether buffers were computed anew, as those of the trained weights do not fit.
        """
        return False

    def remarks(self, tested: Mapping[str, float], evaluations: Sequence[float]) -> list[str]:
        """What a person should know of a run that has ended.

        Args:
            tested: metrics of the test.
            evaluations: what the criterion was after each epoch.
        """
        return []

    def call_arguments(self, *given: Tensor) -> tuple[Tensor, ...]:
        """What the network is called with where the data has ``given``: for counts and pictures."""
        return given

    def answer_shape(self, *given: Tensor) -> tuple[int, ...] | None:
        """What the network's answer to ``given`` has to have for this task; None: not said."""
        return None

    def check_network(self, *given: Tensor) -> None:
        """ValueError unless the network takes what the data has, and answers as the task needs.

        It is called once, in eval mode; a lazy layer knows its size from then on.
        """
        name, shapes = type(self.network).__name__, ", ".join(str(tuple(x.shape)) for x in given)
        training = self.network.training
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                answer = self.network.eval()(*self.call_arguments(*given))
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            lines = str(error).strip().splitlines() or [""]
            raise ValueError(
                f"{name} does not take what the data has, {shapes}: {type(error).__name__}: "
                f"{lines[0]}"
            ) from error
        finally:
            self.network.train(training)
        wanted = self.answer_shape(*given)
        if wanted is None:
            return
        found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        if found != wanted:
            raise ValueError(
                f"{name} answers {shapes} with {found}, and {type(self).__name__} needs {wanted}"
            )

    def training_macs(self, network: nn.Module, *given: Tensor) -> int:
        """Multiply-accumulates of a forward pass: a sample's training costs three times as many."""
        return count_macs(network, *self.call_arguments(*given))

    def log_epoch(self, name: str, value: Tensor | Metric, count: int) -> None:
        """Log the mean over the epoch, where this batch has ``count`` of what is averaged.

        Means are over samples, also where processes or batches have unequal numbers of them.
        """
        self.log(name, value, on_step=False, on_epoch=True, batch_size=count, sync_dist=True)

    def note_training(self, name: str, mean: Tensor, count: int) -> None:
        """As :meth:`log_epoch`, of a training step.

        Sums wait for the end of the epoch: ``log`` takes as long as a small network's layer. They
        are part of a checkpoint that is saved before.
        """
        total, before = self._noted.get(name, (torch.zeros_like(mean), 0))
        self._noted[name] = total.to(mean) + mean.detach() * count, before + count

    def log_means(self) -> None:
        """Log what was noted in this epoch, once; a callback may ask for it before it is over."""
        if self._means_logged:
            return
        self._means_logged = True
        for name, (total, count) in self._noted.items():
            self.log_epoch(name, total / max(count, 1), count)

    def on_train_epoch_start(self) -> None:
        self._noted.clear()
        self._means_logged = False

    def on_train_epoch_end(self) -> None:
        self.log_means()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # For each process its sum and its count; only the first one's checkpoint is written.
        noted = {
            name: torch.tensor([[float(total), count]], dtype=torch.float64)
            for name, (total, count) in self._noted.items()
        }
        if self.trainer.world_size > 1:
            gathered = {k: self.all_gather(v.to(self.device)) for k, v in noted.items()}
            noted = {k: cast(Tensor, v).flatten(0, 1) for k, v in gathered.items()}
        checkpoint["noted"] = {name: table.cpu() for name, table in noted.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        rank, processes = self.trainer.global_rank, self.trainer.world_size
        for name, table in checkpoint.get("noted", {}).items():
            if len(table) != processes:
                table = table.sum(0, keepdim=True) * torch.eye(processes, 1, dtype=table.dtype)
            self._noted[name] = table[rank, 0].float(), int(table[rank, 1])

    def on_train_start(self) -> None:
        """What this task was given counts, also where a checkpoint had other values.

        A run that is continued with another learning rate, weight decay or the like goes on with
        them: the checkpoint's own come back with the optimiser's state. Its steps stay as they are.
        """
        optimizers = _listed(self.optimizers(use_pl_optimizer=False))
        schedules = _listed(self.lr_schedulers())
        fresh = self.make_optimizers()
        if not len(optimizers) == len(schedules) == len(fresh):
            return  # a subclass has its own
        for optimizer, schedule, other in zip(optimizers, schedules, fresh, strict=True):
            if isinstance(schedule, LambdaLR):
                _follow(optimizer, schedule, other)

    def make_optimizers(self) -> list[Optimizer]:
        """With the learning rates that their schedules start from."""
        return [self.optimizer(parameter_groups(self.network))]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizers = self.make_optimizers()
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise ValueError(
                "the schedule needs an end: set trainer.max_epochs or trainer.max_steps to a "
                "positive number"
            )
        self._steps = int(steps)
        options: dict[str, Any] = {"steps": self._steps, "warmup": self.warmup, "final": self.final}
        schedules: list[Any] = [
            {"scheduler": warmup_cosine(optimizer, **options), "interval": "step"}
            for optimizer in optimizers
        ]
        return optimizers, schedules


def _follow(optimizer: Optimizer, schedule: LambdaLR, fresh: Optimizer) -> None:
    """Give an optimiser whose state came from a checkpoint the values of a fresh one."""
    for group, new in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        group |= {key: value for key, value in new.items() if key != "params"}
        group["initial_lr"] = new["lr"]
    schedule.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
        group["lr"] = group["initial_lr"] * factor(schedule.last_epoch)


def _listed(one_or_more: Any) -> list[Any]:
    """Lightning gives one of them, a list of several, or None."""
    if isinstance(one_or_more, (list, tuple)):
        return list(one_or_more)
    return [] if one_or_more is None else [one_or_more]
