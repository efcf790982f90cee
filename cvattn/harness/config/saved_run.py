"""The checkpoint of a run that is to be continued: opened once, and what it says of the run."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cvattn import checkpoint
from cvattn.data import Facts
from cvattn.harness.averaging import AveragedWeights
from cvattn.harness.config.errors import ConfigError
from cvattn.harness.position import Position, position_of

_TRAINING = ("epoch", "global_step", "optimizer_states", "lr_schedulers", "loops")


@dataclass(frozen=True)
class SavedRun:
    """What a checkpoint says of its run; the weights are left to Lightning.

    Attributes:
        path: of the checkpoint.
        meta: of its entry: configuration, choices, overrides, commits, the data's identity.
        missing: parts of the state of training that are not in it: it was saved for use.
        position: what is behind it; None if anything is missing.
        global_step: optimiser steps.
        over: training had ended when it was written.
        averaged: its weights are averaged.
        shapes: of the network's weights and buffers.
    """

    path: str
    meta: Mapping[str, Any]
    missing: tuple[str, ...]
    position: Position | None
    global_step: int
    over: bool
    averaged: bool
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def from_python(self) -> bool:
        """Whether it was started by ``cvattn.fit``."""
        return bool(self.meta.get("from_python"))

    @property
    def choices(self) -> dict[str, Any]:
        """Of groups: ``{"model": "vit", ...}``."""
        return dict(self.meta["choices"])

    @property
    def folder(self) -> Path:
        """Of the run, as :func:`run_folder`."""
        return run_folder(self.path)

    @property
    def words(self) -> str:
        """Where its training is."""
        where = "for use" if self.position is None else self.position.words
        return f"{where} ({self.global_step} steps)"

    def keys(self) -> list[str]:
        """The keys of its configuration, of nodes and of values."""
        return keys_of(self.meta["source_config"])

    def check_continuable(self, cfg: DictConfig, callbacks: Iterable[type]) -> None:
        """Raise ConfigError if the resolved configuration cannot go on from this state.

        Args:
            callbacks: classes of those that will be there.
        """
        if cfg.trainer.get("fast_dev_run"):
            raise ConfigError(
                "trainer.fast_dev_run tries a batch in a run of its own; a continued run would "
                "leave what came of that batch as its result. Leave ckpt_path= out"
            )
        if self.averaged and not any(issubclass(c, AveragedWeights) for c in callbacks):
            raise ConfigError(
                "the weights in this checkpoint are averaged, and those that were trained stand "
                "beside them: the callback that averages (callbacks.ema) cannot be taken out"
            )

    def check_same_data(self, info: Facts, *, resized: bool) -> None:
        """Raise ConfigError if the data is not what the run was trained on.

        Args:
            info: of the data as it is now, read.
            resized: the command line changes how much of it there is (``data.train_on_val``).
        """
        now: dict[str, Any] = {**info.meta(), **info.identity()}
        sizes = {"train_size", "val_size", "test_size"}
        for key, value in now.items():
            if key in self.meta and self.meta[key] != value and not (resized and key in sizes):
                raise ConfigError(
                    f"data: {key.replace('_', ' ')} of {info.name} ({info.source}) was "
                    f"{_short(self.meta[key])} when the run in {self.path} was trained, and is "
                    f"{_short(value)} now. A continued run needs the same data: put it back, name "
                    "its place with data.root=, or start a new run without ckpt_path="
                )

    def notes_of_changes(self, now: Mapping[str, Any]) -> list[str]:
        """What a person should know who continues the run with these resolved values."""
        before = self.meta.get("config", {})
        for key in ("max_epochs", "max_steps"):
            was, is_now = (one.get("trainer", {}).get(key) for one in (before, now))
            if was != is_now:
                again = " and small images come again" if now["task"].get("resizing") else ""
                return [
                    f"trainer.{key} was {was} and is {is_now}: the schedule is stretched over the "
                    f"new length, so the learning rate rises again{again}"
                ]
        return []


def open_run(path: str) -> SavedRun:
    """The run of ``train.py`` that wrote this checkpoint.

    Raises:
        ConfigError: there is none; it is a run from Python, or holds a network for use.
    """
    saved = _opened(path)
    if saved.from_python:
        raise ConfigError(
            f"ckpt_path: the run in {path} was started from Python, with objects that no "
            "configuration names; continue it there, with cvattn.fit(..., resume=True)"
        )
    if not all(isinstance(saved.meta.get(key), dict) for key in ("source_config", "choices")):
        raise ConfigError(
            f"ckpt_path: {path} holds a network for use, without the state of a training run; "
            "continue from a checkpoint in a run's checkpoints/ folder"
        )
    return saved


def open_from_python(path: str) -> SavedRun:
    """The run of ``cvattn.fit`` that wrote this checkpoint.

    Raises:
        ConfigError: it is another one's, or has not the state of training.
    """
    saved = _opened(path)
    if not saved.from_python:
        raise ConfigError(
            f"the run in {saved.folder} was not started by cvattn.fit; continue it as it was "
            f"started: python train.py ckpt_path={path}"
        )
    return _with_state(saved)


def open_training(path: str) -> SavedRun:
    """As :func:`open_run`, with the state of training.

    Raises:
        ConfigError: that is not in it.
    """
    return _with_state(open_run(path))


def _opened(path: str) -> SavedRun:
    try:
        state = Path(path).stat()
    except OSError:
        raise ConfigError(f"ckpt_path: no checkpoint at {path}") from None
    return _open(path, state.st_mtime_ns, state.st_size)


def _with_state(saved: SavedRun) -> SavedRun:
    path = saved.path
    if saved.position is None:
        raise ConfigError(
            f"ckpt_path: {path} has no {', '.join(saved.missing)}: it was saved for use "
            "(save_weights_only), without the state of training; continue from a checkpoint that "
            "has it, such as checkpoints/last.ckpt of a run"
        )
    return saved


# The command line is checked before Hydra composes it, and the run is assembled after that.
@functools.lru_cache(maxsize=4)
def _open(path: str, *changed: int) -> SavedRun:
    try:
        content = checkpoint.read(path)
    except (FileNotFoundError, checkpoint.CheckpointError) as error:
        raise ConfigError(f"ckpt_path: {error}") from error
    missing = tuple(key for key in _TRAINING if key not in content)
    return SavedRun(
        path=path,
        meta=content["cvattn"]["meta"],
        shapes={
            key: tuple(value.shape)
            for key, value in content["state_dict"].items()
            if key.startswith(checkpoint.PREFIX)
        },
        missing=missing,
        position=None if missing else position_of(content),
        global_step=content.get("global_step", 0),
        over=bool(content.get("run", {}).get("over", False)),
        averaged="averaging_state" in content,
    )


def last_of(folder: Path) -> str | None:
    """The checkpoint that a run in the folder is continued from; None if it has none yet."""
    last = folder.absolute() / "checkpoints" / "last.ckpt"
    return str(last) if last.exists() else None


def run_folder(path: str) -> Path:
    """The folder of the run that wrote this checkpoint: where its ``config.yaml`` is.

    Without one, the parent of ``checkpoints/``, or the checkpoint's own folder.
    """
    folder = Path(path).absolute().parent
    for place in (folder, folder.parent):
        config = place / "config.yaml"
        if config.is_file() and "\nrun_dir:" in config.read_text(errors="replace"):
            return place
    return folder.parent if folder.name == "checkpoints" else folder


def keys_of(node: Any, path: str = "") -> list[str]:
    """All keys of nested dicts, with points between: of nodes and of values."""
    keys = [path] if path else []
    for key, child in node.items() if isinstance(node, dict) else ():
        keys += keys_of(child, f"{path}.{key!s}" if path else str(key))
    return keys


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
