"""One HTML file that needs nothing else: no network, no server, no other file."""

import base64
import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files

import numpy as np

from cvattn.cli.explorer.content import Content
from cvattn.cli.explorer.look import ROLLOUT, Seen

_SMALL = 64  # pixels a side; larger pictures are written as JPEG


def write_page(content: Content, *, title: str, facts: Sequence[str]) -> str:
    """The text of the page; ``title`` and ``facts`` are of the network, for people."""
    entries = zip(content.captions, content.pictures, content.look.seen, strict=True)
    data = {
        "title": title,
        "facts": list(facts),
        "rollout": ROLLOUT,
        "blocks": [asdict(block) for block in content.look.blocks],
        "colours": _text(_colours()),
        "images": [
            {**caption, "picture": _data_uri(picture), "weights": _text(_packed(seen))}
            for caption, picture, seen in entries
        ],
    }
    parts = {
        "style": _file("page.css"),
        "script": _file("drawing.js") + _file("page.js"),
        # "</script>" inside a name would end the element.
        "content": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    page = _file("page.html")
    for name, text in parts.items():
        page = page.replace(f"/*{name}*/", text, 1)
    return page


def _packed(seen: Sequence[Seen]) -> bytes:
    """All peaks, all prefix shares (float32), then all shares (uint8), block by block; deflated."""
    floats = [*(s.peaks for s in seen), *(s.prefix for s in seen)]
    raw = b"".join(array.astype("<f4").tobytes() for array in floats)
    raw += b"".join(s.shares.tobytes() for s in seen)
    return zlib.compress(raw, 9)


def _colours() -> bytes:
    """256 colours, black for nothing to yellow for the most."""
    from matplotlib import colormaps

    return (colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes()


def _data_uri(picture: np.ndarray) -> str:
    from PIL import Image

    image = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
    kind = "png" if max(image.size) <= _SMALL else "jpeg"
    file = io.BytesIO()
    image.save(file, kind, **({"optimize": True} if kind == "png" else {"quality": 88}))
    return f"data:image/{kind};base64,{_text(file.getvalue())}"


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _file(name: str) -> str:
    return files("cvattn.cli.explorer").joinpath(name).read_text(encoding="utf-8")
