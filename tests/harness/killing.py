"""Small runs, stopped in processes of their own, and what must be equal afterwards."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent


class Runs:
    """Starts runs one after another through a server that has imported everything once."""

    def __init__(self) -> None:
        self.together: list[int] = []
        self.server = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "CVATTN_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )

    def close(self) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait(timeout=120)  # a machine may be busy
        self.server.stdout.close()

    def start_together(
        self, arguments: Sequence[str], cwd: Path, environments: Sequence[dict[str, str]]
    ) -> list[int]:
        """As :meth:`start`, a process for each environment; their process ids."""
        assert self.server.stdin is not None
        job = {
            "arguments": list(arguments),
            "cwd": str(cwd),
            "log": str(cwd / "log.txt"),
            "environment": {},
            "moment": None,
            "together": list(environments),
        }
        print(json.dumps(job), file=self.server.stdin, flush=True)
        self.together = [self._number() for _ in environments]
        return self.together

    def wait_together(self) -> list[int]:
        """The exit code of each that was started last."""
        ended, self.together = self.together, []
        return [self._number() for _ in ended]

    def kill_together(self) -> None:
        """Those that nobody has waited for, because a test has failed."""
        for pid in self.together:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait_together()

    def start(self, arguments: Sequence[str], cwd: Path, at: str = "", **options: Any) -> int:
        """Start ``train.py`` in ``cwd``; its output is appended to ``log.txt`` there.

        Args:
            at: a moment of ``fork_server.py``; the process sends itself ``signals`` at its
                ``count``-th time.
            options: ``count``, ``signals``; others are environment variables.

        Returns:
            Its process id.
        """
        assert self.server.stdin is not None
        count, signals = options.pop("count", 1), options.pop("signals", [9])
        job = {
            "arguments": list(arguments),
            "cwd": str(cwd),
            "log": str(cwd / "log.txt"),
            "environment": options,
            "moment": {"at": at, "count": count, "signals": signals} if at else None,
        }
        print(json.dumps(job), file=self.server.stdin, flush=True)
        return self._number()

    def wait(self) -> int:
        """The exit code of what was started last; of a signal, its number below zero."""
        return self._number()

    def run(self, arguments: Sequence[str], cwd: Path, at: str = "", **options: Any) -> int:
        self.start(arguments, cwd, at, **options)
        return self.wait()

    def _number(self) -> int:
        assert self.server.stdout is not None
        return int(self.server.stdout.readline())


def log(place: Path) -> str:
    """What the runs in that folder have printed."""
    return (place / "log.txt").read_text()


def draw_images(root: Path) -> None:
    """37 + 41 training images and 11 + 13 test images, 12 x 20, of two classes that can be told."""
    generator = np.random.default_rng(0)
    for part, counts in {"train": (37, 41), "test": (11, 13)}.items():
        for brightness, (name, count) in enumerate(zip(("dark", "light"), counts, strict=True)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 180, (12, 20, 3)) + 40 * brightness
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


def small_run(root: Path) -> list[str]:
    """A run with all that has a state: dropout, resizing, augmentation, views, pictures.

    9 batches of 7 an epoch. A checkpoint is written after each.
    """
    return [
        *("data=folder", f"data.root={root}", "data.image_size=[12,20]", "data.test_views=flip"),
        *("model=vit", "model.embed_dim=12", "model.num_heads=3", "model.ffn_dim=20"),
        *("model.num_layers=2", "model.dropout=0.1", "model.drop_path=0.1", "model.stem=patch"),
        *("recipe.batch_size=7", "recipe.resizing=[[0.5,0.4]]", "recipe.mixup=0.2"),
        *("trainer.precision=32-true", "trainer.accelerator=cpu", "trainer.max_epochs=2"),
        *("data.cutout=3", "callbacks.last.every_minutes=0"),
    ]


_TIMES = {"minutes", "images_per_second", "training_seconds", "seconds", "dirpath"}


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves, without times and the names of folders."""
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    found = {
        key: _without_times(saved[key], folder)
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "epoch", "run")
    }
    found["global_step"] = saved["global_step"]
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    found["best"] = best["state_dict"]
    found["metrics"] = (folder / "metrics.csv").read_text()
    found["summary"] = _without_times(json.loads((folder / "summary.json").read_text()), folder)
    found["pictures"] = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    found["files"] = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return found


def _without_times(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {
            str(key).replace(str(folder.resolve()), ""): _without_times(child, folder)
            for key, child in value.items()
            if key not in _TIMES
        }
    if isinstance(value, list):
        return [_without_times(child, folder) for child in value]
    return value.replace(str(folder.resolve()), "") if isinstance(value, str) else value


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """The names of what is not equal, bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = [f"{path}/{key}" for key in one.keys() ^ other.keys()]
        for key in one.keys() & other.keys():
            found += differences(one[key], other[key], f"{path}/{key}")
        return found
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [f"{path}: {len(one)} and {len(other)}"]
        pairs = enumerate(zip(one, other, strict=True))
        return [name for i, (a, b) in pairs for name in differences(a, b, f"{path}/{i}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [path]
    return [] if one == other else [f"{path}: {str(one)[:200]} and {str(other)[:200]}"]
