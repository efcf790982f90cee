"""A run as it goes: one bar for the whole training, one line for each epoch."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from cvattn.cost import training_pflop
from cvattn.harness.reporting.summary import figure
from cvattn.tasks import NetworkTask


def samples_of(batch: Any) -> int:
    """How many samples a batch has: of the last tensor in it, its labels as a rule."""
    while not isinstance(batch, Tensor):
        batch = list(batch.values() if isinstance(batch, Mapping) else batch)[-1]
    return len(batch)


class Throughput(pl.Callback):
    """Counts samples and time over the whole run, also when it is continued.

    Args:
        typical: size of a sample, where the task does not say what it has seen.

    Attributes:
        seen: training samples of each size, over all processes.
        training_seconds: in training steps.
        seconds: from the start of training to its end, validation and checkpoints included.
    """

    def __init__(self, typical: tuple[int, ...]) -> None:
        self.typical = typical
        self.seen: Counter[tuple[int, ...]] = Counter()
        self.training_seconds = 0.0
        self.seconds = 0.0
        self._began = 0.0
        self._epoch_began = 0.0

    @property
    def per_second(self) -> float:
        return self.seen.total() / self.training_seconds if self.training_seconds else 0.0

    def figures(self, macs: Callable[[tuple[int, ...]], int], unit: str) -> dict[str, Any]:
        """What the summary says of time and cost.

        Args:
            macs: of a size, for one sample.
            unit: what a sample is called.
        """
        by_size = {"x".join(map(str, size)): count for size, count in self.seen.items()}
        return {
            "minutes": self.seconds / 60,
            f"{unit}s": self.seen.total(),
            f"{unit}s_per_second": self.per_second,
            f"{unit}s_by_size": by_size,
            "pflop": sum(training_pflop(macs(size), n) for size, n in self.seen.items()),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "seen": dict(self.seen),
            "training_seconds": self.training_seconds,
            "seconds": self.seconds + time.perf_counter() - self._began,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = Counter(state_dict["seen"])
        self.training_seconds = state_dict["training_seconds"]
        self.seconds = state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = self._epoch_began = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch_began = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: NetworkTask,  # type: ignore[override]
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.seen[pl_module.size or self.typical] += samples_of(batch) * trainer.world_size
        now = time.perf_counter()
        self.training_seconds += now - self._epoch_began
        self._epoch_began = now

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds += time.perf_counter() - self._began


class ProgressLines(pl.Callback):
    """A bar over all steps where there is a terminal, and a line for each epoch anywhere.

    Where there is none, a log file, a long epoch says every few minutes how far it is. Logs ``lr``
    too, once an epoch: the highest learning rate of a parameter group, in the epoch's last step.

    Args:
        unit: what a sample is called.
    """

    EVERY = 120.0  # seconds between the lines within an epoch

    def __init__(self, console: Console, throughput: Throughput, unit: str) -> None:
        self.console = console
        self.throughput = throughput
        self.unit = unit
        self._bar: Progress | None = None
        self._shown = 0.0
        self._validated: list[str] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._shown = time.perf_counter()
        if not (trainer.is_global_zero and self.console.is_terminal):
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps"),
            TextColumn("{task.fields[now]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(
            "training", total=int(trainer.estimated_stepping_batches), now=""
        )

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # Ten times a second is what an eye can follow; the loss is read (and waited for) only then.
        now = time.perf_counter()
        if not trainer.is_global_zero or now - self._shown < (0.1 if self._bar else self.EVERY):
            return
        self._shown = now
        loss = float(outputs["loss"] if isinstance(outputs, dict) else outputs)
        epoch = f"epoch {trainer.current_epoch + 1:>3}/{_epochs(trainer)}"
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=epoch,
                completed=trainer.global_step,
                now="  ".join([f"loss {loss:.3f}", *self._validated, self._speed()]),
            )
        elif not trainer.is_last_batch:  # the epoch's own line comes next
            step = f"step {trainer.global_step}/{int(trainer.estimated_stepping_batches)}"
            self.console.print(f"{epoch}  {step}  loss {loss:.3f}  {self._speed()}")

    def on_validation_end(
        self,
        trainer: pl.Trainer,
        pl_module: NetworkTask,  # type: ignore[override]
    ) -> None:
        self._validated = _validated(trainer, pl_module)

    def on_train_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: NetworkTask,  # type: ignore[override]
    ) -> None:
        # That of the next step: a run that goes on from here has it, too.
        groups = [group["lr"] for each in trainer.optimizers for group in each.param_groups]
        if groups:
            pl_module.log("lr", max(map(float, groups)), batch_size=1, rank_zero_only=True)
        self._shown = time.perf_counter()
        if not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        parts = [f"epoch {trainer.current_epoch + 1:>3}/{_epochs(trainer)}"]
        for key, text in (("train/loss", "loss {:.3f}"), ("train/accuracy", "train {:.1%}")):
            if key in metrics:
                parts.append(text.format(float(metrics[key])))
        parts += [*_validated(trainer, pl_module), self._speed()]
        self.console.print("  ".join(parts), highlight=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def _speed(self) -> str:
        return f"{self.throughput.per_second:,.0f} {self.unit}s/s"

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _validated(trainer: pl.Trainer, task: NetworkTask) -> list[str]:
    """The latest of what the task is judged by; nothing before the first validation."""
    metric = task.criterion.metric
    known = trainer.callback_metrics.get(metric)
    return [] if known is None else [f"val {figure(metric, float(known), digits=1)}"]


def _epochs(trainer: pl.Trainer) -> int:
    """How many there will be, the last one cut short where ``trainer.max_steps`` ends the run."""
    steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    return math.ceil(trainer.estimated_stepping_batches / steps)
