"""Lines, and what a reader attends to for each character that it writes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvattn.core.alphabet import BEGIN
from cvattn.explorer.content import Content
from cvattn.explorer.given import captions_of
from cvattn.explorer.names import short_names
from cvattn.explorer.pictures import read_files
from cvattn.explorer.pooling import CHARACTERS, Seen, in_bytes
from cvattn.explorer.weights import AllWeights, Block
from cvattn.inference import InferenceError, LineReader
from cvattn.maps import attention_entropy, capture_attention

SPLIT = "val"  # shown to people; the test lines are for testing
_END_SIGN = "end"
Line = tuple[str, np.ndarray, str | None]  # name, uint8 (height, W), what it says


def of_lines(reader: LineReader, lines: Sequence[Line], layers: Sequence[str] | None) -> Content:
    """What the reader attends to in each line, by its cross-attention.

    Raises:
        NotFiniteError: the network is of no use.
        ValueError, MemoryError: as in ``capture_attention``.
    """
    names = layers or [
        name for name, _ in reader.network.named_modules() if name.endswith("cross_attn")
    ]
    step: Any = reader.network.column_width
    width = -(-max(pixels.shape[1] for _, pixels, _ in lines) // step) * step
    pictures = np.zeros((len(lines), reader.height, width, 1), np.uint8)
    seen: list[list[Seen]] = []
    entropies: list[Tensor] = []
    captions = []
    for picture, (name, pixels, label) in zip(pictures, lines, strict=True):
        picture[:, : pixels.shape[1], 0] = pixels
        # Columns beyond the line are masked: how wide the picture is makes no difference.
        image, widths = reader.inputs(picture[..., 0], pixels.shape[1])
        tokens, text, probability = reader.answer(image, widths)
        given = torch.tensor([[BEGIN, *tokens[:-1]]])
        with torch.no_grad(), capture_attention(reader.network, names) as maps:
            reader.network(image, widths, given)
        grid = reader.network.memory_grid(image)  # type: ignore[operator]
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
            label=label,
            kind="cross",
            rows=CHARACTERS,
            grid=grid,
            drawn=grid,
            full=grid,
            num_prefix_tokens=0,
            num_heads=len(entropy),
            gamma=None,
            entropy=entropy,
            distance=[],
        )
        for name, label, entropy in zip(names, short_names(names), means, strict=True)
    ]
    return Content(AllWeights(blocks, seen), pictures, captions)


def given_lines(
    reader: LineReader,
    images: Any,
    names: Sequence[str] | None,
    labels: Sequence[str] | None,
    count: int,
) -> list[Line]:
    """The lines of :func:`cvattn.explore`, which says what they may be.

    Raises:
        InferenceError: none that can be used.
    """
    if images is None:
        return own_lines(reader, count)
    if isinstance(images, Sequence) and images and isinstance(images[0], Tensor):
        lines = [(f"line {index}", line.cpu().numpy()) for index, line in enumerate(images)]
    elif isinstance(images, Tensor):
        raise InferenceError("a reader takes lines of different widths: give a list of them")
    else:
        lines = [(path.name, pixels) for path, pixels in read_files(images, reader.read)]
    for _, line in lines:
        if line.dtype != np.uint8 or line.ndim != 2 or line.shape[0] != reader.height:
            raise InferenceError(
                f"a line of {line.dtype} {line.shape}: expected uint8 ({reader.height}, width)"
            )
    captions = captions_of(
        len(lines), [name for name, _ in lines] if names is None else names, labels
    )
    return [
        (caption["name"], line, caption["label"])
        for caption, (_, line) in zip(captions, lines, strict=True)
    ]


def own_lines(reader: LineReader, count: int) -> list[Line]:
    """Validation lines of the data that the reader was trained on.

    Raises:
        InferenceError: the checkpoint does not say which, or they cannot be had.
    """
    from cvattn.data import DigitLinesData, LineFolderData

    meta: Any = reader.network.meta
    node = dict(meta.get("config", {}).get("data", {}))
    kinds = {f"cvattn.data.{cls.__name__}": cls for cls in (DigitLinesData, LineFolderData)}
    target = node.pop("_target_", None)
    if target not in kinds:
        raise InferenceError("the checkpoint does not say what it was trained on; name images")
    try:
        (images, widths), targets = kinds[target](**node).examples(count, SPLIT)
    except (TypeError, ValueError, OSError) as error:
        raise InferenceError(f"data: {error}; name images instead") from error
    pixels = ((images[:, 0] * reader.std + reader.mean) * 255).round().to(torch.uint8).numpy()
    return [
        (f"{SPLIT} line {index}", line[:, :width], reader.alphabet.decode(answer))
        for index, (line, width, answer) in enumerate(
            zip(pixels, widths.tolist(), targets.tolist(), strict=True)
        )
    ]
