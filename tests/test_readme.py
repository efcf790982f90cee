"""What the README says can be pasted."""

import re
from pathlib import Path

import torch

import cvattn

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_examples_run_and_the_block_changes_nothing_at_first():
    names: dict = {}
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    assert list(names["maps"]) == ["layer3.inserted_attention"]
    model, images = names["model"].eval(), torch.randn(2, 3, 61, 47)
    with_block = model(images)
    cvattn.remove_attention(model)
    assert torch.equal(model(images), with_block)


def test_links_and_pictures_are_there():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
