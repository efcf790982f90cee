"""A user's own lines: images of any width, and a text file of what they say."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cvattn.core import Alphabet
from cvattn.data.checks import DataError, check_int
from cvattn.data.counter import Stream, integers
from cvattn.data.image_files import ImageError
from cvattn.data.info import LineInfo
from cvattn.data.sequences.base import (
    Batch,
    SequenceDataModule,
    check_alphabet,
    padded_targets,
)
from cvattn.data.sequences.line_files import read_line, read_transcripts

VAL_FRACTION = 0.1
_MOST_SHOWN = 5
Files = dict[str, list[tuple[Path, str]]]


class LineFolderData(SequenceDataModule):
    """Line images in ``root/train/`` and ``root/test/``, each with a ``transcripts.txt``.

    Without ``root/val/``, a tenth of ``train/`` validates, chosen by the files' names. Training
    lines are moved up and down at random; nothing is scaled.

    Args:
        root: the folder with ``train/`` and ``test/``.
        height: most pixels that a line is high; lower ones are filled up with their own rows.
        alphabet: the characters; None: those of the training transcripts, sorted.
        shift: most pixels that a training line is moved up or down.
        batch_size, eval_batch_size, seed: as in :class:`cvattn.data.module.DataModule`.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        height: int = 32,
        alphabet: str | None = None,
        shift: int = 2,
        batch_size: int = 64,
        eval_batch_size: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed)
        self.root = Path(root).expanduser().absolute()
        self.height = check_int("height", height, minimum=8)
        self.shift = check_int("shift", shift, minimum=0)
        self._given = None if alphabet is None else check_alphabet(alphabet)
        self._files: Files = {}
        self._images: dict[str, list[Tensor]] = {}

    def describe(self) -> LineInfo:
        """From the transcripts alone; ``mean`` and ``std`` are empty before ``setup()``.

        Raises:
            DataError: a folder or file is missing, a line of transcripts is not usable, a character
                is not in the alphabet.
        """
        if isinstance(self.info, LineInfo):
            return self.info
        files = self._listed()
        alphabet = self._alphabet(files)
        return LineInfo(
            name="line_folder",
            alphabet=alphabet.characters,
            # Answers may be somewhat longer than any transcript, which shows where they go wrong.
            max_length=2 + max(len(text) for part in files.values() for _, text in part),
            height=self.height,
            width=8 * self.height,
            mean=(),
            std=(),
            train_size=len(files["train"]),
            val_size=len(files["val"]),
            test_size=len(files["test"]),
            source=f"line images in {self.root}",
        )

    def prepare_data(self) -> None:
        """Nothing to download; the folders are checked."""
        self.describe()

    def lengths(self, split: str, index: Tensor, epoch: int = 0) -> Tensor:
        """Widths in pixels."""
        return torch.tensor([self._images[split][i].shape[1] for i in index.tolist()])

    def samples(self, split: str, index: Tensor, epoch: int = 0) -> Batch:
        """Normalised images (B, 1, height, W), widths (B,) in pixels, and target ids (B, T)."""
        info = self.describe()
        chosen = [self._images[split][i] for i in index.tolist()]
        widths = torch.tensor([image.shape[1] for image in chosen])
        longest = -(-int(widths.max()) // 32) * 32
        images = torch.zeros(len(chosen), 1, self.height, longest)
        for row, image in zip(images, chosen, strict=True):
            row[0, :, : image.shape[1]] = (image.float() / 255 - info.mean[0]) / info.std[0]
        if split == "train" and self.shift:
            images = self._moved(images, index, epoch)
        texts = [self._files[split][i][1] for i in index.tolist()]
        return (images, widths), padded_targets(texts, Alphabet(info.alphabet))

    def _moved(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Each up or down; the outermost row fills what becomes free."""
        span = 2 * self.shift + 1
        down = integers(self.seed, epoch, index, Stream.SHIFT_Y, high=span) - self.shift
        rows = (torch.arange(self.height) - down[:, None]).clamp(0, self.height - 1)
        return images.gather(2, rows[:, None, :, None].expand_as(images))

    def _listed(self) -> Files:
        if not self._files:
            if not self.root.is_dir():
                raise DataError(
                    f"data.root={self.root} is not a folder; expected one with train/ and test/"
                )
            files = {name: read_transcripts(self.root / name) for name in ("train", "test")}
            if (self.root / "val").is_dir():
                files["val"] = read_transcripts(self.root / "val")
            else:
                files["val"] = _for_validation(files["train"])
                files["train"] = [line for line in files["train"] if line not in files["val"]]
            if not files["train"] or not files["val"]:
                raise DataError(f"{self.root / 'train'} has too few lines to keep some for val")
            self._files = files
        return self._files

    def _alphabet(self, files: Files) -> Alphabet:
        alphabet = self._given
        if alphabet is None:
            alphabet = Alphabet(sorted({c for _, text in files["train"] for c in text}))
        for part in files.values():
            for path, text in part:
                try:
                    alphabet.encode(text)
                except ValueError as error:
                    raise DataError(
                        f"{path}: {error}. Add it to data.alphabet, or to a training line"
                    ) from None
        return alphabet

    def _read(self) -> LineInfo:
        bad: list[str] = []
        for split, part in self._listed().items():
            self._images[split] = []
            for path, _ in part:
                try:
                    self._images[split].append(torch.from_numpy(read_line(path, self.height)))
                except ImageError as error:
                    bad.append(f"\n  {path}: {error}")
        if bad:
            more = f"\n  and {len(bad) - _MOST_SHOWN} more" if len(bad) > _MOST_SHOWN else ""
            raise DataError(
                f"{len(bad)} line images cannot be used:{''.join(bad[:_MOST_SHOWN])}{more}"
            )
        every = torch.cat([image.flatten() for image in self._images["train"]]).double() / 255
        mean, std = float(every.mean()), max(float(every.std()), 1 / 255)
        self.info = dataclasses.replace(self.describe(), mean=(mean,), std=(std,))
        return self.info


def _for_validation(lines: list[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """A tenth, by the files' names, so that adding lines moves no others."""
    ranked = sorted(lines, key=lambda line: hashlib.sha256(line[0].name.encode()).digest())
    return ranked[: int(np.ceil(len(lines) * VAL_FRACTION)) if len(lines) > 1 else 0]
