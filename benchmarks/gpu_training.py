"""Short trainings of the networks that come with recipes: do they learn on the device, how fast.

Lightning's own Trainer with the library's tasks and data, without Hydra. CIFAR-10 where
``CVATTN_DATA`` has it, else the digits of scikit-learn. A further network is one function in
``RUNS``, which gives what is trained and how long.
"""

import importlib.util
import math
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from gpu_checks import MIB, Check, Finding, Kernels, Place
from gpu_inputs import SEED

from cvattn.core import record_routes
from cvattn.data import DigitsData, ImageDataModule, choose
from cvattn.models import SAGAN, SAGANClassifier, UNet, VisionTransformer
from cvattn.tasks import ClassificationTask, FlowTask, GANTask, Muon, NetworkTask

# Better than before by so much: points of accuracy, or the share of the loss or distance left.
POINTS, LEFT = 0.1, 0.7


class Run(NamedTuple):
    """What is trained, on what, and for how long.

    Attributes:
        epochs: on CIFAR-10, and on the small digits.
        seconds: at most.
    """

    task: NetworkTask
    data: ImageDataModule
    epochs: tuple[int, int]
    seconds: int


def checks(place: Place) -> list[Check]:
    names = ["sagan"] if place.small else RUNS
    found = [Check(f"training: {name}", partial(_train, name)) for name in names]
    return found if place.small else [*found, Check("training: resume", _resume)]


def _data(batch_size: int, small_batch_size: int, **options: Any) -> ImageDataModule:
    root = os.environ.get("CVATTN_DATA", "data")
    if choose(root, offline=True).name == "cifar10":
        from cvattn.data import CIFAR10Data

        return CIFAR10Data(root=root, batch_size=batch_size, **options)
    return DigitsData(batch_size=small_batch_size)


def _optimizer(**rates: float) -> Callable[..., Muon]:
    return partial(Muon, **rates)


def _sagan(place: Place) -> Run:
    """As ``conf/recipe/sagan.yaml`` has it."""
    optimizer = _optimizer(lr=0.16, momentum=0.6, weight_decay=0.12, newton_schulz_steps=3)
    data = _data(500, 100)
    network = SAGANClassifier(10, in_channels=3, image_size=(32, 32))
    options: dict[str, Any] = {"label_smoothing": 0.2, "channels_last": True, "warmup": 0.0}
    task = ClassificationTask(network, num_classes=10, optimizer=optimizer, **options)
    return Run(task, data, (1, 8), 60)


def _vit(place: Place) -> Run:
    """As ``conf/model/vit.yaml`` and ``conf/recipe/vit.yaml`` have it."""
    data = _data(250, 50)
    form: dict[str, Any] = {"patch_size": 4, "stem": "conv", "embed_dim": 192, "num_heads": 6}
    form |= {"ffn_dim": 384, "num_layers": 6, "pool": "mean", "relative_bias": True}
    network = VisionTransformer(10, in_channels=3, image_size=(32, 32), **form)
    optimizer = _optimizer(lr=0.02, weight_decay=0.05)
    task = ClassificationTask(
        network, num_classes=10, optimizer=optimizer, warmup=0.1, label_smoothing=0.1
    )
    return Run(task, data, (1, 10), 60)


def _unet(place: Place) -> Run:
    """As ``conf/model/unet.yaml`` and ``conf/recipe/unet.yaml`` have it: a minute."""
    data = _data(128, 32)
    form: dict[str, Any] = {"timed": True, "patch_size": 2, "width": 32, "multipliers": (1, 2)}
    network = UNet(in_channels=3, image_size=(32, 32), classes=10, attention_at=(0, 1), **form)
    optimizer = _optimizer(lr=0.02, weight_decay=0.01)
    task = FlowTask(network, num_classes=10, optimizer=optimizer, warmup=0.02)
    return Run(task, data, (50, 500), 60)


def _gan(place: Place) -> Run:
    """As ``conf/model/sagan_gan.yaml`` and its recipe for few images have it: a minute."""
    data = _data(64, 32)
    network = SAGAN(3, image_size=(32, 32), classes=10, width=32, discriminator_width=32)
    adam: Any = partial(torch.optim.Adam, betas=(0.0, 0.9))
    rates = {"optimizer": partial(adam, lr=1e-3), "discriminator_optimizer": partial(adam, lr=1e-3)}
    task = GANTask(network, num_classes=10, augment=["translation"], **rates)
    return Run(task, data, (50, 500), 60)


RUNS: Mapping[str, Callable[[Place], Run]] = {
    "sagan": _sagan,
    "vit": _vit,
    "unet": _unet,
    "sagan_gan": _gan,
}


def _trainer(place: Place, **options: Any) -> pl.Trainer:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(
        **{
            "accelerator": "gpu" if place.on_cuda else "cpu",
            "devices": 1,
            "precision": "bf16-mixed" if place.on_cuda else "32-true",
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            "inference_mode": False,  # what is validated before is trained afterwards
            **quiet,
            **options,
        }
    )


class _Clock(pl.Callback):
    """Seconds and samples of the training steps, but for the first ones, which load kernels."""

    def __init__(self, place: Place, skipped: int) -> None:
        self.place, self.skipped = place, skipped
        self.samples, self.seconds, self.loss = 0, 0.0, torch.zeros(())
        self._since: float | None = None

    def _start(self) -> None:
        self.place.synchronize()
        self._since = time.perf_counter()

    def _stop(self) -> None:
        if self._since is not None:
            self.place.synchronize()
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def on_train_epoch_start(self, trainer, task) -> None:
        if trainer.global_step >= self.skipped:
            self._start()

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx) -> None:
        self.loss = outputs["loss"].detach()
        if self._since is not None:
            self.samples += len(batch[0])
        elif trainer.global_step == self.skipped:
            self._start()

    def on_validation_start(self, trainer, task) -> None:
        self._stop()

    def on_train_end(self, trainer, task) -> None:
        self._stop()


def _train(name: str, place: Place) -> Iterator[Finding]:
    pl.seed_everything(SEED, verbose=False)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    run = RUNS[name](place)
    run.data.prepare_data()
    run.data.setup("fit")
    if hasattr(run.task.network, "fit_to_images"):
        run.task.network.fit_to_images(*run.data.example_inputs(256, split="train"))
    facts = run.data.describe()
    if isinstance(run.task.network, SAGAN):
        run.task.network.set_normalisation(facts.mean, facts.std)
    few = {"limit_train_batches": 3, "limit_val_batches": 1} if place.small else {}
    epochs = 1 if place.small else run.epochs[facts.name == "digits"]
    clock = _Clock(place, skipped=1 if place.small else 10)
    limit = {"seconds": run.seconds}
    trainer = _trainer(place, max_epochs=epochs, max_time=limit, callbacks=[clock], **few)
    if place.on_cuda:
        torch.cuda.reset_peak_memory_stats(place.device)
    before = _validated(trainer, run)
    with record_routes() as record, Kernels() as kernels:
        _step_once(run, place)
    trainer.fit(run.task, run.data)
    after = _validated(trainer, run)
    routes = {route.name for _, route in record}
    seconds = max(clock.seconds, 1e-9)
    metric, mode = run.task.criterion
    yield Finding(
        f"training: {name}",
        ok=_learned(mode, before, after, place) and math.isfinite(float(clock.loss)),
        dtype=str(trainer.precision),
        route=" ".join(sorted(routes)),
        kernel=kernels.of(routes),
        milliseconds=1e3 * seconds * run.data.batch_size / max(clock.samples, 1),
        peak_mib=torch.cuda.max_memory_allocated(place.device) / MIB if place.on_cuda else None,
        note=(
            f"{facts.name}, {trainer.global_step} steps of {run.data.batch_size}; {metric} "
            f"{before:.4f} -> {after:.4f}; {clock.samples / seconds:.0f} images/s"
        ),
    )


def _step_once(run: Run, place: Place) -> None:
    """The network's calls of attention, forward and backward, as training has them."""
    images, *_ = run.data.example_images(8, "train")
    network = run.task.network.to(place.device)
    given = run.task.call_arguments(images.to(place.device))
    dtype = torch.bfloat16
    with torch.random.fork_rng(devices=[]), torch.autocast(place.device.type, dtype):
        network(*given).float().square().mean().backward()
    network.zero_grad()


def _validated(trainer: pl.Trainer, run: Run) -> float:
    (found,) = trainer.validate(run.task, run.data, verbose=False)
    return found[run.task.criterion.metric]


def _learned(mode: str, before: float, after: float, place: Place) -> bool:
    if place.small:  # three steps show that they can be made
        return math.isfinite(after) and after != before
    return after <= LEFT * before if mode == "min" else after >= before + POINTS


class _KeepFirst(pl.Callback):
    """The checkpoint of the first epoch under another name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_start(self, trainer, task) -> None:
        if trainer.current_epoch == 1 and not (self.folder / "first.ckpt").exists():
            shutil.copy(self.folder / "last.ckpt", self.folder / "first.ckpt")


def _resume(place: Place) -> Iterator[Finding]:
    """A run with dropout that goes on from its first epoch ends as the one that never stopped."""
    case = "training: resume"
    if importlib.util.find_spec("omegaconf") is None:
        yield Finding(case, note="not run: cvattn.harness needs omegaconf")
        return
    from cvattn.harness import resumable

    def trained(folder: Path, seed: int, path: str | None) -> list[torch.Tensor]:
        pl.seed_everything(seed, verbose=False)
        form: dict[str, Any] = {"patch_size": 8, "embed_dim": 48, "num_heads": 3, "num_layers": 2}
        network = VisionTransformer(10, image_size=(32, 32), dropout=0.2, **form)
        optimizer = _optimizer(lr=0.01)
        task = ClassificationTask(network, num_classes=10, optimizer=optimizer)
        callbacks = [*resumable(folder, seed=3), _KeepFirst(folder)]
        options = {"max_epochs": 2, "deterministic": True, "enable_checkpointing": True}
        trainer = _trainer(place, callbacks=callbacks, limit_train_batches=8, **options)
        trainer.fit(task, DigitsData(batch_size=64), ckpt_path=path)
        return [x.detach().cpu().clone() for x in network.parameters()]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = trained(folder, 1, None)
        again = trained(folder, 2, str(folder / "first.ckpt"))  # all else comes from there
    pairs = zip(whole, again, strict=True)
    apart = max((a - b).abs().max().item() for a, b in pairs)
    yield Finding(case, ok=apart == 0.0, error=apart, bound=0.0, note="bit for bit, with dropout")
