"""One HTML file that needs nothing else: no network, no server, no other file."""

import base64
import io
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np

from cvattn.explorer.classes import Heats
from cvattn.explorer.content import Content
from cvattn.explorer.pooling import FINEST, Seen, at_most
from cvattn.system.files import write_text

_SMALL = 64  # pixels a side; larger pictures are written as JPEG
_LARGE = 512 * 512  # pixels; larger pictures are scaled down
_SCRIPTS = ("drawing.js", "telling.js", "choices.js", "page.js")


@dataclass(frozen=True)
class Page:
    """A page on which every position of an image shows what it attends to.

    In a notebook it appears as it is. Elsewhere :meth:`save` it and open the file in any browser.

    Attributes:
        content: pictures and weights.
        title: of the page.
        facts: a few words each, of the network.
    """

    content: Content
    title: str
    facts: tuple[str, ...]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one HTML file, which needs no other; returns its path.

        Raises:
            OSError: it cannot be written; what was there before is as it was.
        """
        write_text(Path(path), self.html)
        return Path(path)

    @cached_property
    def html(self) -> str:
        """The text of the file."""
        content = self.content
        heats = content.heats or [[] for _ in content.captions]
        entries = zip(content.captions, content.pictures, content.weights.seen, heats, strict=True)
        data = {
            "title": self.title,
            "facts": list(self.facts),
            "without_grid": content.weights.without_grid,
            "crowded": any(
                block.grid != at_most(block.full, FINEST) for block in content.weights.blocks
            ),
            "blocks": [asdict(block) for block in content.weights.blocks],
            "colours": _text(_colours()),
            "images": [
                {
                    **caption,
                    "picture": _data_uri(picture),
                    "weights": _text(_packed(seen)),
                    "targets": [name for name, _ in caption["guesses"][: len(targets)]],
                    "heats": _text(_packed_heats(targets)),
                }
                for caption, picture, seen, targets in entries
            ],
        }
        parts = {
            "style": _file("page.css"),
            "script": "".join(map(_file, _SCRIPTS)),
            # "</script>" inside a name would end the element.
            "content": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        }
        page = _file("page.html")
        for name, text in parts.items():
            page = page.replace(f"/*{name}*/", text, 1)
        return page

    def _repr_html_(self) -> str:
        """A frame of its own: the page's styles and scripts are not the notebook's."""
        return (
            f'<iframe srcdoc="{escape(self.html)}" title="{escape(self.title)}" '
            'style="width: 100%; height: 720px; border: 0"></iframe>'
        )


def _packed(seen: Sequence[Seen]) -> bytes:
    """All peaks, all prefix shares (float32), then all shares (uint8), block by block; deflated."""
    floats = [*(s.peaks for s in seen), *(s.prefix for s in seen)]
    raw = b"".join(array.astype("<f4").tobytes() for array in floats)
    raw += b"".join(s.shares.tobytes() for s in seen)
    return zlib.compress(raw, 9)


def _packed_heats(targets: Heats) -> bytes:
    """All peaks (float32), then all shares of them (uint8), class by class; deflated."""
    flat = [heat for blocks in targets for heat in blocks]
    peaks = [heat.max() for heat in flat]
    raw = np.array(peaks, "<f4").tobytes()
    for heat, peak in zip(flat, peaks, strict=True):
        raw += (heat / max(peak, 1e-300) * 255).round().astype(np.uint8).tobytes()
    return zlib.compress(raw, 9)


def _colours() -> bytes:
    """256 colours, black for nothing to yellow for the most."""
    from matplotlib import colormaps

    return (colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes()


def _data_uri(picture: np.ndarray) -> str:
    from PIL import Image

    image = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
    scale = (_LARGE / (image.width * image.height)) ** 0.5
    if scale < 1:
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    kind = "png" if max(image.size) <= _SMALL else "jpeg"
    file = io.BytesIO()
    image.save(file, kind, **({"optimize": True} if kind == "png" else {"quality": 88}))
    return f"data:image/{kind};base64,{_text(file.getvalue())}"


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _file(name: str) -> str:
    return files("cvattn.explorer").joinpath(name).read_text(encoding="utf-8")
