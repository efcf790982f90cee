"""Scenes of scanned digits in which a far legend says what class each has: no download."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cvattn.data.checks import check_int, check_number
from cvattn.data.counter import Stream, integers, uniform
from cvattn.data.images.augment import CropFlip
from cvattn.data.images.base import ImageSet, both_sides
from cvattn.data.images.digits import DigitsData
from cvattn.data.images.masks import MaskDataModule
from cvattn.data.info import VOID, MaskInfo
from cvattn.data.sequences.line_drawing import draw_digits

NAMES = ("zero", "one", "two")  # of the digits that a legend can have
CLASSES = ("background", "legend", *NAMES)
REACH = 32  # at least so many columns lie between the legend and every other digit
CELL = 24  # side of the square that a digit is drawn in
TONES = (1.0, 0.5)  # of a bright digit and a dark one
# Of 255, on a bright digit: it is where it is brighter, and not where darker; between is its edge.
INK, PAPER = 96, 32
# Of the 4,000 training scenes of seed 0; a test measures them again.
MEAN, STD = 0.1457, 0.2531
_FRAME, _FRAME_GREY = 2, 200
_SIZES = (18.0, 22.0)  # of a scan
_IN_FRAME = 17.0
_ROTATION = 10.0
_SLOTS = 1 << 16  # numbers what the scenes have several of
_CHUNK = 500
# Validation and test scenes never change, whatever the run's seed.
_FIXED = {"val": 1, "test": 2}
_TRAINING = 1000
# The highest mean IoU in expectation of who sees everything but the legend: background and legend
# without a fault; of the digits a third by chance, whatever is said, and most is made of that by
# naming each class equally often, IoU (1/9) / (1/3 + 1/3 - 1/9) = 1/5.
UNSEEN_CEILING = (2 + 3 / 5) / 5


class _Layout(NamedTuple):
    """Of the squares of B scenes, (B, 2 + digits) each, the legend's two first."""

    kind: Tensor  # 0..9
    tone: Tensor  # 0 or 1, an index of TONES
    top: Tensor  # row
    left: Tensor  # column


class DigitScenesData(MaskDataModule):
    """Grey scenes of bright and dark digits, and far from them a legend that says their classes.

    The legend is two framed digits in the corners of one side, a bright and a dark one, two of 0, 1
    and 2. A bright digit elsewhere has the class that the legend's bright one names, whatever it
    is itself; a dark one likewise. A pixel is ``background``, of the ``legend`` (its framed
    squares), or of a digit of class ``zero``, ``one`` or ``two``; the blurred edges of digits are
    void. A network that does not see the legend, :data:`REACH` columns away at least, can but
    guess (:data:`UNSEEN_CEILING`).

    The digits are the scans of ``data=digits`` in the same three parts, never mixed. A training
    scene is a function of (seed, index), one of validation or test of its index alone.

    Args:
        image_size: (H, W), or one side: 48 x 80 at least, for the legend, the gap and digits.
        digits: beside the legend; as many as there is room for at most.
        train_size, val_size, test_size: scenes.
        noise: largest change of a pixel, of 255.
        batch_size, eval_batch_size, seed: as in :class:`ImageDataModule`.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = (48, 96),
        digits: int = 2,
        train_size: int = 4000,
        val_size: int = 200,
        test_size: int = 500,
        noise: float = 24.0,
        batch_size: int = 32,
        eval_batch_size: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed)
        self.image_size = both_sides(image_size)
        height, width = self.image_size
        least = 2 * CELL, CELL + REACH + CELL
        if height < least[0] or width < least[1]:
            raise ValueError(
                f"image_size={self.image_size}: a scene needs {least[0]} x {least[1]} pixels "
                "(height x width) at least"
            )
        self._rows, self._columns = height // CELL, (width - CELL - REACH) // CELL
        self.digits = check_int("digits", digits, minimum=1)
        if digits > self._rows * self._columns:
            raise ValueError(
                f"digits={digits}: scenes of {height} x {width} have room for "
                f"{self._rows * self._columns}; choose fewer, or a larger image_size"
            )
        self._counts = {
            "train": check_int("train_size", train_size, minimum=1),
            "val": check_int("val_size", val_size, minimum=1),
            "test": check_int("test_size", test_size, minimum=1),
        }
        self.noise = check_number("noise", noise, minimum=0, maximum=255)

    def describe(self) -> MaskInfo:
        """Constants; nothing is read."""
        if isinstance(self.info, MaskInfo):
            return self.info
        return MaskInfo(
            name="digit_scenes",
            classes=CLASSES,
            values=tuple(range(len(CLASSES))),
            void=VOID,
            channels=1,
            image_size=self.image_size,
            mean=(MEAN,),
            std=(STD,),
            train_size=self._counts["train"],
            val_size=self._counts["val"],
            test_size=self._counts["test"],
            source=(
                "scenes of scikit-learn's digits; who does not see the legend reaches a mean IoU "
                f"of {UNSEEN_CEILING:.0%} at most"
            ),
        )

    def _move(self) -> CropFlip | None:
        return None

    def _read(self) -> tuple[Mapping[str, ImageSet], MaskInfo]:
        scans = DigitsData()
        sets = {}
        for part, count in self._counts.items():
            seed = _FIXED.get(part, _TRAINING + self.seed)
            drawn = [
                self._scenes(scans.split(part), seed, index)
                for index in torch.arange(count).split(_CHUNK)
            ]
            images, masks = zip(*drawn, strict=True)
            sets[part] = ImageSet(torch.cat(images), torch.cat(masks))
        return sets, self.describe()

    def _scenes(self, scans: ImageSet, seed: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels, uint8 (B, 1, H, W), and masks, uint8 (B, H, W)."""
        height, width = self.image_size
        layout = self._layout(seed, index)
        patches = _digits(scans, layout.kind, seed, index)
        tones = torch.tensor(TONES)[layout.tone]
        canvas = torch.zeros(len(index), height, width)
        masks = torch.full((len(index), height, width), CLASSES.index("background"))
        square, scene = torch.arange(CELL), torch.arange(len(index))
        for slot, patch in enumerate(patches.unbind(1)):
            rows = layout.top[:, slot, None] + square
            columns = layout.left[:, slot, None] + square
            place = (scene[:, None, None], rows[:, :, None], columns[:, None])
            drawn = patch * tones[:, slot, None, None]
            if slot < 2:
                canvas[place] = torch.where(_frame(), _FRAME_GREY, drawn)
                masks[place] = CLASSES.index("legend")
                continue
            canvas[place] = drawn
            # The legend's digit of that tone: the tones of its two are 0 and 1 in some order.
            first = layout.tone[:, 0] == layout.tone[:, slot]
            named = torch.where(first, layout.kind[:, 0], layout.kind[:, 1])
            of_digit = (CLASSES.index(NAMES[0]) + named)[:, None, None]
            edge = torch.where(patch > PAPER, VOID, CLASSES.index("background"))
            masks[place] = torch.where(patch > INK, of_digit, edge)
        pixel = index[:, None, None] * 16 * _SLOTS + torch.arange(height * width).view(height, -1)
        noise = self.noise * (2 * uniform(seed, 0, pixel, Stream.NOISE).float() - 1)
        pixels = (canvas + noise).round_().clamp_(0, 255).to(torch.uint8)
        return pixels.unsqueeze(1), masks.to(torch.uint8)

    def _layout(self, seed: int, index: Tensor) -> _Layout:
        height, width = self.image_size
        zone = width - CELL - REACH  # columns of the digits beside the legend, right or left of it
        tall, wide = height // self._rows, zone // self._columns  # what each has to move in

        def drawn(stream: Stream, count: int) -> Tensor:  # (B, count) in 0..1
            return uniform(seed, 0, index[:, None] * _SLOTS + torch.arange(count), stream)

        named = drawn(Stream.CHARACTER, len(NAMES)).argsort(1)[:, :2]
        others = (drawn(Stream.LENGTH, self.digits) * 10).long()
        tone = (drawn(Stream.TONE, 1 + self.digits) * 2).long()
        cell = drawn(Stream.PLACE, self._rows * self._columns).argsort(1)[:, : self.digits]
        down = (drawn(Stream.SHIFT_Y, self.digits) * (tall - CELL + 1)).long()
        right = (drawn(Stream.SHIFT_X, self.digits) * (wide - CELL + 1)).long()
        at_right = integers(seed, 0, index, Stream.SIDE, high=2)[:, None]
        corners = torch.tensor([[0, height - CELL]]).expand(len(index), -1)
        edge = (at_right * (width - CELL)).expand(-1, 2)
        left = cell % self._columns * wide + right + (1 - at_right) * (CELL + REACH)
        return _Layout(
            torch.cat([named, others], 1),
            torch.cat([tone[:, :1], 1 - tone[:, :1], tone[:, 1:]], 1),
            torch.cat([corners, cell // self._columns * tall + down], 1),
            torch.cat([edge, left], 1),
        )


def _digits(scans: ImageSet, kinds: Tensor, seed: int, index: Tensor) -> Tensor:
    """A scan of each kind, (B, n), on a black square: float32 (B, n, CELL, CELL)."""
    number = index[:, None] * _SLOTS + torch.arange(kinds.shape[1])
    counts = scans.labels.bincount(minlength=10)
    first = counts.cumsum(0) - counts
    of_kind = (uniform(seed, 0, number, Stream.SCAN) * counts[kinds]).long()
    chosen = scans.labels.argsort(stable=True)[first[kinds] + of_kind].flatten()
    size = _SIZES[0] + (_SIZES[1] - _SIZES[0]) * uniform(seed, 0, number, Stream.SCALE)
    size[:, :2] = _IN_FRAME
    turn = _ROTATION * (2 * uniform(seed, 0, number, Stream.ROTATION) - 1)
    middle = torch.zeros(len(chosen))
    drawn = draw_digits(
        scans.all_images()[chosen, :1].float(), size.flatten(), turn.flatten(), middle, middle - 0.5
    )
    rows, columns = ((side - CELL) // 2 for side in drawn.shape[1:])
    drawn = drawn[:, rows : rows + CELL, columns : columns + CELL]
    return drawn.unflatten(0, kinds.shape).contiguous()


def _frame() -> Tensor:
    """bool (CELL, CELL)."""
    inside = torch.zeros(CELL, CELL, dtype=torch.bool)
    inside[_FRAME:-_FRAME, _FRAME:-_FRAME] = True
    return ~inside
