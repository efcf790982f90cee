"""Lines and where a reader looks for each character that it writes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cvattn.cli.common import CommandError
from cvattn.cli.explorer.classified import SPLIT
from cvattn.cli.explorer.content import Content, Wanted
from cvattn.cli.explorer.look import Block, Look, Seen, in_bytes
from cvattn.cli.images import find_images, readable
from cvattn.cli.reading import Reading, line_reader, open_reader
from cvattn.core.alphabet import BEGIN
from cvattn.maps import attention_entropy, capture_attention

_END_SIGN = "end"
Line = tuple[str, np.ndarray, str | None]  # name, uint8 (height, W), what it says


def read_lines(wanted: Wanted) -> Content:
    """Of files, or of validation lines of the network's own data.

    Raises:
        CommandError: what cannot be had.
        ValueError, MemoryError: as in ``capture_attention``.
    """
    reading = open_reader(wanted.network, wanted.checkpoint)
    if wanted.settings:
        raise CommandError(f"{wanted.settings[0]}: of readers, name images of lines instead")
    failed = False
    if wanted.files:
        lines, failed = _from_files(reading, wanted.files)
    else:
        lines = _from_data(reading, wanted.count)
    names = wanted.layers or [
        name for name, _ in reading.network.named_modules() if name.endswith("cross_attn")
    ]
    step: Any = reading.network.column_width
    width = -(-max(pixels.shape[1] for _, pixels, _ in lines) // step) * step
    pictures = np.zeros((len(lines), reading.height, width, 1), np.uint8)
    seen: list[list[Seen]] = []
    entropies: list[torch.Tensor] = []
    captions = []
    for picture, (name, pixels, label) in zip(pictures, lines, strict=True):
        picture[:, : pixels.shape[1], 0] = pixels
        # Columns beyond the line are masked: how wide the picture is makes no difference.
        image, widths = reading.inputs(picture[..., 0], pixels.shape[1])
        tokens, text, probability = reading.answer(image, widths)
        given = torch.tensor([[BEGIN, *tokens[:-1]]])
        with torch.no_grad(), capture_attention(reading.network, names) as maps:
            reading.network(image, widths, given)
        grid = reading.network.memory_grid(image)  # type: ignore[operator]
        seen.append([in_bytes(maps[name][0].cpu().double().unflatten(-1, grid)) for name in names])
        entropies.append(torch.stack([attention_entropy(maps[name]) for name in names]))
        characters = [*text, *([_END_SIGN] if len(text) < len(tokens) else [])]
        captions.append(
            {"name": name, "label": label, "guesses": [(text, probability)]}
            | {"characters": characters}
        )
    means = torch.stack(entropies).mean(0).tolist()
    blocks = [
        Block(
            name=name,
            grid=grid,
            full=grid,
            num_prefix_tokens=0,
            num_heads=len(entropy),
            gamma=None,
            entropy=entropy,
            distance=[],
            reads=True,
        )
        for name, entropy in zip(names, means, strict=True)
    ]
    return Content(Look(blocks, seen), pictures, captions, failed)


def _from_files(reading: Reading, names: Sequence[str]) -> tuple[list[Line], bool]:
    files = find_images(names)
    found = list(readable(files, line_reader(reading.height)))
    if not found:
        raise CommandError("none of the images could be read")
    return [(path.name, pixels, None) for path, pixels in found], len(found) < len(files)


def _from_data(reading: Reading, count: int) -> list[Line]:
    import cvattn.data as rooms

    meta: Any = reading.network.meta
    node = dict(meta.get("config", {}).get("data", {}))
    kinds = {
        f"cvattn.data.{cls.__name__}": cls for cls in (rooms.DigitLinesData, rooms.LineFolderData)
    }
    target = node.pop("_target_", None)
    if target not in kinds:
        raise CommandError("the checkpoint does not say what it was trained on; name images")
    try:
        (images, widths), targets = kinds[target](**node).examples(count, SPLIT)
    except (TypeError, ValueError, OSError) as error:
        raise CommandError(f"data: {error}; name images instead") from error
    pixels = ((images[:, 0] * reading.std + reading.mean) * 255).round().to(torch.uint8).numpy()
    return [
        (f"{SPLIT} line {index}", line[:, :width], reading.alphabet.decode(answer))
        for index, (line, width, answer) in enumerate(
            zip(pixels, widths.tolist(), targets.tolist(), strict=True)
        )
    ]
