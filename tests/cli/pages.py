"""Reads an explorer's page as its script does."""

import base64
import json
import re
import zlib

import numpy as np


def content(path) -> dict:
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script id="content"[^>]*>(.*?)</script>', text, re.S)[1])


def weights_in(page: dict, image: int) -> dict[str, np.ndarray]:
    """{block: (heads, rows, positions)}, read as the page's script reads them."""
    entry = page["images"][image]
    raw = zlib.decompress(base64.b64decode(entry["weights"]))
    rows = []
    for b in page["blocks"]:
        positions = b["num_prefix_tokens"] + b["grid"][0] * b["grid"][1]
        words = len(b["words"])
        characters = len(entry.get("characters", ()))
        rows.append(
            {"positions": positions, "words": words, "tokens": words, "characters": characters}[
                b["rows"]
            ]
        )
    counts = [b["num_heads"] * r for b, r in zip(page["blocks"], rows, strict=True)]
    peaks = np.frombuffer(raw, "<f4", sum(counts))
    at = 8 * sum(counts)  # behind the peaks and the prefix shares
    found = {}
    for index, (block, count) in enumerate(zip(page["blocks"], counts, strict=True)):
        keys = block["drawn"][0] * block["drawn"][1]
        shares = np.frombuffer(raw, np.uint8, count * keys, at).reshape(
            block["num_heads"], -1, keys
        )
        at += count * keys
        peak = peaks[sum(counts[:index]) :][:count].reshape(block["num_heads"], -1, 1)
        found[block["name"]] = shares / 255 * peak
    assert at == len(raw)
    return found
