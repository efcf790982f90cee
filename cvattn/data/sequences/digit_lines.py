"""Lines of scanned handwritten digits: real scans, in rows that are made when they are needed."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from cvattn.core.alphabet import BEGIN, END, FIRST, PAD
from cvattn.data.checks import check_int, check_number
from cvattn.data.counter import Stream, bits, integers, uniform
from cvattn.data.images.digits import DigitsData
from cvattn.data.info import LineInfo
from cvattn.data.loader import Batches
from cvattn.data.sequences.base import Batch, SequenceBatches, SequenceDataModule
from cvattn.data.sequences.line_drawing import HEIGHT, draw_digits, lay_out

WIDTH = 256  # of the canvas that 8 digits fit on
# Of 4,000 training lines of 1 to 8 digits; a test measures them again.
MEAN, STD = 0.2593, 0.3046
LONGER = range(9, 13)  # lengths that are tested beside those that are trained on
_SLOTS = LONGER.stop  # numbers the digits of different lines apart
_MARGIN = 10  # most empty columns before the first digit and behind the last
_NOISE = 1 << 16  # noisy pixels that are kept ready
# Validation and test lines never change, whatever the run's seed: each set has a seed of its own.
_FIXED = {"val": 1, "test": 2}


class _Layout(NamedTuple):
    """Of B lines of up to ``slots`` digits; (B, slots) is arbitrary where ``real`` is False."""

    lengths: Tensor  # (B,)
    real: Tensor  # (B, slots), True for the digits that are there
    number: Tensor  # (B, slots), which the random numbers of a digit are drawn with
    size: Tensor  # (B, slots), pixels
    centre: Tensor  # (B, slots), column
    widths: Tensor  # (B,), pixels


class DigitLinesData(SequenceDataModule):
    """Grey lines, 32 pixels high, of 1 to 8 digits, white on black, and what they say.

    The digits are the scans of ``data=digits`` in the same three parts, never mixed: a test line is
    made of scans that no training line has. Each is given a size, a slight rotation, a place above
    or below the middle and a gap to the next at random; noise covers the line. A training line is a
    function of (seed, epoch, index), one of validation or test of its index alone.

    Args:
        min_length, max_length: digits of a line; all lengths between are equally frequent.
        train_size, val_size, test_size: lines of an epoch, and of the other parts.
        longer_size: test lines of each of the lengths 9 to 12, which are tested beside.
        size: smallest and largest side of a scan on the line, in pixels.
        gap: smallest and largest number of pixels between two digits; below 0 they overlap.
        rotation: largest rotation in degrees.
        shift: most pixels above or below the middle.
        noise: largest change of a pixel, of 255.
        batch_size, eval_batch_size, seed: as in :class:`cvattn.data.module.DataModule`.
    """

    def __init__(
        self,
        *,
        min_length: int = 1,
        max_length: int = 8,
        train_size: int = 20000,
        val_size: int = 500,
        test_size: int = 2000,
        longer_size: int = 250,
        size: tuple[float, float] = (20.0, 30.0),
        gap: tuple[float, float] = (-1.0, 7.0),
        rotation: float = 10.0,
        shift: float = 3.0,
        noise: float = 24.0,
        batch_size: int = 64,
        eval_batch_size: int = 250,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed)
        self.min_length = check_int("min_length", min_length, minimum=1)
        self.max_length = check_int("max_length", max_length, minimum=min_length)
        if max_length >= LONGER.start:
            raise ValueError(
                f"max_length={max_length} must be below {LONGER.start}: lines of {LONGER.start} to "
                f"{LONGER.stop - 1} digits are tested as longer than those trained on"
            )
        self.sizes = {
            "train": check_int("train_size", train_size, minimum=1),
            "val": check_int("val_size", val_size, minimum=1),
            "test": check_int("test_size", test_size, minimum=1),
        }
        self.longer_size = check_int("longer_size", longer_size, minimum=0)
        self.size = _check_range("size", size, minimum=4.0, maximum=float(HEIGHT))
        self.gap = _check_range("gap", gap, minimum=-4.0, maximum=32.0)
        self.rotation = check_number("rotation", rotation, minimum=0, maximum=45)
        self.shift = check_number("shift", shift, minimum=0, maximum=HEIGHT / 2)
        self.noise = check_number("noise", noise, minimum=0, maximum=255)
        self._noise_table = 2 * uniform(0, 0, torch.arange(_NOISE), Stream.NOISE).float() - 1
        self._scans: dict[str, tuple[Tensor, Tensor]] = {}

    def describe(self) -> LineInfo:
        """Constants; nothing is read."""
        if isinstance(self.info, LineInfo):
            return self.info
        return LineInfo(
            name="digit_lines",
            alphabet=tuple("0123456789"),
            max_length=LONGER.stop + 3,
            height=HEIGHT,
            width=WIDTH,
            mean=(MEAN,),
            std=(STD,),
            train_size=self.sizes["train"],
            val_size=self.sizes["val"],
            test_size=self.sizes["test"],
            source=f"lines of {self.min_length} to {self.max_length} of scikit-learn's digits",
        )

    def further_tests(self) -> Mapping[str, Batches]:
        """Lines of 9, 10, 11 and 12 digits."""
        self.setup()
        if not self.longer_size:
            return {}
        return {f"{length} digits": self._longer(length) for length in LONGER}

    def _longer(self, length: int) -> SequenceBatches:
        rank, world_size = self._place()
        return SequenceBatches(
            lambda index, _: self._lines(
                "test", index, epoch=length, seed=_FIXED["test"], span=(length, length)
            ),
            lambda index, _: torch.full_like(index, length),
            self.longer_size,
            batch_size=self.eval_batch_size,
            rank=rank,
            world_size=world_size,
        )

    def samples(self, split: str, index: Tensor, epoch: int = 0) -> Batch:
        """Normalised images (B, 1, 32, W), widths (B,) in pixels, and target ids (B, T).

        W is a multiple of 32; what lies at and beyond a width is black.
        """
        seed, epoch = (self.seed, epoch) if split == "train" else (_FIXED[split], 0)
        span = (self.min_length, self.max_length)
        return self._lines(split, index, epoch=epoch, seed=seed, span=span)

    def _read(self) -> LineInfo:
        digits = DigitsData()
        for split in ("train", "val", "test"):
            part = digits.split(split)
            self._scans[split] = part.all_images()[:, :1].float(), part.labels
        return self.describe()

    def lengths(self, split: str, index: Tensor, epoch: int = 0) -> Tensor:
        """Widths in pixels."""
        seed, epoch = (self.seed, epoch) if split == "train" else (_FIXED[split], 0)
        return self._layout(seed, epoch, index, (self.min_length, self.max_length)).widths

    def _layout(self, seed: int, epoch: int, index: Tensor, span: tuple[int, int]) -> _Layout:
        """Where the digits of each line stand."""
        count = span[1] - span[0] + 1
        lengths = span[0] + integers(seed, epoch, index, Stream.LENGTH, high=count)
        slots = torch.arange(int(lengths.max()))
        number = index[:, None] * _SLOTS + slots
        low, high = self.size
        size = low + (high - low) * uniform(seed, epoch, number, Stream.SCALE)
        low, high = self.gap
        gap = low + (high - low) * uniform(seed, epoch, number, Stream.GAP)
        # Three quarters of a scan's width are ink; a digit begins where the one before it ended.
        step = 0.75 * size + gap
        before, behind = (
            _MARGIN * uniform(seed, epoch, index, stream)
            for stream in (Stream.CROP_X, Stream.SHIFT_X)
        )
        centre = before[:, None] + step.cumsum(1) - step / 2
        ends = (centre + step / 2).gather(1, lengths[:, None] - 1)[:, 0]
        widths = (ends + behind).ceil().long().clamp_min(8)
        return _Layout(lengths, slots < lengths[:, None], number, size, centre, widths)

    def _lines(
        self, split: str, index: Tensor, *, epoch: int, seed: int, span: tuple[int, int]
    ) -> Batch:
        scans, labels = self._scans[split]
        lengths, real, number, size, centre, widths = self._layout(seed, epoch, index, span)

        def around(stream: Stream, largest: float) -> Tensor:  # (B, slots)
            return largest * (2 * uniform(seed, epoch, number, stream) - 1)

        chosen = integers(seed, epoch, number, Stream.SCAN, high=len(scans))
        drawn = draw_digits(
            scans[chosen[real]],
            size[real],
            around(Stream.ROTATION, self.rotation)[real],
            around(Stream.SHIFT_Y, self.shift)[real],
            (centre - centre.floor())[real],
        )
        longest = -(-int(widths.max()) // 32) * 32
        images = lay_out(drawn, real, centre.floor().long(), longest)
        images = self._noisy(images, seed, epoch, index).clamp_(0, 255).round_()
        beyond = torch.arange(longest) >= widths[:, None]
        images = images.masked_fill(beyond[:, None, None], 0.0)
        targets = torch.full((len(index), real.shape[1] + 2), PAD)
        targets[:, 0] = BEGIN
        targets[:, 1:-1] = torch.where(real, labels[chosen] + FIRST, PAD)
        targets.scatter_(1, lengths[:, None] + 1, END)
        return ((images / 255 - MEAN) / STD, widths), targets

    def _noisy(self, images: Tensor, seed: int, epoch: int, index: Tensor) -> Tensor:
        if not self.noise:
            return images
        start = bits(seed, epoch, index, Stream.NOISE)[:, None, None]
        # 997 columns a row: a row of one width is the start of that row of any other.
        place = torch.arange(HEIGHT)[:, None] * 997 + torch.arange(images.shape[-1])
        noise = self._noise_table[(start + place) & (_NOISE - 1)]
        return images + self.noise * noise[:, None]


def _check_range(
    name: str, given: tuple[float, float], *, minimum: float, maximum: float
) -> tuple[float, float]:
    if isinstance(given, str) or len(given) != 2 or given[0] > given[1]:
        raise ValueError(f"{name} must be a smallest and a largest value, got {given!r}")
    low, high = (check_number(name, value, minimum=minimum, maximum=maximum) for value in given)
    return low, high
